"""The charts against capacity: each variant's numbers over expert slots, with their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, drawn, grid
from moesim.report.comparison import Comparison, Row
from moesim.report.limits import HIT_LIMITS, TIME_LIMITS, limit
from moesim.report.metrics import DECODE, HITS, LATE_HITS, THROUGHPUT, TTFT, Metric
from moesim.report.panels import (
    MOST_SETTINGS,
    OUTPUT_ONLY,
    about_bounds,
    about_intervals,
    left_out,
    line_with_interval,
    named,
    shared_legend,
)
from moesim.report.runs import Run
from moesim.report.style import BOUNDS, Style, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["hit_rate_against_capacity", "metrics_against_capacity"]

MOST_PANELS: Final = 6
TITLE: Final = 44
"""Characters of a line of a panel's title."""
AGAINST_CAPACITY: Final = (DECODE.key, THROUGHPUT.key, TTFT.key, "stall_share")
OWN_BOUNDS: Final = "Where bounds differ between variants, each has its variant's colour."
UNBOUNDED: Final = "No bound holds for runs that prefetch. "
HIT_BOUNDS: Final = (
    "Bounds of variants that prefetch nothing: MIN scores a run's own layer events again with "
    f"hindsight, and an infinite cache misses only first uses. {OWN_BOUNDS}"
)
LATE: Final = f"Faint lines: late hits, which are no part of the hits. {UNBOUNDED}"
TIME_BOUNDS: Final = (
    "Bounds, if all requests arrive at once: the same run with copies that take no time (infinite "
    "link) and, for variants that prefetch nothing and run no expert on the CPU, with a slot for "
    f"every expert, filled at first use (infinite cache). {OWN_BOUNDS}"
)


