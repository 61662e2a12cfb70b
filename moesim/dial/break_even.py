"""Where prefetch begins to pay: time saved at each accuracy, and the border where it is zero.

Time saved is the share of the time in steps that a run takes less than the same run without
prefetch. It is paired seed by seed. A border is claimed only where the interval of each of its two
sides leaves out zero.

For a given recall the border is a precision: wrong copies delay others, and right ones help. So a
more precise predictor of the same recall saves more. Between two precisions the time saved is taken
as linear in the wrong copies for each right one, which are 1 / precision - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

from moesim.dial.grid import Grid, Link
from moesim.dial.points import NO_RECALL, PERFECT, DialPoint
from moesim.report.runs import Run
from moesim.report.statistics import Estimate, difference, estimate

__all__ = ["Border", "Cell", "Plane", "planes_of", "steps_s"]

_NS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Cell:
    """The runs of one accuracy: the share of the time in steps that they save, and copied bytes."""

    recall: float
    precision: float
    saved: Estimate
    time_s: float
    on_time: float
    useful_bytes: float
    late_bytes: float
    wasted_bytes: float

    @property
    def verdict(self) -> str:
        """`pays`, `loses`, `equal` (exactly the time without prefetch) or `unresolved`."""
        if self.saved.low > 0:
            return "pays"
        if self.saved.high < 0:
            return "loses"
        return "equal" if self.saved.low == self.saved.high == 0 else "unresolved"


@dataclass(frozen=True, slots=True)
class Border:
    """The precision that a predictor of one recall needs.

    `pays_from` is the lowest precision from which all save time; None if none does. `fails_at` is
    the highest precision below it; None if all save time. `mean` is where the mean saves nothing,
    by interpolation; None where no pair of neighbours encloses it. The border is `claimed`
    if prefetch loses at `fails_at`, or is exactly as fast.
    """

    recall: float
    fails_at: float | None
    pays_from: float | None
    mean: float | None
    claimed: bool


@dataclass(frozen=True, slots=True)
class Plane:
    """All accuracies of one depth and link, ascending in recall, then in precision."""

    link: Link
    depth: int
    cells: tuple[Cell, ...]
    perfect: Cell
    base: tuple[Run, ...]
    """The runs without prefetch, one a seed."""
    best: tuple[Run, ...]
    """The runs of the perfect predictor."""

    @property
    def recalls(self) -> list[float]:
        """The recalls of the grid."""
        return sorted({cell.recall for cell in self.cells})

    @property
    def precisions(self) -> list[float]:
        """The precisions of the grid."""
        return sorted({cell.precision for cell in self.cells})

    @property
    def borders(self) -> list[Border]:
        """The precision that is needed, for each recall above zero."""
        return [_border([c for c in self.cells if c.recall == r]) for r in self.recalls if r]

    @property
    def pays_from(self) -> list[tuple[float, float]]:
        """The least accuracies, as recall and precision, from which every better one pays.

        None of them is better than another in both.
        """
        every = (*self.cells, self.perfect)
        enough = [(c.recall, c.precision) for c in every if _all_better_pay(c, every)]
        return sorted(
            one
            for one in dict.fromkeys(enough)
            if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in enough)
        )


def _all_better_pay(cell: Cell, every: Sequence[Cell]) -> bool:
    return all(
        other.verdict == "pays"
        for other in every
        if other.recall >= cell.recall and other.precision >= cell.precision
    )


def _border(column: Sequence[Cell]) -> Border:
    """Return the border of the cells of one recall, ascending in precision."""
    paying = 0
    while paying < len(column) and column[-1 - paying].verdict == "pays":
        paying += 1
    split = len(column) - paying
    below = column[split - 1] if split else None
    above = column[split] if paying else None
    return Border(
        column[0].recall,
        None if below is None else below.precision,
        None if above is None else above.precision,
        _crossing(column),
        claimed=below is not None and above is not None and below.verdict in ("loses", "equal"),
    )


def _crossing(column: Sequence[Cell]) -> float | None:
    """Return the highest precision at which the mean passes from no time saved to some."""
    for low, high in reversed(list(pairwise(column))):
        if low.saved.mean <= 0 < high.saved.mean:
            share = -low.saved.mean / (high.saved.mean - low.saved.mean)
            return 1 / (1 / low.precision + share * (1 / high.precision - 1 / low.precision))
    return None


def planes_of(runs: Mapping[DialPoint, Run], grid: Grid) -> list[Plane]:
    """Return the plane of each link and depth of a grid, by link, then by depth."""
    return [_plane(runs, grid, link, depth) for link in grid.links for depth in grid.depths]


def _plane(runs: Mapping[DialPoint, Run], grid: Grid, link: Link, depth: int) -> Plane:
    base: dict[int, Run] = {}
    by_accuracy: dict[tuple[float, float], dict[int, Run]] = {}
    for point, run in runs.items():
        if point.link == link and not point.depth:
            base[point.seed] = run
        # Without recall nothing is predicted: one run stands for all depths and precisions.
        elif point.link == link and (point.depth == depth or not point.accuracy[0]):
            by_accuracy.setdefault(point.accuracy, {})[point.seed] = run
    cells = []
    for recall, precision in product(grid.recalls, grid.precisions):
        of = by_accuracy[(recall, precision) if recall else NO_RECALL]
        cells.append(_cell((recall, precision), of, base))
    best = by_accuracy[PERFECT]
    perfect = _cell(PERFECT, best, base)
    return Plane(link, depth, tuple(cells), perfect, tuple(base.values()), tuple(best.values()))


def _cell(accuracy: tuple[float, float], runs: Mapping[int, Run], base: Mapping[int, Run]) -> Cell:
    times = [steps_s(run) for run in runs.values()]
    longer = difference(times, [steps_s(base[seed]) for seed in runs])

    def mean(key: str) -> float:
        return estimate(run.value(key) for run in runs.values()).mean

    return Cell(
        *accuracy,
        saved=Estimate(0.0 - longer.mean, longer.half, longer.n, longer.undefined),
        time_s=estimate(times).mean,
        on_time=mean("on_time_hit_rate"),
        useful_bytes=mean("prefetch_useful_bytes"),
        late_bytes=mean("prefetch_late_bytes"),
        wasted_bytes=mean("prefetch_wasted_bytes"),
    )


def steps_s(run: Run) -> float:
    """Return the time in steps of a run's window, in seconds, to the nanosecond."""
    return (round(run.window_s * _NS) - round(run.value("idle_s") * _NS)) / _NS
