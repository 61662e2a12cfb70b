"""The chart against a swept number: each line is a policy or a setting, each panel a metric.

The number is any key of the sweep with numbers or quantities: layers on the CPU, the size of a
batch, host memory, a bandwidth. The size of the cache has charts of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from moesim.config.units import in_one_unit
from moesim.report.chart import Chart, drawn, grid
from moesim.report.comparison import CAPACITY_KEYS, Comparison, Row
from moesim.report.marks import FORESEES, marked
from moesim.report.metrics import DECODE, THROUGHPUT, TTFT, Metric
from moesim.report.panels import (
    MOST_SETTINGS,
    OUTPUT_ONLY,
    about_intervals,
    left_out,
    line_with_interval,
    named,
    shared_legend,
)
from moesim.report.style import Style, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Swept", "line_label", "lines_of", "metrics_against_number", "swept_number"]

FEWEST: Final = 3
"""The fewest different numbers that make a line worth drawing."""
METRICS: Final = (DECODE.key, THROUGHPUT.key, TTFT.key, "stall_share")
LABELS: Final = {
    "placement.options.layers": "layers whose experts are on the CPU",
    "placement.options.whole_layers": "whole layers on the CPU",
    "batching.max_sequences": "largest batch (sequences)",
    "memory.host": "host memory",
    "workload.arrivals.clients": "clients",
    "workload.arrivals.rate_per_s": "arrivals (requests/s)",
}
"""Axis labels of common keys; other keys are written as the scenario does."""
TITLE: Final = 44
"""Characters of a line of a panel's title."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A swept number: its key, its unit, and its value in each row of the comparison."""

    key: str
    unit: str
    numbers: tuple[float, ...]

    @property
    def label(self) -> str:
        """Return the label of the axis, with the unit."""
        label = LABELS.get(self.key, self.key)
        return f"{label} ({self.unit})" if self.unit else label


def swept_number(comparison: Comparison) -> Swept | None:
    """Return the key with the most different numbers, the first of several; None if none has 3."""
    best, most = None, FEWEST - 1
    for key in (*comparison.policy_keys, *comparison.setting_keys):
        read = in_one_unit([row.values[key] for row in comparison.rows])
        if key in CAPACITY_KEYS or read is None:
            continue
        numbers, unit = read
        if len(set(numbers)) > most:
            best, most = Swept(key, unit, tuple(numbers)), len(set(numbers))
    return best


def metrics_against_number(comparison: Comparison) -> Chart | None:
    """Draw speeds, TTFT and stalls over a swept number, two rows of panels a setting.

    Return None if no key has three numbers.
    """
    swept = swept_number(comparison)
    if swept is None:
        return None
    lines = lines_of(comparison, swept)
    every = list(dict.fromkeys(facet for facet, _ in lines))
    facets = every[:MOST_SETTINGS]
    metrics = [_metric(comparison, key) for key in METRICS]
    drawn_lines = {line for _, line in lines}
    shaded = about_intervals(len(drawn_lines)) if comparison.has_intervals else ""
    chart = grid(
        "metrics_swept",
        f"Performance against {swept.key}",
        f"Performance against {swept.label}{left_out(every, facets)}. {OUTPUT_ONLY} "
        f"{shaded}{comparison.caption()}",
        ("setting", "metric", "unit", "line", swept.key, "number", "mean", "low", "high", "n"),
        shape=(2 * len(facets), 2),
        height_in=4.0 * len(facets),
        note=comparison.note(),
    )
    looks = styles_of(list(dict.fromkeys(line for _, line in lines)))
    for place, facet in enumerate(facets):
        panels = [axes for row in chart.axes[2 * place : 2 * place + 2] for axes in row]
        for axes, metric in zip(panels, metrics, strict=True):
            for (where, line), rows in lines.items():
                if where == facet:
                    where_in = (list(looks).index(line), len(looks))
                    _line(chart, axes, facet, line, rows, metric, swept, looks[line], where_in)
            axes.set_ylabel(metric.unit)
            title = ", ".join(part for part in (metric.label, facet) if part)
            axes.set_title(drawn(title, TITLE // 2))
            _number_axis(axes, swept)
            axes.set_ylim(0, axes.get_ylim()[1] * 1.04)  # so that heights compare as they look
    if len(looks) > 1:
        shared_legend(chart)
    return chart


Points = list[tuple[float, Row]]


def lines_of(comparison: Comparison, swept: Swept) -> dict[tuple[str, str], Points]:
    """Return the rows of each line with their numbers ascending, by facet and line."""
    lines: dict[tuple[str, str], Points] = {}
    facet_keys = [key for key in comparison.setting_keys if key not in comparison.policy_keys]
    for row, number in zip(comparison.rows, swept.numbers, strict=True):
        line = _named(row, comparison.policy_keys, swept)
        facet = _named(row, facet_keys, swept)
        facet = ", ".join(part for part in (facet, row.capacity) if part)
        lines.setdefault((facet, line), []).append((number, row))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in lines.items()}


def line_label(line: str, points: Points) -> str:
    """Return the name of a line, marked where one of its points knows the future."""
    return marked(line, FORESEES if any(row.knows_the_future for _, row in points) else "")


def _named(row: Row, keys: Sequence[str], swept: Swept) -> str:
    return ", ".join(row.named[key] for key in keys if key in row.named and key != swept.key)


def _metric(comparison: Comparison, key: str) -> Metric:
    return next(metric for metric in comparison.headline if metric.key == key)


def _line(
    chart: Chart,
    axes: Axes,
    facet: str,
    line: str,
    points: Points,
    metric: Metric,
    swept: Swept,
    look: Style,
    place: tuple[int, int],
) -> None:
    """Draw a line with the band of its interval; undefined means leave gaps."""
    numbers = [number for number, _ in points]
    estimates = [row.estimate(metric) for _, row in points]
    label = named(line_label(line, points))
    line_with_interval(axes, numbers, estimates, look, label, place)
    for (number, row), e in zip(points, estimates, strict=True):
        interval = (e.low, e.high) if e.half is not None else (None, None)
        value = row.values[swept.key]
        chart.record(facet, metric.label, metric.unit, line, value, number, e.mean, *interval, e.n)


def _number_axis(axes: Axes, swept: Swept) -> None:
    """Label the axis; put ticks at few numbers, and use powers of 2 for a wide range."""
    numbers = sorted(set(swept.numbers))
    if numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]:
        axes.set_xscale("log", base=2)
    if len(numbers) <= 9:
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.minorticks_off()
    axes.set_xlabel(swept.label)
