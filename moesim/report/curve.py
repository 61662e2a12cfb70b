"""The report of a curve: `curve.csv`, `curve.json` and a figure of hit rate, bytes and bound."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, drawn, grid, save_charts, write_csv, write_whole
from moesim.report.curve_points import CurvePoint, groups
from moesim.report.marks import FORESEES, marked
from moesim.report.metrics import UNDEFINED
from moesim.report.names import policy_label
from moesim.report.panels import MOST_BANDS, shared_legend
from moesim.report.style import Style, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BOUND", "COLUMNS", "FILES", "RESAMPLED", "CurveReport", "curve_chart", "write_curve"]

FILES: Final = ("curve.csv", "curve.json")
"""The files by which an output folder of a curve is recognised."""

RESAMPLED: Final = (
    "each resample keeps the hits that a request had in the recorded order; the cache state is not "
    "resampled"
)
BOUND: Final = (
    "lower bound on the time of a token: every missed expert is copied once over the link, and "
    "everything else takes no time"
)
COLUMNS: Final = (
    "policy", "knows_future", "slots_per_layer", "slots", "cache_bytes", "accesses", "hits",
    "misses", "hit_rate", "hit_rate_low", "hit_rate_high", "miss_bytes", "miss_bytes_per_token",
    "bound_ns_per_token",
)  # fmt: skip
_MARKED: Final = 12  # points of a line up to which each has a marker


@dataclass(frozen=True, slots=True)
class CurveReport:
    """The points of a curve and how they were made, as plain data.

    `about` becomes the head of `curve.json`, `caption` ends that of the figure. `foresees` are the
    policies that know the future.
    """

    points: Sequence[CurvePoint]
    about: Mapping[str, Any]
    caption: str
    foresees: Sequence[str]

    def as_plain(self) -> dict[str, Any]:
        """Return the content of `curve.json`."""
        points = [
            {**point.as_plain(), "knows_future": point.policy in self.foresees}
            for point in self.points
        ]
        return {**self.about, "points": points}

    def rows(self) -> list[tuple[Any, ...]]:
        """Return a row of `curve.csv` for each point."""
        return [
            (
                point.policy, int(point.policy in self.foresees), point.capacity, point.slots,
                point.cache_bytes, point.accesses, point.hits, point.misses, point.hit_rate,
                point.hit_rate_low, point.hit_rate_high, point.miss_bytes,
                point.miss_bytes_per_token, point.bound_ns_per_token,
            )
            for point in self.points
        ]  # fmt: skip


def write_curve(report: CurveReport, folder: Path, *, plots: bool = True) -> None:
    """Write `curve.csv`, `curve.json` and, with `plots`, `plots/` into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    write_csv(folder / "curve.csv", COLUMNS, report.rows())
    text = json.dumps(report.as_plain(), indent=1, allow_nan=False)
    write_whole(folder / "curve.json", f"{text}\n")
    if plots:
        save_charts(folder / "plots", [partial(curve_chart, report)])


def curve_chart(report: CurveReport) -> Chart:
    """Draw hit rate against capacity and, where they are known, missed bytes and the bound."""
    panels = [panel for panel in _PANELS if panel.of(report.points[0]) is not None]
    how = (
        "shaded"
        if len(groups(report.points)) <= MOST_BANDS
        else "whiskers, at some points of each line"
    )
    resampled = f", with 95 % intervals over requests ({how}): {RESAMPLED}"
    if report.points[0].hit_rate_low is None:
        resampled = ""
    chart = grid(
        "curve",
        "Hit rate against capacity",
        "Hits over accesses, the distinct experts of layer events"
        f"{resampled}. "
        f"{'A token is a row of the trace. ' if len(panels) > 1 else ''}"
        f"{'Bound: ' + BOUND + '. ' if len(panels) > 2 else ''}{report.caption}",
        ("panel", "policy", "slots_per_layer", "value", "low", "high"),
        shape=(1, len(panels)),
        height_in=2.6,
        note=f"n = {report.about.get('requests', UNDEFINED)} requests; replayed, not timed",
    )
    labels = {
        policy: marked(policy_label(policy), FORESEES if policy in report.foresees else "")
        for policy in groups(report.points)
    }
    looks = styles_of([policy_label(policy) for policy in labels])
    for axes, panel in zip(chart.axes[0], panels, strict=True):
        for number, (policy, points) in enumerate(groups(report.points).items()):
            look, place = looks[policy_label(policy)], (number, len(labels))
            _line(chart, axes, panel, points, labels[policy], look, place)
        axes.set_xlabel("expert slots per layer")
        axes.set_ylabel(panel.title)
        axes.set_ylim(bottom=0)
        if panel.most is not None:
            axes.set_ylim(top=panel.most)
    shared_legend(chart, wide=True)
    return chart


def _line(
    chart: Chart,
    axes: Axes,
    panel: _Panel,
    points: Sequence[CurvePoint],
    label: str,
    look: Style,
    place: tuple[int, int],
) -> None:
    slots = [float(point.capacity) for point in points]
    values = [panel.of(point) or 0.0 for point in points]
    every = max(1, len(points) // _MARKED)
    axes.plot(
        slots, values, label=drawn(label), color=look.color, marker=look.marker, markersize=3,
        linestyle=look.line, markevery=every, markerfacecolor=look.face,
    )  # fmt: skip
    ends = [panel.ends(point) for point in points]
    if None not in ends:
        low, high = zip(*(pair for pair in ends if pair is not None), strict=True)
        _interval(axes, (slots, values, low, high), look, place, every)
    for point, value, pair in zip(points, values, ends, strict=True):
        chart.record(panel.name, point.policy, point.capacity, value, *(pair or (None, None)))


def _interval(
    axes: Axes,
    sides: tuple[Sequence[float], ...],
    look: Style,
    place: tuple[int, int],
    every: int,
) -> None:
    """Draw the intervals of a line: a band, or whiskers at few points if there are many lines."""
    slots, values, low, high = sides
    if place[1] <= MOST_BANDS:
        axes.fill_between(slots, low, high, color=look.color, alpha=0.15, linewidth=0)
        return
    # Each line has its whiskers at other points, so that they do not cover each other.
    step = max(every, min(place[1], len(slots) // 2), 1)
    chosen = range(place[0] % step, len(slots), step)
    axes.errorbar(
        [slots[i] for i in chosen], [values[i] for i in chosen],
        yerr=([values[i] - low[i] for i in chosen], [high[i] - values[i] for i in chosen]),
        color=look.color, linestyle="", elinewidth=0.8, capsize=1.8, capthick=0.8,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Panel:
    """One quantity over capacity: its value in a unit, and its interval if it has one."""

    name: str
    title: str
    of: Callable[[CurvePoint], float | None]
    most: float | None = None

    def ends(self, point: CurvePoint) -> tuple[float, float] | None:
        """Return the ends of the hit rate's interval in %; None for other quantities."""
        if self.name != "hit_rate_pct" or point.hit_rate_low is None:
            return None
        assert point.hit_rate_high is not None
        return 100 * point.hit_rate_low, 100 * point.hit_rate_high


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


_PANELS: Final = (
    _Panel("hit_rate_pct", "hit rate (% of accesses)", lambda point: 100 * point.hit_rate, 100.0),
    _Panel(
        "miss_mib_per_token", "missed bytes (MiB per token)",
        lambda point: _scaled(point.miss_bytes_per_token, 2**20),
    ),
    _Panel(
        "bound_ms_per_token", "bound on copy time (ms per token)",
        lambda point: _scaled(point.bound_ns_per_token, 1e6),
    ),
)  # fmt: skip