def hit_rate_against_capacity(comparison: Comparison) -> Chart | None:
    """Draw hits over slots per layer, one line per variant, with MIN and the infinite cache.

    Return None if no variant has two numbers of slots.
    """
    if not _has_lines(comparison):
        return None
    facets = comparison.facets[:MOST_PANELS]
    chart = grid(
        "hit_rate_capacity",
        "Hit rate against capacity",
        f"Hits (late hits left out) against cache size{left_out(comparison.facets, facets)}. "
        f"{_hit_bounds(comparison)}{_shaded(comparison)}{comparison.caption(hits=True)}",
        ("setting", "line", "slots_per_layer", "share_of_experts", "mean", "low", "high", "n"),
        shape=_tiles(len(facets)),
        height_in=3.1 if len(facets) == 1 else 2.5 * _tiles(len(facets))[0],
        note=comparison.note(),
    )
    looks = styles(comparison)
    late = any(row.mean("late_hits") > 0 for row in comparison.rows)
    for axes, facet in zip(_panels(chart, len(facets)), facets, strict=True):
        for place, variant in enumerate(comparison.variants):
            rows = comparison.series(facet, variant)
            _line(chart, axes, facet, rows, looks[variant], HITS, (place, len(looks)))
            if any(row.mean("late_hits") > 0 for row in rows):
                _with_late(chart, axes, facet, rows, variant, looks[variant])
        for label, of in HIT_LIMITS.items():
            _bound(chart, axes, comparison, facet, label, of, looks)
        axes.set_ylabel("share of accesses (%)" if late else "hits (% of accesses)")
        _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet])
        if facet:
            axes.set_title(drawn(facet, TITLE if len(facets) == 1 else TITLE // 2))
    shared_legend(chart)
    return chart


def metrics_against_capacity(comparison: Comparison) -> Chart | None:
    """Draw speeds, TTFT and stalls over slots per layer, two rows of panels a setting.

    Return None if no variant has two numbers of slots.
    """
    if not _has_lines(comparison):
        return None
    facets = comparison.facets[:MOST_SETTINGS]
    metrics = [metric for metric in comparison.headline if metric.key in AGAINST_CAPACITY]
    chart = grid(
        "metrics_capacity",
        "Performance against capacity",
        f"Performance against cache size{left_out(comparison.facets, facets)}. "
        f"{about_bounds(comparison, TIME_BOUNDS)}{OUTPUT_ONLY} "
        f"{_shaded(comparison)}{comparison.caption()}",
        ("setting", "metric", "unit", "line", "slots_per_layer", "share_of_experts", "mean", "low",
         "high", "n"),
        shape=(2 * len(facets), 2),
        height_in=4.0 * len(facets),
        note=comparison.note(),
    )  # fmt: skip
    looks = styles(comparison)
    for place, facet in enumerate(facets):
        panels = [axes for row in chart.axes[2 * place : 2 * place + 2] for axes in row]
        for axes, metric in zip(panels, metrics, strict=True):
            for number, variant in enumerate(comparison.variants):
                rows = comparison.series(facet, variant)
                where = (number, len(looks))
                _line(chart, axes, facet, rows, looks[variant], metric, where, metric.label,
                      metric.unit)  # fmt: skip
            if metric.key == THROUGHPUT.key:
                for label, of in TIME_LIMITS.items():
                    _bound(
                        chart, axes, comparison, facet, label, of, looks, metric.label, metric.unit
                    )
            axes.set_ylabel(metric.unit)
            title = ", ".join(part for part in (metric.label, facet) if part)
            axes.set_title(drawn(title, TITLE // 2))
            _capacity_axis(axes, [row for row in comparison.rows if row.facet == facet], top=False)
            # From zero, so that heights compare as they look.
            if axes.has_data() and not axes.texts:
                axes.set_ylim(0, axes.get_ylim()[1] * 1.04)
    shared_legend(chart)
    return chart


def _has_lines(comparison: Comparison) -> bool:
    """Return whether any line has two points: the size may follow from the variant instead."""
    lines = [comparison.series(f, v) for f in comparison.facets for v in comparison.variants]
    return any(len({round(row.slots_per_layer, 6) for row in rows}) > 1 for rows in lines)


def _line(
    chart: Chart,
    axes: Axes,
    facet: str,
    rows: Sequence[Row],
    look: Style,
    metric: Metric,
    place: tuple[int, int],
    *extra: str,
) -> None:
    """Draw one variant over capacity with its intervals; undefined means leave gaps."""
    if not rows:
        return
    variant = rows[0].variant
    estimates = [row.estimate(metric) for row in rows]
    sizes = [row.slots_per_layer for row in rows]
    line_with_interval(axes, sizes, estimates, look, named(rows[0].label), place)
    for row, e in zip(rows, estimates, strict=True):
        share = row.slots_per_layer / row.mean("num_experts")
        interval = (e.low, e.high) if e.half is not None else (None, None)
        chart.record(facet, *extra, variant, row.slots_per_layer, share, e.mean, *interval, e.n)


def _with_late(
    chart: Chart, axes: Axes, facet: str, rows: Sequence[Row], variant: str, look: Style
) -> None:
    """Draw late hits as a faint line, apart from hits: their sum could seem to beat MIN."""
    sizes = [row.slots_per_layer for row in rows]
    estimates = [row.estimate(LATE_HITS) for row in rows]
    axes.plot(sizes, [e.mean for e in estimates], color=look.color, linewidth=0.8, alpha=0.6,
              linestyle=(0, (1, 1)))  # fmt: skip
    for row, e in zip(rows, estimates, strict=True):
        share = row.slots_per_layer / row.mean("num_experts")
        line = f"{variant}: {LATE_HITS.label}"
        chart.record(facet, line, row.slots_per_layer, share, e.mean, None, None, e.n)


def _hit_bounds(comparison: Comparison) -> str:
    late = LATE if any(row.mean("late_hits") > 0 for row in comparison.rows) else ""
    if any(row.prefetches for row in comparison.rows) and not late:
        late = UNBOUNDED
    return about_bounds(comparison, HIT_BOUNDS) + late


def _bound(
    chart: Chart,
    axes: Axes,
    comparison: Comparison,
    facet: str,
    label: str,
    of: Callable[[Run], float],
    looks: dict[str, Style],
    *extra: str,
) -> None:
    """Draw a bound as one line if all variants share it, else each variant's in its colour."""
    # A bound belongs to a run: it depends on the run's steps, which policies change.
    by_variant = {
        variant: _points(comparison.series(facet, variant), of) for variant in comparison.variants
    }
    lines = {variant: points for variant, points in by_variant.items() if points}
    common = _common(list(lines.values()))
    experts = next(row for row in comparison.rows if row.facet == facet).mean("num_experts")
    for variant, points in {"": common}.items() if common else lines.items():
        name, look = label, BOUNDS[label]
        if variant:
            # One entry for all variants: an entry for each would double the legend.
            axes.plot([], [], label=label, **look)
            name, look = f"{label} of {variant}", {**look, "color": looks[variant].color}
        # Matplotlib leaves labels with a leading underscore out of the legend.
        axes.plot(*zip(*sorted(points.items()), strict=True), label=f"_{name}" if variant else name,
                  zorder=1.9, **look)  # fmt: skip
        for size, value in sorted(points.items()):
            chart.record(facet, *extra, name, size, size / experts, value, None, None, None)


def _points(rows: Sequence[Row], of: Callable[[Run], float]) -> dict[float, float]:
    """Return a bound by slots per layer, only where it holds."""
    # Rounded, so that sizes of two variants that differ in the last bit are one.
    points: dict[float, float] = {}
    for row in rows:
        size, value = round(row.slots_per_layer, 6), limit(row, of)
        # Of two rows of one size, the larger bound holds for both.
        if not math.isnan(value):
            points[size] = max(value, points.get(size, value))
    return points


def _common(lines: Sequence[dict[float, float]]) -> dict[float, float]:
    """Return the line that all of them lie on; empty where two differ at any size."""
    common: dict[float, float] = {}
    for points in lines:
        for size, value in points.items():
            if not math.isclose(common.setdefault(size, value), value, rel_tol=1e-9):
                return {}
    return common


def _capacity_axis(axes: Axes, rows: Sequence[Row], *, top: bool = True) -> None:
    """Label the bottom axis in slots and, with `top`, the upper one in shares of all experts."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    experts = rows[0].mean("num_experts") if rows else float("nan")
    axes.set_xlabel(f"expert slots a layer (of {experts:g})" if rows else "expert slots a layer")
    # Steps of 2, 4 and 8 divide the usual numbers of experts.
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
    return about_intervals(len(comparison.variants)) if comparison.has_intervals else ""


def _tiles(count: int) -> tuple[int, int]:
    return (1, 1) if count == 1 else ((count + 1) // 2, 2)


def _panels(chart: Chart, count: int) -> list[Axes]:
    panels = chart.panels
    for unused in panels[count:]:
        unused.set_visible(False)
    return panels[:count]
