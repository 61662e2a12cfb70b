"""The charts of a comparison: means, latency distributions and stalls of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.report.capacity import hit_rate_against_capacity, metrics_against_capacity
from moesim.report.chart import Chart, drawn, grid, save_charts
from moesim.report.comparison import Comparison, Row
from moesim.report.distribution import (
    LATENCIES,
    PERCENTILES,
    cdf,
    latencies_ns,
    latency_axis,
    percentiles,
)
from moesim.report.lane_names import causes_of
from moesim.report.limits import HIT_LIMITS, MIN_BOUND, limit
from moesim.report.metrics import DECODE, HITS, LATE_HITS, MISSES, THROUGHPUT, TTFT, Metric
from moesim.report.panels import (
    MOST_SETTINGS,
    NARROW_IN,
    OUTPUT_ONLY,
    about_bounds,
    left_out,
    named,
    rows_in,
    shared_legend,
    titled,
)
from moesim.report.style import BLUE, STALLS, Style, styles
from moesim.report.swept import metrics_against_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["latency_cdfs", "plots_for_comparison", "side_by_side", "stalls_side_by_side"]
__all__ += ["ttft_side_by_side"]

NAMES_IN: Final = 1.5
"""Inches that the names of variants take."""
ACROSS: Final = 60
"""Characters of a title across the figure."""
SIDE_BY_SIDE: Final = tuple(metric.key for metric in (DECODE, THROUGHPUT, TTFT, HITS))
WITH_LATE: Final = tuple(metric.key for metric in (DECODE, THROUGHPUT, HITS, LATE_HITS, MISSES))
"""The panels where copies arrive late: hits, late hits and misses, each beside the others."""
TICKS: Final = "Black ticks in the panel of hits: the MIN bound of variants that prefetch nothing."


def plots_for_comparison(comparison: Comparison, folder: Path) -> list[Chart]:
    """Draw every chart that the runs allow into `folder`, and return the charts.

    They replace the folder's content. Charts against capacity need two sizes of the cache, and the
    chart against a swept number needs a key with three values.

    Raises:
        OutputError: the folder cannot be written.
    """
    charts = (
        hit_rate_against_capacity,
        metrics_against_capacity,
        metrics_against_number,
        side_by_side,
        latency_cdfs,
        ttft_side_by_side,
        stalls_side_by_side,
    )
    return save_charts(folder, [partial(chart, comparison) for chart in charts])


def side_by_side(comparison: Comparison) -> Chart:
    """Draw decode speed, throughput, TTFT p95 and hits of each variant, with intervals if any.

    Where hits are late, late hits and misses have panels of their own, and TTFT has none. A sum of
    hits and late hits could seem to beat the bound of MIN.
    """
    from matplotlib.ticker import MaxNLocator

    settings = _chosen(comparison.settings)
    variants = comparison.variants
    late = _has_late(comparison)
    metrics = side_by_side_metrics(comparison)
    names = [row.label for row in comparison.rows]
    chart = grid(
        "side_by_side",
        "Policies side by side",
        f"{'Mean and interval' if comparison.has_intervals else 'Value'} of each variant"
        f"{left_out(comparison.settings, settings)}. "
        f"{about_bounds(comparison, TICKS)}{OUTPUT_ONLY} "
        f"{comparison.caption(hits=True)}",
        ("setting", "metric", "unit", "variant", "mean", "low", "high", "n"),
        shape=(len(settings), len(metrics)),
        height_in=0.3 + len(settings) * (0.55 + rows_in(names) * len(variants)),
        note=comparison.note(),
        names_in=NAMES_IN,
        sharey="row",
    )
    looks = styles(comparison)
    for panels, setting in zip(chart.axes, settings, strict=True):
        rows = comparison.within(setting)
        for column, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
            _dots(chart, axes, setting, rows, metric, looks)
            axes.xaxis.set_major_locator(MaxNLocator(3 if late else 4, steps=[1, 2, 2.5, 5, 10]))
            axes.tick_params(left=not column % chart.across)
            if late:  # five narrow panels
                axes.tick_params(axis="x", labelsize=7)
            if setting == settings[-1] or chart.across < len(metrics):
                axes.set_xlabel(_below(metric, chart))
        panels[0].set_yticks(range(len(rows)), _names(rows))
        panels[0].set_ylim(len(rows) - 0.5, -0.5)  # reversed: the first variant on top
        if setting:
            titled(panels[0], setting, ACROSS)
    return chart


def side_by_side_metrics(comparison: Comparison) -> list[Metric]:
    """Return the metrics of the panels of `side_by_side`, from left to right."""
    shown = WITH_LATE if _has_late(comparison) else SIDE_BY_SIDE
    return [metric for metric in comparison.headline if metric.key in shown]


def _has_late(comparison: Comparison) -> bool:
    return any(row.mean("late_hits") > 0 for row in comparison.rows)


def _below(metric: Metric, chart: Chart) -> str:
    """Return the label below a panel, in short lines where the panel is narrow."""
    narrow = chart.size.width_in < NARROW_IN and chart.across > 1
    return drawn(metric.title, 12) if narrow else metric.two_lines


def latency_cdfs(comparison: Comparison) -> Chart:
    """Draw the latency distributions of all variants, with the requests of all seeds pooled."""
    settings = _chosen(comparison.settings)
    names = ("ttft", "tpot", "e2e")
    chart = grid(
        "latency_cdf",
        "Latency distributions",
        f"Latency distributions{left_out(comparison.settings, settings)}, the requests of all "
        "seeds pooled. Markers are at p50, p95 and p99 of each. "
        f"{comparison.caption(intervals=False)}",
        ("setting", "latency", "variant", "value_ns", "share"),
        shape=(len(settings), len(names)),
        height_in=0.4 + 1.85 * len(settings),
        note=comparison.note(),
        sharey=True,
    )
    looks = styles(comparison)
    for panels, setting in zip(chart.axes, settings, strict=True):
        rows = comparison.within(setting)
        samples = [_pooled(row) for row in rows]
        for axes, name in zip(panels, names, strict=True):
            _overlay(chart, axes, setting, name, rows, samples, looks)
        panels[0].set_ylabel("share of requests")
        panels[0].set_ylim(0, 1.02)
        if setting:
            titled(panels[0], setting, ACROSS)
    shared_legend(chart, wide=True)
    return chart


def stalls_side_by_side(comparison: Comparison) -> Chart:
    """Draw one bar per variant: the GPU lane's seconds by what it did or waited for."""
    causes = causes_of(comparison.runs)
    parts = [("compute", "busy_s", BLUE, "")]
    parts += [(label, f"stall_{cause}_s", *STALLS[cause]) for cause, label in causes.items()]
    parts += [("idle", "idle_s", "#FFFFFF", "")]
    return _stacked(
        comparison, "stall_breakdown", "Stalls by cause",
        "Time of the GPU lane by what it did or waited for{of}. Idle: no step in progress.",
        parts, "time (s)",
    )  # fmt: skip


