"""The charts of several runs: policies against capacity, side by side, and their latencies."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, grid, save_charts
from moesim.report.comparison import Comparison, Row
from moesim.report.distribution import LATENCIES, cdf, latency_axis
from moesim.report.metrics import HIT_RATE, STALL_CAUSES, Metric
from moesim.report.runs import latencies_ns
from moesim.report.statistics import estimate
from moesim.report.style import BOUNDS, STALLS, Style, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plots_for_comparison"]

MOST_PANELS: Final = 6
MOST_SETTINGS: Final = 3
HIT_BOUNDS: Final = (
    "Dashed and dotted lines are bounds: MIN re-scores each run's own layer events offline without "
    "prefetching (mean over the runs at a capacity), an infinite cache misses first uses only."
)
TIME_BOUNDS: Final = (
    "Bounds: the same workload with a cache that holds every expert, and with a link that takes no "
    "time."
)
TICKS: Final = "Black ticks in the hit-rate panel are the MIN bound (misses, no prefetching)."
NO_BOUNDS: Final = "These runs computed no bounds."
OUTPUT_ONLY: Final = "Throughput counts output tokens."
MIN_BOUND, INFINITE_CACHE, INFINITE_LINK = BOUNDS
SIDE_BY_SIDE: Final = ("output_tokens_per_s", "ttft_p95_ms", "tpot_mean_ms", "expert_hit_rate")
AGAINST_CAPACITY: Final = ("output_tokens_per_s", "ttft_p95_ms", "tpot_mean_ms", "stall_share")


def plots_for_comparison(comparison: Comparison, folder: Path) -> list[Chart]:
    """Draw every chart that the runs allow into `folder`, which is replaced; returns those drawn.

    Charts against capacity need at least two sizes of the cache.

    Raises:
        OutputError: the folder cannot be written.
    """
    charts = (
        hit_rate_against_capacity,
        metrics_against_capacity,
        side_by_side,
        latency_cdfs,
        stalls_side_by_side,
    )
    return save_charts(folder, [partial(chart, comparison) for chart in charts])


def hit_rate_against_capacity(comparison: Comparison) -> Chart | None:
    """One line a policy over the slots of a layer; MIN and the infinite cache as bounds."""
    if comparison.num_capacities < 2:
        return None
    facets = comparison.facets[:MOST_PANELS]
    chart = grid(
        "hit_rate_capacity",
        "Hit rate against capacity",
        f"Hit rate against the size of the cache{_left_out(comparison.facets, facets)}. "
        f"{HIT_BOUNDS if _bounded(comparison) else NO_BOUNDS} {_shaded(comparison)}"
        f"{comparison.caption(hit_rate=True)}",
        ("setting", "line", "slots_per_layer", "share_of_experts", "mean", "low", "high", "n"),
        shape=_tiles(len(facets)),
        height_in=3.1 if len(facets) == 1 else 2.5 * _tiles(len(facets))[0],
    )
    looks = styles(comparison)
    for axes, facet in zip(_panels(chart, len(facets)), facets, strict=True):
        for variant in comparison.variants:
            rows = comparison.series(facet, variant)
            _line(chart, axes, facet, rows, variant, looks[variant], HIT_RATE)
        for label, key in (
            (MIN_BOUND, "min_hit_rate"),
            (INFINITE_CACHE, "infinite_cache_hit_rate"),
        ):
            _bound(chart, axes, comparison, facet, label, key)
        axes.set_ylabel("expert hit rate (%)")
        _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet])
        if facet:
            axes.set_title(facet)
    _shared_legend(chart)
    return chart


def metrics_against_capacity(comparison: Comparison) -> Chart | None:
    """Throughput, TTFT, TPOT and stalls over the slots of a layer, one row a setting."""
    if comparison.num_capacities < 2:
        return None
    facets = comparison.facets[:MOST_SETTINGS]
    metrics = [metric for metric in comparison.headline if metric.key in AGAINST_CAPACITY]
    chart = grid(
        "metrics_capacity",
        "Performance against capacity",
        f"Performance against the size of the cache{_left_out(comparison.facets, facets)}. "
        f"{TIME_BOUNDS if _bounded(comparison) else NO_BOUNDS} {OUTPUT_ONLY} "
        f"{_shaded(comparison)}{comparison.caption()}",
        ("setting", "metric", "unit", "line", "slots_per_layer", "share_of_experts", "mean", "low",
         "high", "n"),
        shape=(2 * len(facets), 2),
        height_in=4.0 * len(facets),
    )  # fmt: skip
    looks = styles(comparison)
    for place, facet in enumerate(facets):
        panels = [axes for row in chart.axes[2 * place : 2 * place + 2] for axes in row]
        for axes, metric in zip(panels, metrics, strict=True):
            for variant in comparison.variants:
                rows = comparison.series(facet, variant)
                _line(
                    chart,
                    axes,
                    facet,
                    rows,
                    variant,
                    looks[variant],
                    metric,
                    metric.label,
                    metric.unit,
                )
            if metric.key == "output_tokens_per_s":
                for label in (INFINITE_CACHE, INFINITE_LINK):
                    _throughput_bound(chart, axes, comparison, facet, label)
            axes.set_ylabel(metric.title)
            axes.set_title(", ".join(part for part in (metric.label, facet) if part))
            _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet], top=False)
            if axes.has_data() and not axes.texts:
                axes.set_ylim(0, axes.get_ylim()[1] * 1.04)
    _shared_legend(chart)
    return chart


def side_by_side(comparison: Comparison) -> Chart:
    """Throughput, TTFT p95, TPOT and hit rate of each policy, with intervals."""
    from matplotlib.ticker import MaxNLocator

    settings = _chosen(comparison.settings)
    variants = comparison.variants
    metrics = [metric for metric in comparison.headline if metric.key in SIDE_BY_SIDE]
    chart = grid(
        "side_by_side",
        "Policies side by side",
        f"Each variant's mean with its interval{_left_out(comparison.settings, settings)}. "
        f"{TICKS if _bounded(comparison) else NO_BOUNDS} {OUTPUT_ONLY} "
        f"{comparison.caption(hit_rate=True)}",
        ("setting", "metric", "unit", "variant", "mean", "low", "high", "n"),
        shape=(len(settings), len(metrics)),
        height_in=0.3 + len(settings) * (0.55 + 0.19 * len(variants)),
        sharey="row",
    )
    looks = styles(comparison)
    for panels, setting in zip(chart.axes, settings, strict=True):
        rows = comparison.within(setting)
        for axes, metric in zip(panels, metrics, strict=True):
            _dots(chart, axes, setting, rows, metric, looks)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.tick_params(left=axes is panels[0])
            if setting == settings[-1]:
                axes.set_xlabel(metric.title)
        panels[0].set_yticks(range(len(rows)), [row.variant for row in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        if setting:
            panels[0].set_title(setting)
    return chart


def latency_cdfs(comparison: Comparison) -> Chart:
    """The latency distributions of all variants over one another, seeds pooled."""
    settings = _chosen(comparison.settings)
    names = ("ttft", "tpot", "e2e")
    chart = grid(
        "latency_cdf",
        "Latency distributions",
        f"Latency distributions{_left_out(comparison.settings, settings)}, the requests of all "
        f"seeds pooled. {comparison.caption()}",
        ("setting", "latency", "variant", "value_ns", "share"),
        shape=(len(settings), len(names)),
        height_in=0.4 + 1.85 * len(settings),
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
            panels[0].set_title(setting)
    _shared_legend(chart, wide=True)
    return chart


def stalls_side_by_side(comparison: Comparison) -> Chart:
    """Seconds of GPU time by what the lane did or waited for, one bar a variant."""
    settings = _chosen(comparison.settings)
    variants = comparison.variants
    chart = grid(
        "stall_breakdown",
        "Stalls by cause",
        f"Time of the GPU lane, mean over seeds{_left_out(comparison.settings, settings)}; idle is "
        f"time without any request. {comparison.caption()}",
        ("setting", "variant", "part", "seconds"),
        shape=(1, len(settings)),
        height_in=1.0 + 0.22 * len(variants),
        sharex=True,
    )
    parts = [("compute", "busy_s", "#0072B2", "")]
    parts += [(STALL_CAUSES[c], f"stall_{c}_s", *STALLS[c]) for c in STALL_CAUSES]
    parts += [("idle", "idle_s", "#FFFFFF", "")]
    longest = 0.0
    for column, (axes, setting) in enumerate(zip(chart.axes[0], settings, strict=True)):
        rows = comparison.within(setting)
        left = [0.0] * len(rows)
        for label, key, color, hatch in parts:
            values = [row.mean(key) for row in rows]
            drawn = [0.0 if value != value else value for value in values]
            axes.barh(range(len(rows)), drawn, left=left, color=color, hatch=hatch, height=0.72,
                      edgecolor="#444444", linewidth=0.4, label=label)  # fmt: skip
            left = [start + value for start, value in zip(left, drawn, strict=True)]
            for row, value in zip(rows, values, strict=True):
                chart.record(setting, row.variant, label, value)
        axes.set_yticks(range(len(rows)), [row.variant for row in rows] if not column else [])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        longest = max(longest, *left)
        axes.tick_params(left=not column)
        axes.set_xlabel("time (s)")
        axes.grid(False, axis="y")
        axes.set_title("\n".join(textwrap.wrap(setting, 76 // len(settings))))
    axes.set_xlim(0, longest * 1.05 or 1)
    _shared_legend(chart, wide=True)
    return chart


def _line(
    chart: Chart,
    axes: Axes,
    facet: str,
    rows: Sequence[Row],
    variant: str,
    look: Style,
    metric: Metric,
    *extra: str,
) -> None:
    """One variant over capacity, with the band of its interval; gaps where undefined."""
    import numpy as np

    if not rows:
        return
    size = np.array([row.slots_per_layer for row in rows])
    made = [row.estimate(metric) for row in rows]
    mean = np.array([one.mean for one in made])
    axes.plot(size, mean, color=look.color, linestyle=look.line, marker=look.marker,
              markerfacecolor=look.face, label=variant)  # fmt: skip
    low, high = np.array([one.low for one in made]), np.array([one.high for one in made])
    if (high > low).any():
        axes.fill_between(size, low, high, color=look.color, alpha=0.18, linewidth=0)
    for row, one in zip(rows, made, strict=True):
        share = row.slots_per_layer / row.mean("num_experts")
        interval = (one.low, one.high) if one.half is not None else (None, None)
        chart.record(facet, *extra, variant, row.slots_per_layer, share, one.mean, *interval, one.n)


def _bound(
    chart: Chart, axes: Axes, comparison: Comparison, facet: str, label: str, key: str
) -> None:
    """A bound on the hit rate: its mean over all runs of a capacity."""
    points = []
    for size, rows in _by_size(comparison, facet):
        one = estimate(row.mean(key) * HIT_RATE.scale for row in rows)
        if one.defined:
            points.append((size, one.mean))
            share = size / rows[0].mean("num_experts")
            chart.record(facet, label, size, share, one.mean, None, None, one.n)
    _dashed(axes, label, points)


def _throughput_bound(
    chart: Chart, axes: Axes, comparison: Comparison, facet: str, label: str
) -> None:
    """Output tokens over the makespan of an idealised run, at each capacity."""
    key = f"{label.replace(' ', '_')}_makespan_s"
    points = []
    for size, rows in _by_size(comparison, facet):
        runs = [run for row in rows for run in row.runs]
        one = estimate(
            run.value("output_tokens") / run.value(key) if run.value(key) else float("nan")
            for run in runs
        )
        if not one.defined:
            continue
        points.append((size, one.mean))
        share = size / rows[0].mean("num_experts")
        chart.record(
            facet, "throughput", "tokens/s", label, size, share, one.mean, None, None, one.n
        )
    _dashed(axes, label, points)


def _dashed(axes: Axes, label: str, points: Sequence[tuple[float, float]]) -> None:
    """A bound as a line; nothing where the runs computed no bounds."""
    if points:
        axes.plot(*zip(*points, strict=True), label=label, zorder=1.9, **BOUNDS[label])


def _by_size(comparison: Comparison, facet: str) -> list[tuple[float, list[Row]]]:
    sizes: dict[float, list[Row]] = {}
    for row in comparison.rows:
        if row.facet == facet:
            sizes.setdefault(round(row.slots_per_layer, 6), []).append(row)
    return sorted(sizes.items())


def _capacity_axis(axes: Axes, rows: Sequence[Row], *, top: bool = True) -> None:
    """Slots along the bottom and, with `top`, the share of all experts that they are above."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    experts = rows[0].mean("num_experts") if rows else float("nan")
    axes.set_xlabel(f"expert slots a layer (of {experts:g})" if rows else "expert slots a layer")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    if top and experts > 0:

        def share(slots: Any) -> Any:
            return slots / experts * 100

        def slots(share: Any) -> Any:
            return share * experts / 100

        above = axes.secondary_xaxis("top", functions=(share, slots))
        above.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        above.set_xlabel("share of all experts", fontsize=7, color="#444444")
        above.tick_params(labelsize=7, labelcolor="#444444")


