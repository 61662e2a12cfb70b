"""The charts against capacity: what each policy makes of more expert slots, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, drawn, grid
from moesim.report.comparison import Comparison, Row
from moesim.report.metrics import HIT_RATE, HITS, Metric
from moesim.report.panels import (
    MOST_SETTINGS,
    NO_BOUNDS,
    OUTPUT_ONLY,
    bounded,
    left_out,
    named,
    shared_legend,
)
from moesim.report.statistics import estimate
from moesim.report.style import BOUNDS, Style, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["hit_rate_against_capacity", "metrics_against_capacity"]

MOST_PANELS: Final = 6
TITLE: Final = 44
"""Characters of a line of a panel's title."""
AGAINST_CAPACITY: Final = ("output_tokens_per_s", "ttft_p95_ms", "tpot_mean_ms", "stall_share")
HIT_BOUNDS: Final = (
    "Dashed and dotted lines are bounds for runs that prefetch nothing, and drawn for those only: "
    "MIN re-scores each run's own layer events offline (mean over the runs at a capacity), an "
    "infinite cache misses first uses only. "
)
LATE: Final = (
    "Faint lines above: hits and late hits together. No bound holds for runs that prefetch. "
)
TIME_BOUNDS: Final = (
    "Bounds: the same workload with a cache that holds every expert, and with a link that takes no "
    "time."
)
MIN_BOUND, INFINITE_CACHE, INFINITE_LINK = BOUNDS


def hit_rate_against_capacity(comparison: Comparison) -> Chart | None:
    """One line a policy over the slots of a layer; MIN and the infinite cache as bounds."""
    if comparison.num_capacities < 2:
        return None
    facets = comparison.facets[:MOST_PANELS]
    chart = grid(
        "hit_rate_capacity",
        "Hit rate against capacity",
        f"Hits in time against the size of the cache{left_out(comparison.facets, facets)}. "
        f"{_hit_bounds(comparison)}{_shaded(comparison)}{comparison.caption(hits=True)}",
        ("setting", "line", "slots_per_layer", "share_of_experts", "mean", "low", "high", "n"),
        shape=_tiles(len(facets)),
        height_in=3.1 if len(facets) == 1 else 2.5 * _tiles(len(facets))[0],
    )
    looks = styles(comparison)
    for axes, facet in zip(_panels(chart, len(facets)), facets, strict=True):
        for variant in comparison.variants:
            rows = comparison.series(facet, variant)
            _line(chart, axes, facet, rows, comparison.label(variant), looks[variant], HITS)
            if any(row.mean("late_hits") > 0 for row in rows):
                _with_late(chart, axes, facet, rows, variant, looks[variant])
        for label, key in (
            (MIN_BOUND, "min_hit_rate"),
            (INFINITE_CACHE, "infinite_cache_hit_rate"),
        ):
            _bound(chart, axes, comparison, facet, label, key)
        axes.set_ylabel("hits (% of accesses)")
        _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet])
        if facet:
            axes.set_title(drawn(facet, TITLE if len(facets) == 1 else TITLE // 2))
    shared_legend(chart)
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
        f"Performance against the size of the cache{left_out(comparison.facets, facets)}. "
        f"{TIME_BOUNDS if bounded(comparison) else NO_BOUNDS} {OUTPUT_ONLY} "
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
                    comparison.label(variant),
                    looks[variant],
                    metric,
                    metric.label,
                    metric.unit,
                )
            if metric.key == "output_tokens_per_s":
                for label in (INFINITE_CACHE, INFINITE_LINK):
                    _throughput_bound(chart, axes, comparison, facet, label)
            axes.set_ylabel(metric.title)
            title = ", ".join(part for part in (metric.label, facet) if part)
            axes.set_title(drawn(title, TITLE // 2))
            _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet], top=False)
            if axes.has_data() and not axes.texts:
                axes.set_ylim(0, axes.get_ylim()[1] * 1.04)
    shared_legend(chart)
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
    """One variant over capacity, with the band of its interval; gaps where undefined. `variant` is
    its label."""
    import numpy as np

    if not rows:
        return
    size = np.array([row.slots_per_layer for row in rows])
    made = [row.estimate(metric) for row in rows]
    mean = np.array([one.mean for one in made])
    axes.plot(size, mean, color=look.color, linestyle=look.line, marker=look.marker,
              markerfacecolor=look.face, label=named(variant))  # fmt: skip
    low, high = np.array([one.low for one in made]), np.array([one.high for one in made])
    if (high > low).any():
        axes.fill_between(size, low, high, color=look.color, alpha=0.18, linewidth=0)
    for row, one in zip(rows, made, strict=True):
        share = row.slots_per_layer / row.mean("num_experts")
        interval = (one.low, one.high) if one.half is not None else (None, None)
        chart.record(facet, *extra, variant, row.slots_per_layer, share, one.mean, *interval, one.n)


def _with_late(
    chart: Chart, axes: Axes, facet: str, rows: Sequence[Row], variant: str, look: Style
) -> None:
    """Hits and late hits together, faintly: how much of a prefetching variant comes late."""
    sizes = [row.slots_per_layer for row in rows]
    made = [row.estimate(HIT_RATE) for row in rows]
    axes.plot(sizes, [one.mean for one in made], color=look.color, linewidth=0.8, alpha=0.6,
              linestyle=(0, (1, 1)))  # fmt: skip
    for row, one in zip(rows, made, strict=True):
        share = row.slots_per_layer / row.mean("num_experts")
        line = f"{variant}: {HIT_RATE.label}"
        chart.record(facet, line, row.slots_per_layer, share, one.mean, None, None, one.n)


def _hit_bounds(comparison: Comparison) -> str:
    late = LATE if any(row.mean("late_hits") > 0 for row in comparison.rows) else ""
    if any(row.prefetches for row in comparison.rows) and not late:
        late = "No bound holds for runs that prefetch. "
    return (HIT_BOUNDS if bounded(comparison) else f"{NO_BOUNDS} ") + late


def _bound(
    chart: Chart, axes: Axes, comparison: Comparison, facet: str, label: str, key: str
) -> None:
    """A bound on the hit rate: its mean over all runs of a capacity."""
    points = []
    for size, rows in _by_size(comparison, facet):
        one = estimate(row.hit_bound(key) * HITS.scale for row in rows)
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


def _shaded(comparison: Comparison) -> str:
    return "Shaded: intervals. " if comparison.has_intervals else ""


def _tiles(count: int) -> tuple[int, int]:
    return (1, 1) if count == 1 else ((count + 1) // 2, 2)


def _panels(chart: Chart, count: int) -> list[Axes]:
    panels = [axes for row in chart.axes for axes in row]
    for spare in panels[count:]:
        spare.set_visible(False)
    return panels[:count]
