"""Misses of one policy under atomic and sequential replay, with intervals over blocks of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from moesim.report.statistics import Estimate, difference, estimate
from moesim.simulate.step_hits import BLOCKS, step_hits
from moesim.trace import Trace, from_esft
from moesim.trace.parts import pick

__all__ = ["NAMES", "REPLAYS", "Contrast", "Grid", "Results", "contrast", "routing"]

REPLAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "atomic": {},
    "random": {"replay": "sequential", "order": "random"},
    "ascending": {"replay": "sequential", "order": "ascending"},
}
"""Each replay as arguments of `step_hits`; the sequential ones by the order of ids in an event."""
HEAD: Final = 24
"""Tokens at the begin of each request that are left out: all requests of a task share them."""
NAMES: Final = {
    "atomic": "atomic",
    "random": "one by one, random order",
    "ascending": "one by one, ascending ids",
}


@dataclass(frozen=True, slots=True)
class Contrast:
    """Misses of uses in per cent at each capacity, by replay, and their differences to atomic."""

    misses: Mapping[str, Sequence[Estimate]]
    inflation: Mapping[str, Sequence[Estimate]]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is swept. Capacities are slots a layer; 26 of 64 is the 40 % of the published table.

    All tasks are tried with `quick`, the policies whose sizes come from one pass. The others take a
    pass for each capacity, so they are tried on `task` alone.
    """

    tasks: Sequence[str] = ("intent", "law", "summary", "translation")
    task: str = "law"
    batches: Sequence[int] = (1, 2, 4, 8, 16)
    capacities: Sequence[int] = (4, 8, 12, 16, 20, 26, 32, 40, 48)
    quick: Sequence[str] = ("lru", "static")
    slow: Sequence[str] = ("lfru", "lfu", "min", "random")
    slow_capacities: Sequence[int] = (16, 26, 38)
    layers: tuple[int, ...] = (1, 9, 17, 25)

    @property
    def policies(self) -> list[str]:
        """All policies."""
        return [*self.quick, *self.slow]


@dataclass(slots=True)
class Results:
    """Contrasts by (task, policy, batch), each at the capacities of its policy."""

    grid: Grid
    by_setting: dict[tuple[str, str, int], Contrast]

    def at(self, task: str, policy: str, batch: int, capacity: int) -> tuple[Contrast, int] | None:
        """Return a contrast and the place of a capacity in it; None if it was not tried."""
        found = self.by_setting.get((task, policy, batch))
        own = self.grid.capacities if policy in self.grid.quick else self.grid.slow_capacities
        return None if found is None or capacity not in own else (found, list(own).index(capacity))


@cache
def routing(file: Path, layers: tuple[int, ...], share: float = 0.5) -> Trace:
    """Return the last `share` of the requests of a recording, in some layers, without heads.

    Raises:
        TraceError: the file is not there, or not a recording of ESFT.
    """
    trace = from_esft(file)
    first = round((1 - share) * trace.num_requests)
    return pick(trace, range(first, trace.num_requests), layers, skip=HEAD)


def contrast(
    trace: Trace,
    policy: str,
    capacities: Sequence[int],
    batch: int,
    replays: Sequence[str] = tuple(REPLAYS),
) -> Contrast:
    """Return the misses of a policy under each replay.

    Raises:
        UsageError: too few steps have `batch` requests.
    """
    by_replay = {
        name: 100
        - 100
        * step_hits(trace, policy, capacities=capacities, batch=batch, **REPLAYS[name]).block_rates(
            BLOCKS, batch=batch
        )
        for name in replays
    }
    atomic = by_replay["atomic"]
    return Contrast(
        {name: [estimate(column) for column in rates.T] for name, rates in by_replay.items()},
        {
            name: [
                difference(rates[:, column].tolist(), atomic[:, column].tolist(), relative=False)
                for column in range(len(capacities))
            ]
            for name, rates in by_replay.items()
        },
    )