def _dots(
    chart: Chart,
    axes: Axes,
    setting: str,
    rows: Sequence[Row],
    metric: Metric,
    looks: dict[str, Style],
) -> None:
    for place, row in enumerate(rows):
        one, look = row.estimate(metric), looks[row.variant]
        interval = (one.low, one.high) if one.half is not None else (None, None)
        chart.record(setting, metric.label, metric.unit, row.variant, one.mean, *interval, one.n)
        if not one.defined:
            axes.text(0.5, place, "undefined", transform=axes.get_yaxis_transform(), ha="center",
                      va="center", fontsize=7, style="italic", color="#666666")  # fmt: skip
            continue
        axes.errorbar(one.mean, place, xerr=one.half or None, color=look.color, marker=look.marker,
                      markerfacecolor=look.face, capsize=2, elinewidth=1)  # fmt: skip
        bound = row.mean("min_hit_rate") * HIT_RATE.scale
        if metric is HIT_RATE and bound == bound:
            axes.plot(bound, place, "|", color="black", markersize=8, markeredgewidth=1.4)
            chart.record(setting, MIN_BOUND, "%", row.variant, bound, None, None, one.n)
    axes.margins(x=0.12)
    if not any(row.estimate(metric).defined for row in rows):
        axes.tick_params(bottom=False, labelbottom=False)


