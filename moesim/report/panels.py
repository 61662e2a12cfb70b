"""What the charts of several runs share: one legend for all panels, and words for captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moesim.report.chart import Chart
from moesim.report.comparison import Comparison

__all__ = ["MOST_SETTINGS", "NO_BOUNDS", "OUTPUT_ONLY", "bounded", "left_out", "shared_legend"]

MOST_SETTINGS: Final = 3
NO_BOUNDS: Final = "These runs computed no bounds."
OUTPUT_ONLY: Final = "Throughput counts output tokens."


def bounded(comparison: Comparison) -> bool:
    """Whether any run computed its bounds."""
    keys = ("min_hit_rate", "infinite_cache_hit_rate", "infinite_cache_makespan_s")
    return any(run.value(key) == run.value(key) for run in comparison.runs for key in keys)


def left_out(every: Sequence[str], shown: Sequence[str]) -> str:
    return "" if len(every) == len(shown) else f" ({len(shown)} of {len(every)} settings drawn)"


def shared_legend(chart: Chart, *, wide: bool = False) -> None:
    """One legend for all panels, outside of them: beside, or above for wide charts."""
    entries: dict[str, Any] = {}
    for row in chart.axes:
        for axes in row:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
    where = {"loc": "outside upper center", "ncols": 6} if wide else {"loc": "outside right upper"}
    if entries:
        chart.figure.legend(entries.values(), entries.keys(), **where)
