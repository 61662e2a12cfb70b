"""Points that a search has tried: their runs, read back, and the means of their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moesim.errors import BudgetError, MoesimError
from moesim.report.marks import foreseeing
from moesim.report.runs import Run, load_run
from moesim.report.statistics import Estimate, estimate
from moesim.search.grid import Grid, Place
from moesim.sweep import Point, unfinished

__all__ = ["Fetch", "Simulate", "Tried", "Trier"]

Simulate = Callable[[Sequence[Point], int], Mapping[Path, Exception]]
"""`simulate(points, kept)`: simulate points into their folders; return the errors, by folder.

`kept` further runs were wanted, and lie in the folder already.
"""

Fetch = Callable[[Sequence[Point]], None]
"""`fetch(points)`: copy the finished runs of points into their folders, if they lie elsewhere."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A place of the grid with its runs, one per seed, or with the reason why there are none."""

    place: Place
    runs: tuple[Run, ...]
    requests: int | None = None
    """The number of requests of a prefix; None if the runs are whole."""
    error: str = ""
    too_large: bool = False
    """Whether the error is that the memory does not suffice: a result, not a mistake."""

    def estimate(self, metric: str) -> Estimate:
        """Return the mean of a metric over the seeds, with its interval; NaN if it failed."""
        return estimate(run.value(metric) for run in self.runs)

    def mean(self, metric: str) -> float:
        """Return the mean of a metric; NaN if the point failed or no seed defines it."""
        return self.estimate(metric).mean

    @property
    def seers(self) -> tuple[str, ...]:
        """The policies that know the future, like `eviction min`: the point is then a bound."""
        return tuple(dict.fromkeys(name for run in self.runs for name in foreseeing(run)))


@dataclass(slots=True)
class Trier:
    """Tries places of a grid, each once, and keeps what it found.

    Runs that lie in the folder already are read. With `force`, all are simulated again. `fetch` is
    called before: it brings runs from elsewhere into the folder.
    """

    grid: Grid
    simulate: Simulate
    fetch: Fetch
    force: bool = False
    whole: dict[Place, Tried] = field(default_factory=dict)
    prefixes: dict[tuple[Place, int], Tried] = field(default_factory=dict)

    def try_whole(self, places: Sequence[Place]) -> list[Tried]:
        """Return the places with their whole runs."""
        new = [place for place in dict.fromkeys(places) if place not in self.whole]
        points = {place: self.grid.points[place] for place in new}
        self.whole.update({each.place: each for each in self._tried(points, {})})
        return [self.whole[place] for place in places]

    def try_prefix(self, places: Sequence[Place], requests: Mapping[Place, int]) -> list[Tried]:
        """Return the places with runs of the first `requests[place]` requests."""
        new = [p for p in dict.fromkeys(places) if (p, requests[p]) not in self.prefixes]
        points = {place: self.grid.shortened(place, requests[place]) for place in new}
        for each in self._tried(points, requests):
            self.prefixes[each.place, requests[each.place]] = each
        return [self.prefixes[place, requests[place]] for place in places]

    def _tried(
        self, points: Mapping[Place, Sequence[Point]], requests: Mapping[Place, int]
    ) -> list[Tried]:
        every = [point for several in points.values() for point in several]
        if not self.force:
            self.fetch(every)
        missing = every if self.force else unfinished(every)
        errors = self.simulate(missing, len(every) - len(missing))
        return [_tried(place, p, errors, requests.get(place)) for place, p in points.items()]


def _tried(
    place: Place, points: Sequence[Point], errors: Mapping[Path, Exception], requests: int | None
) -> Tried:
    failed = [errors[point.folder] for point in points if point.folder in errors]
    if not failed:
        return Tried(place, tuple(load_run(point.folder) for point in points), requests)
    too_large = all(isinstance(error, BudgetError) for error in failed)
    return Tried(place, (), requests, _described(failed[0]), too_large)


def _described(error: Exception) -> str:
    """Return the first line of an error; one that moesim did not foresee has its type in front."""
    text = str(error) if isinstance(error, MoesimError) else f"{type(error).__name__}: {error}"
    return (text.splitlines() or [type(error).__name__])[0]