def _overlay(
    chart: Chart,
    axes: Axes,
    setting: str,
    name: str,
    rows: Sequence[Row],
    samples: Sequence[dict[str, Any]],
    looks: dict[str, Style],
) -> None:
    chosen = [sample[name] for sample in samples]
    if not any(map(len, chosen)):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", style="italic")
        axes.set_xticks([])
        axes.set_xlabel(LATENCIES[name])
        return
    scale, unit = latency_axis(axes, chosen)
    for row, sample in zip(rows, chosen, strict=True):
        values, shares = cdf(sample)
        look = looks[row.variant]
        start = [values[0] / scale] if len(values) else []
        axes.plot([*start, *values / scale], [*(0 for _ in start), *shares], label=row.variant,
                  color=look.color, linestyle=look.line, drawstyle="steps-post",
                  marker=look.marker, markerfacecolor=look.face, markersize=3.5,
                  markevery=(0.08, 0.23))  # fmt: skip
        for value, share in zip(values.tolist(), shares.tolist(), strict=True):
            chart.record(setting, name, row.variant, value, share)
    axes.set_xlabel(f"{LATENCIES[name]} ({unit})")


def _pooled(row: Row) -> dict[str, Any]:
    """Latency samples of all seeds of a row together."""
    import numpy as np

    samples = [latencies_ns(run) for run in row.runs]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in LATENCIES}