def ttft_side_by_side(comparison: Comparison) -> Chart:
    """Draw one bar per variant: the mean TTFT in seconds, split into queueing and service."""
    parts = [
        ("queued", "ttft_queue_mean_ms", "#CFC3EE", "////"),
        ("served", "ttft_service_mean_ms", BLUE, ""),
    ]
    return _stacked(
        comparison, "ttft_split", "Time to first token",
        "Mean time to first token{of}. Queued: until the first step that serves the request. "
        "Served: from there to the first token.",
        parts, "mean TTFT (s)", 1e-3,
    )  # fmt: skip


Part = tuple[str, str, str, str]
"""A part of a stacked bar: its label, its key, its colour and its hatch."""


def _stacked(
    comparison: Comparison,
    name: str,
    title: str,
    caption: str,
    parts: Sequence[Part],
    axis: str,
    scale: float = 1.0,
) -> Chart:
    """Draw one bar per variant, of parts whose means times `scale` are seconds."""
    settings = _chosen(comparison.settings)
    variants = comparison.variants
    names = [row.label for row in comparison.rows]
    of = f", mean over seeds{left_out(comparison.settings, settings)}"
    chart = grid(
        name,
        title,
        f"{caption.format(of=of)} {comparison.caption(intervals=False)}",
        ("setting", "variant", "part", "seconds"),
        shape=(1, len(settings)),
        height_in=1.0 + 0.03 * len(variants) + rows_in(names) * len(variants),
        note=comparison.note(),
        names_in=NAMES_IN,
        sharex=True,
    )
    shown = [row for setting in settings for row in comparison.within(setting)]
    # A legend entry of a part that no bar has, like a late prefetch without prefetching, misleads.
    drawn_keys = {key for _, key, *_ in parts if any(row.mean(key) > 0 for row in shown)}
    longest = 0.0  # of all panels, which share their axis: lengths must compare across settings
    for column, (axes, setting) in enumerate(zip(chart.axes[0], settings, strict=True)):
        rows = comparison.within(setting)
        left = [0.0] * len(rows)
        for label, key, color, hatch in parts:
            values = [scale * row.mean(key) for row in rows]
            lengths = [0.0 if value != value else value for value in values]
            axes.barh(range(len(rows)), lengths, left=left, color=color, hatch=hatch, height=0.72,
                      edgecolor="#444444", linewidth=0.4,
                      label=label if key in drawn_keys else "")  # fmt: skip
            left = [start + value for start, value in zip(left, lengths, strict=True)]
            for row, value in zip(rows, values, strict=True):
                chart.record(setting, row.variant, label, value)
        axes.set_yticks(range(len(rows)), _names(rows) if not column % chart.across else [])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        longest = max(longest, *left)
        axes.tick_params(left=not column % chart.across)
        axes.set_xlabel(axis)
        axes.grid(False, axis="y")
        if setting:
            axes.set_title(drawn(setting, ACROSS // len(settings)))
    axes.set_xlim(0, longest * 1.05 or 1)
    shared_legend(chart, wide=True)
    return chart


def _dots(
    chart: Chart,
    axes: Axes,
    setting: str,
    rows: Sequence[Row],
    metric: Metric,
    looks: dict[str, Style],
) -> None:
    for place, row in enumerate(rows):
        value, look = row.estimate(metric), looks[row.variant]
        interval = (value.low, value.high) if value.half is not None else (None, None)
        chart.record(
            setting, metric.label, metric.unit, row.variant, value.mean, *interval, value.n
        )
        if not value.defined:
            axes.text(0.5, place, "undefined", transform=axes.get_yaxis_transform(), ha="center",
                      va="center", fontsize=7, style="italic", color="#666666")  # fmt: skip
            continue
        axes.errorbar(value.mean, place, xerr=value.half or None, color=look.color,
                      marker=look.marker, markerfacecolor=look.face, capsize=2,
                      elinewidth=1)  # fmt: skip
        if metric is HITS:
            _bound_of_hits(chart, axes, setting, row, place)
    axes.margins(x=0.12)
    # Numbers along an axis without any value would be those of an empty plot.
    if not any(row.estimate(metric).defined for row in rows):
        axes.tick_params(bottom=False, labelbottom=False)


def _bound_of_hits(chart: Chart, axes: Axes, setting: str, row: Row, place: int) -> None:
    """Draw MIN's hits as a tick in the row that they bound."""
    bound = limit(row, HIT_LIMITS[MIN_BOUND])
    if bound == bound:
        axes.plot(bound, place, "|", color="black", markersize=8, markeredgewidth=1.4)
        seeds = row.estimate(HITS).n
        chart.record(setting, MIN_BOUND, "%", row.variant, bound, None, None, seeds)


def _names(rows: Sequence[Row]) -> list[str]:
    return [named(row.label) for row in rows]


def _overlay(
    chart: Chart,
    axes: Axes,
    setting: str,
    name: str,
    rows: Sequence[Row],
    samples: Sequence[dict[str, Any]],
    looks: dict[str, Style],
) -> None:
    latencies = [sample[name] for sample in samples]
    if not any(map(len, latencies)):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", style="italic")
        axes.set_xticks([])
        axes.set_xlabel(LATENCIES[name])
        return
    scale, unit = latency_axis(axes, latencies)
    for row, sample in zip(rows, latencies, strict=True):
        values, shares = cdf(sample)
        look = looks[row.variant]
        start = [values[0] / scale] if len(values) else []
        axes.plot([*start, *values / scale], [*(0 for _ in start), *shares], color=look.color,
                  linestyle=look.line, drawstyle="steps-post")  # fmt: skip
        marks = percentiles(sample) / scale if len(sample) else ()
        axes.plot(marks, [percent / 100 for percent in PERCENTILES[: len(marks)]],
                  color=look.color, linestyle="", marker=look.marker, markerfacecolor=look.face,
                  markersize=4)  # fmt: skip
        # The legend has line and marker together.
        axes.plot([], [], label=named(row.label), color=look.color, linestyle=look.line,
                  marker=look.marker, markerfacecolor=look.face, markersize=4)  # fmt: skip
        for value, share in zip(values.tolist(), shares.tolist(), strict=True):
            chart.record(setting, name, row.variant, value, share)
    for percent in PERCENTILES:
        axes.axhline(percent / 100, color="#BBBBBB", linewidth=0.5, zorder=1)
    axes.set_xlabel(f"{LATENCIES[name]} ({unit})")


def _pooled(row: Row) -> dict[str, Any]:
    """Return the latencies of all seeds of a row together, in ns by name."""
    import numpy as np

    samples = [latencies_ns(run) for run in row.runs]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in LATENCIES}


def _chosen(settings: Sequence[str]) -> list[str]:
    """Return at most three of the settings: the first, the middle one and the last."""
    if len(settings) <= MOST_SETTINGS:
        return list(settings)
    return [settings[0], settings[len(settings) // 2], settings[-1]]
