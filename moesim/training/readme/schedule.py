"""The schedule of tuning: rounds of a router stage and then an expert stage.

Source: table 2 of Read-ME (arXiv 2410.19123); `PAPER` has its numbers. Section 3 describes joint
training. Section 5.1 and the released code alternate, as this schedule does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from moesim.errors import UsageError

Kind = Literal["router", "experts"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a round. A step sees `batch` windows; the rate falls from `peak` as a cosine.

    `start` counts the windows of all stages before this one.
    """

    round: int
    kind: Kind
    steps: int
    batch: int
    peak: float
    start: int

    @property
    def name(self) -> str:
        return f"round {self.round} {self.kind}"

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        return self.peak * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rates fall by `decay` from one round to the next; batches count windows."""

    rounds: int
    router_steps: int
    expert_steps: int
    router_batch: int
    expert_batch: int
    router_rate: float = 5e-4
    expert_rate: float = 5e-5
    decay: float = 0.8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("rounds", "router_steps", "expert_steps", "router_batch", "expert_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} ({getattr(self, name)}) must be at least 1")
        for name in ("router_rate", "expert_rate", "decay"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} ({getattr(self, name)}) must be above 0")

    def stages(self, *, routers: bool = True) -> Iterator[Stage]:
        """Yield all stages in order; without `routers`, expert stages alone.

        Windows of router stages then stay unused, so that experts see the same text either way.
        """
        start = 0
        for number in range(self.rounds):
            fall = self.decay**number
            steps, batch = self.router_steps, self.router_batch
            if routers:
                yield Stage(number, "router", steps, batch, self.router_rate * fall, start)
            start += steps * batch
            steps, batch = self.expert_steps, self.expert_batch
            yield Stage(number, "experts", steps, batch, self.expert_rate * fall, start)
            start += steps * batch


PAPER: Final = Schedule(
    rounds=8, router_steps=100, expert_steps=200, router_batch=64, expert_batch=128
)
