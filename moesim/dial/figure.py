"""The picture of the dial: time saved over recall and precision, a panel for each depth and link.

The line is the break-even precision of each recall. It is solid between recalls whose border is
claimed, else dotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.dial.break_even import Border, Plane
from moesim.dial.grid import Link
from moesim.dial.sentence import ahead
from moesim.report.chart import Chart, drawn, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MOST_PANELS", "break_even_chart"]

MOST_PANELS: Final = 3
"""The most depths and the most links that are drawn; the table has all."""
_NUMBERED: Final = 42  # cells of a panel that have room for a number
_COLUMNS: Final = (
    "link", "depth", "recall_pct", "precision_pct", "saved_pct", "low_pct", "high_pct", "verdict",
)  # fmt: skip


def break_even_chart(
    planes: Sequence[Plane], speeds: Mapping[Link, str], caption: str, note: str = ""
) -> Chart:
    """Return the chart of the planes; `caption` and, in short, `note` say what was simulated."""
    every = list(dict.fromkeys(plane.link for plane in planes))
    all_depths = sorted({plane.depth for plane in planes})
    links, depths = every[:MOST_PANELS], all_depths[:MOST_PANELS]
    panels = (len(links) * len(depths), len(planes))
    partly = "" if panels[0] == panels[1] else " ({} of {} panels drawn)".format(*panels)
    chart = grid(
        "break_even",
        "What accuracy a predictor needs",
        f"Time saved against the same run without prefetch, in % of its time in steps{partly}. "
        "Black line: break-even; dotted where an interval does not exclude zero. In grey: not "
        "resolved, the interval includes zero. The dial knows the future and errs at random; a "
        f"real predictor of its accuracy errs elsewhere. {caption}",
        _COLUMNS,
        shape=(len(depths), len(links)),
        height_in=0.5 + 1.75 * len(depths),
        note=note,
        sharex=True,
        sharey=True,
    )
    colors = _scale(planes)
    mesh: Any = None
    by_place = {(plane.depth, plane.link): plane for plane in planes}
    for row, depth in enumerate(depths):
        for column, link in enumerate(links):
            axes, plane = chart.axes[row][column], by_place[depth, link]
            mesh = _panel(chart, axes, plane, speeds[link], colors)
            axes.set_title(drawn(f"{ahead(depth)}, {speeds[link]}", 36), fontsize=7)
            axes.set_xlabel("recall (%)" if row == len(depths) - 1 else "")
            axes.set_ylabel("" if column else "precision (%)")
    bar = chart.figure.colorbar(
        mesh, ax=[axes for line in chart.axes for axes in line], shrink=0.85, pad=0.02,
        extend="min", aspect=30,
    )  # fmt: skip
    bar.set_label("time saved (% of the time in steps)")
    return chart


def _scale(planes: Sequence[Plane]) -> Any:
    """Return a scale of colours with zero in the middle, as wide as the largest gain.

    Losses of wrong copies may be many times as large; they all have the last colour.
    """
    from matplotlib.colors import Normalize

    most = max(1.0, *(100 * cell.saved.mean for plane in planes for cell in plane.cells))
    return Normalize(-most, most)


def _panel(chart: Chart, axes: Axes, plane: Plane, speed: str, colors: Any) -> Any:
    """Draw one plane; return what the colour bar is of."""
    recalls, precisions = plane.recalls, plane.precisions
    saved_PR = np.zeros((len(precisions), len(recalls)))
    for cell in plane.cells:
        saved = cell.saved
        saved_PR[precisions.index(cell.precision), recalls.index(cell.recall)] = 100 * saved.mean
        ends = (None, None) if saved.half is None else (100 * saved.low, 100 * saved.high)
        chart.record(
            speed, plane.depth, 100 * cell.recall, 100 * cell.precision, 100 * saved.mean, *ends,
            cell.verdict,
        )  # fmt: skip
    mesh = axes.pcolormesh(
        _edges(recalls), _edges(precisions), saved_PR, cmap="RdBu", norm=colors, alpha=0.65,
        linewidth=0, rasterized=True,
    )  # fmt: skip
    if len(plane.cells) <= _NUMBERED:
        _numbers(axes, plane)
    _line(axes, plane.borders)
    axes.set_xticks([100 * recall for recall in recalls])
    axes.set_yticks([100 * precision for precision in precisions])
    axes.grid(False)
    return mesh


def _edges(values: Sequence[float]) -> Any:
    """Return the edges, in %, of cells around ascending values; of one value, a narrow cell."""
    inner = [50 * (low + high) for low, high in pairwise(values)]
    if not inner:
        return np.array([100 * values[0] - 12.5, 100 * values[0] + 12.5])
    first, last = 200 * values[0] - inner[0], 200 * values[-1] - inner[-1]
    return np.array([first, *inner, last])


def _numbers(axes: Axes, plane: Plane) -> None:
    from matplotlib.patheffects import withStroke

    for cell in plane.cells:
        value = 100 * cell.saved.mean
        resolved = cell.verdict != "unresolved"
        digits = 0 if abs(value) >= 9.95 else 1
        axes.text(
            100 * cell.recall, 100 * cell.precision,
            "0" if cell.verdict == "equal" else f"{value:+.{digits}f}",
            ha="center", va="center", fontsize=5, color="black" if resolved else "#777777",
            style="normal" if resolved else "italic", zorder=3,
            path_effects=[withStroke(linewidth=1.2, foreground="white", alpha=0.7)],
        )  # fmt: skip


def _line(axes: Axes, borders: Sequence[Border]) -> None:
    """Draw the border between neighbouring recalls that have one."""
    placed = [(border, border.mean) for border in borders if border.mean is not None]
    for (left, low), (right, high) in pairwise(placed):
        claimed = left.claimed and right.claimed
        axes.plot(
            [100 * left.recall, 100 * right.recall], [100 * low, 100 * high], color="black",
            linewidth=1.1, linestyle="-" if claimed else (0, (1, 1.2)),
        )  # fmt: skip
    for border, mean in placed:
        axes.plot(
            100 * border.recall, 100 * mean, color="black", marker="o", markersize=2.5,
            markerfacecolor="black" if border.claimed else "white",
        )  # fmt: skip
