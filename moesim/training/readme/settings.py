"""The settings of a refactoring, and two sets of them that take an affordable time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from moesim.errors import UsageError
from moesim.training.readme.schedule import Schedule

KINDS: Final = ("decoupled", "layerwise", "dense", "oracle")
CONTROLS: Final = ("none", "random", "shuffled")


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """PipelineSettings of one refactoring.

    Windows have `context` tokens. Of each domain, `score_windows` score channels and
    `held_out_windows` measure. `variant` chooses the paper or its code where they disagree: scores,
    masks, distillation, the router's MLP, and the scaling of outputs by the router's probability.
    `control`: channels drawn at `random`, or scored on windows `shuffled` among the domains.
    `autocast` computes in bfloat16.
    """

    schedule: Schedule
    context: int
    score_windows: int
    held_out_windows: int
    router: Mapping[str, Any] = field(default_factory=dict)
    share: float = 0.5
    variant: Literal["paper", "code"] = "code"
    control: str = "none"
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("score_windows", "held_out_windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.context < 2:
            raise UsageError(f"context ({self.context}) must be at least 2")
        if not 0 < self.share <= 1:
            raise UsageError(f"share ({self.share}) must be above 0 and at most 1")
        if self.seed < 0:
            raise UsageError(f"seed ({self.seed}) must not be negative")
        for name, choices in (("variant", ("paper", "code")), ("control", CONTROLS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}"
                )

    @property
    def router_options(self) -> dict[str, Any]:
        """Return arguments of `PreGatingRouter`."""
        mlp = "swiglu" if self.variant == "paper" else "silu"
        return {**self.router, "mlp": mlp}


SIZES: Final[Mapping[str, PipelineSettings]] = MappingProxyType(
    {
        # For a model of `moesim models train --preset dense`: some minutes.
        "small": PipelineSettings(
            Schedule(2, 100, 100, 8, 8, router_rate=2e-3, expert_rate=5e-4),
            context=128,
            score_windows=64,
            held_out_windows=48,
            router={"hidden": 128, "ffn": 128},
        ),
        # For SmolLM2-135M on two cores: about an hour.
        "smollm2": PipelineSettings(
            Schedule(4, 50, 25, 4, 2, router_rate=1e-3, expert_rate=1e-4),
            context=512,
            score_windows=8,
            held_out_windows=8,
            autocast=True,
        ),
    }
)