def _chosen(settings: Sequence[str]) -> list[str]:
    """At most three of the settings: the first, the middle one and the last."""
    if len(settings) <= MOST_SETTINGS:
        return list(settings)
    return [settings[0], settings[len(settings) // 2], settings[-1]]


def _bounded(comparison: Comparison) -> bool:
    """Whether any run computed its bounds."""
    keys = ("min_hit_rate", "infinite_cache_hit_rate", "infinite_cache_makespan_s")
    return any(run.value(key) == run.value(key) for run in comparison.runs for key in keys)


def _shaded(comparison: Comparison) -> str:
    return "Shaded: intervals. " if comparison.has_intervals else ""


def _left_out(every: Sequence[str], shown: Sequence[str]) -> str:
    return "" if len(every) == len(shown) else f" ({len(shown)} of {len(every)} settings drawn)"


def _tiles(count: int) -> tuple[int, int]:
    return (1, 1) if count == 1 else ((count + 1) // 2, 2)


def _panels(chart: Chart, count: int) -> list[Axes]:
    panels = [axes for row in chart.axes for axes in row]
    for spare in panels[count:]:
        spare.set_visible(False)
    return panels[:count]


def _shared_legend(chart: Chart, *, wide: bool = False) -> None:
    """One legend for all panels, outside of them: beside, or above for wide charts."""
    entries: dict[str, Any] = {}
    for row in chart.axes:
        for axes in row:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
    where = {"loc": "outside upper center", "ncols": 6} if wide else {"loc": "outside right upper"}
    if entries:
        chart.figure.legend(entries.values(), entries.keys(), **where)
