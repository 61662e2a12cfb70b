"""The figure of predicted against measured throughput, with one colour for each kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moesim.measured.answers import Answered
from moesim.measured.score import GROUPS
from moesim.report.chart import Chart, grid, mark_undefined, save_charts
from moesim.report.panels import shared_legend
from moesim.report.style import styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_scatter"]

_CAPTION: Final = (
    "Each point is a row with a measured value and a prediction; tokens per second on both axes, "
    "logarithmic. On the line, both are equal. Thin bars are the intervals of predictions. "
    "SYNTHETIC ROUTING: simulated rows replay routing that is drawn at random, made by no model."
)


def draw_scatter(rows: Sequence[Answered], folder: Path) -> None:
    """Draw the figure `measured` in `folder`, with its data as CSV and its caption.

    Raises:
        OutputError: the folder cannot be written.
    """
    save_charts(folder, [lambda: _chart(rows)])


def _chart(rows: Sequence[Answered]) -> Chart:
    columns = ("group", "placement", "index", "measured", "predicted", "low", "high")
    title = "Predicted and measured throughput"
    chart = grid("measured", title, _CAPTION, columns, shape=(1, len(GROUPS)), height_in=2.7)
    kinds = sorted({row.reading.kind.name for row in rows})
    looks = styles_of(kinds)
    for group, axes in zip(GROUPS, chart.axes[0], strict=True):
        drawn = [row for row in rows if row.reading.group == group and row.error_pct is not None]
        axes.set_title(f"{group.replace('_', ' ')} (n = {len(drawn)})")
        if not drawn:
            mark_undefined(axes, "no predicted row with a value")
            continue
        for kind in kinds:
            part = [row for row in drawn if row.reading.kind.name == kind]
            points = [_record(chart, group, row) for row in part]
            if not points:
                continue
            measured, predicted, low, high = zip(*points, strict=True)
            axes.vlines(measured, low, high, color=looks[kind].color, linewidth=0.4, alpha=0.4)
            axes.plot(
                measured, predicted, looks[kind].marker, color=looks[kind].color,
                markerfacecolor=looks[kind].face, markersize=3, label=kind, linestyle="none",
            )  # fmt: skip
        _finish(axes, drawn)
    shared_legend(chart, wide=True)
    return chart


def _record(chart: Chart, group: str, row: Answered) -> tuple[float, float, float, float]:
    """Add a row to the chart's data; return its measured value, prediction and interval."""
    it = row.prediction
    assert it is not None
    assert row.value is not None
    point = (row.value, it.value, it.low, it.high)
    chart.record(group, row.reading.kind.name, row.reading.row.index, *point)
    return point


def _finish(axes: Axes, rows: Sequence[Answered]) -> None:
    """Set equal logarithmic axes with their units, and the line of equality."""
    values = [v for row in rows if row.prediction for v in (row.value or 1, row.prediction.value)]
    ends = (min(values) / 1.3, max(values) * 1.3)
    axes.plot(ends, ends, color="black", linewidth=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("measured (tokens/s)")
    axes.set_ylabel("predicted (tokens/s)")
