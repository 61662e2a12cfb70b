"""The thresholds of a grid: a bisection over one key, for each combination of the other keys."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from moesim.errors import UsageError
from moesim.search.grid import Grid, Place
from moesim.search.metrics import Condition
from moesim.search.threshold import Bisection, most_steps
from moesim.search.tried import Tried, Trier

__all__ = ["Line", "Thresholds", "find_thresholds", "most_points", "searched_key"]


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one combination of the other keys, and the bisection over them.

    `places` has the place of each value of the searched key. `tried` has the tried ones, by number.
    """

    places: tuple[Place, ...]
    search: Bisection
    tried: dict[int, Tried]

    def at(self, number: int | None) -> Tried | None:
        """Return the point of a number of a value; None without one."""
        return None if number is None else self.tried[number]

    @property
    def ordered(self) -> list[Tried]:
        """The tried points in the order of the searched key."""
        return [self.tried[at] for at in sorted(self.tried)]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The outcome of a search for a threshold: one line for each combination of the other keys."""

    key: str
    condition: Condition
    lines: tuple[Line, ...]

    @property
    def tried(self) -> list[Tried]:
        """All tried points, line by line."""
        return [each for line in self.lines for each in line.ordered]


def searched_key(grid: Grid, named: Sequence[str]) -> str:
    """Return the key whose threshold is searched: the first that `--over` names, or the only one.

    Raise UsageError if there are several and none is named.
    """
    if keys := [key for key in named if key in grid.keys]:
        return keys[0]
    if len(grid.keys) == 1:
        return grid.keys[0]
    raise UsageError(
        f"--until: a threshold is searched over one key, and the sweep has {', '.join(grid.keys)}; "
        f"name it, like --over {grid.keys[-1]}; each combination of the others has its threshold"
    )


def most_points(grid: Grid, key: str, probes: int) -> int:
    """Return the most points that the bisections over a key try."""
    count = len(grid.values[key])
    return len(grid.points) // count * most_steps(count, probes)


def find_thresholds(
    grid: Grid, key: str, condition: Condition, trier: Trier, *, probes: int, tolerance: float
) -> Thresholds:
    """Return the thresholds over `key`, one for each combination of the values of other keys.

    All bisections go forward together, so that several processes have work. Where a run fails for
    another reason than its memory, its line ends without a threshold.
    """
    axis, count = grid.keys.index(key), len(grid.values[key])
    others = [range(len(values)) if other != key else (0,) for other, values in grid.values.items()]
    lines = tuple(
        Line(
            tuple((*place[:axis], at, *place[axis + 1 :]) for at in range(count)),
            Bisection(count, condition, probes, tolerance),
            {},
        )
        for place in itertools.product(*others)
    )
    while wanted := [(line, at) for line in lines for at in line.search.wanted()]:
        tried = trier.try_whole([line.places[at] for line, at in wanted])
        for (line, at), each in zip(wanted, tried, strict=True):
            line.tried[at] = each
            line.search.tried[at] = each.mean(condition.metric)
            line.search.failed |= bool(each.error) and not each.too_large
    return Thresholds(key, condition, lines)
