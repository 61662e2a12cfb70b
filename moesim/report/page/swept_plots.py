"""Each metric of a comparison against a swept number, and where the time of the GPU went."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from moesim.report.comparison import Comparison, Row
from moesim.report.lane_names import causes_of
from moesim.report.page.charts import EDGE, colors, data, framed, gpu_parts, names
from moesim.report.page.parts import Plot
from moesim.report.page.variants import MOST_COLORS, choice, setting_name, variant_colors
from moesim.report.swept import line_label, lines_of, swept_number

__all__ = ["lines", "stalls"]


def lines(comparison: Comparison) -> Plot | None:
    """Return each metric against expert slots, or against a number of the sweep."""
    import altair as alt

    found = _by_number(comparison)
    if found is None:
        return None
    title, series = found
    apart = _apart(series)
    rows = [
        (metric.title, facet, line, number_, value.mean, value.low, value.high, metric.text(value),
         number_ + apart[line])
        for metric in comparison.headline
        for facet, line, points in series
        for number_, row in points
        for value in [row.estimate(metric)]
        if value.defined
    ]  # fmt: skip
    labels = list(dict.fromkeys(row[2] for row in rows))
    if not rows or len(labels) > MOST_COLORS:
        return None
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    base = alt.Chart(data()).encode(
        alt.X("at:Q", title=title, axis=alt.Axis(tickMinStep=1, format="~g")),
        alt.Color("line:N", scale=colors(labels, variant_colors(labels))),
    )
    curve = base.mark_line(strokeWidth=2).encode(alt.Y("mean:Q", title="{metric}"))
    spread = base.mark_rule(strokeWidth=1.5).encode(
        alt.Y("low:Q", title="{metric}"), alt.Y2("high:Q")
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.Y("mean:Q", title="{metric}"),
        alt.Shape("line:N", scale=colors(labels, [shapes[i % 6] for i in range(len(labels))])),
        tooltip=[
            alt.Tooltip("line:N", title="variant"),
            alt.Tooltip("number:Q", title=title, format=",.4~r"),
            alt.Tooltip("text:N", title="{metric}"),
        ],
    )
    bars = " Bars are 95 % t-intervals over the seeds." if comparison.has_intervals else ""
    if len(apart) > 1:
        bars += " Lines are shifted sideways so that they can be told apart."
    facets = list(dict.fromkeys(facet for _, facet, *_ in rows))
    return Plot(
        "plot-lines", f"Performance against {title}",
        f"Lines: a metric of each variant against {title}.",
        f"Means over the seeds.{bars} A line ends where the metric is undefined.",
        framed(alt.layer(curve, spread, points), 320),
        ("metric", "facet", "line", "number", "mean", "low", "high", "text", "at"), rows,
        {"line": "variant", "number": title, "text": "value"},
        (*choice("metric", "Metric", list(dict.fromkeys(row[0] for row in rows))),
         *choice("facet", "Setting", facets)),
        names(labels),
    )  # fmt: skip


Series = list[tuple[str, str, list[tuple[float, Row]]]]
_APART: Final = 0.006
"""By which share of the axis neighbouring lines are shifted, so that no bar covers another."""
_OF_GAP: Final = 0.5
"""The share of the least distance of two numbers that all lines together may take."""


def _apart(series: Series) -> dict[str, float]:
    """Return by how much each line is shifted along the axis, around 0."""
    labels = list(dict.fromkeys(line for _, line, _ in series))
    numbers = sorted({number for *_, points in series for number, _ in points})
    gap = min((after - before for before, after in pairwise(numbers)), default=0.0)
    step = min(_APART * (numbers[-1] - numbers[0]), _OF_GAP * gap / len(labels))
    middle = (len(labels) - 1) / 2
    return {label: (place - middle) * step for place, label in enumerate(labels)}


def _by_number(comparison: Comparison) -> tuple[str, Series] | None:
    """Return the label of an axis, and the lines along it; None where no number is swept."""
    sizes = {round(row.slots_per_layer, 6) for row in comparison.rows}
    if len(sizes) > 1 and any(row.capacity for row in comparison.rows):
        label = {row.variant: row.label for row in comparison.rows}
        series = [
            (setting_name(facet), label[variant], [(r.slots_per_layer, r) for r in rows])
            for facet in comparison.facets
            for variant in comparison.variants
            for rows in [comparison.series(facet, variant)]
            if rows
        ]
        return "expert slots a layer", series
    swept = swept_number(comparison)
    if swept is None:
        return None
    found = lines_of(comparison, swept)
    return swept.label, [(setting_name(facet), line_label(line or "all runs", points), points)
                         for (facet, line), points in found.items()]  # fmt: skip


def stalls(comparison: Comparison) -> Plot | None:
    """Return the GPU's time of each variant by what it did or waited for."""
    import altair as alt

    parts = gpu_parts(causes_of(comparison.runs))
    rows = [
        (setting_name(setting), row.label, label, row.mean(key), place)
        for setting in comparison.settings
        for row in comparison.within(setting)
        for place, (label, key, _) in enumerate(parts)
    ]
    rows = [row for row in rows if row[3] == row[3]]
    shown = [part for part in parts if any(row[2] == part[0] and row[3] for row in rows)]
    labels = [label for label, *_ in shown]
    rows = [row for row in rows if row[2] in labels]
    if not rows:
        return None
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("seconds:Q", title="time of the GPU (s)"),
            alt.Y("variant:N", title=None, sort=None),
            alt.Color("part:N", scale=colors(labels, [look for *_, look in shown])),
            alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("variant:N", title="variant"),
                alt.Tooltip("part:N", title="what"),
                alt.Tooltip("seconds:Q", title="seconds", format=",.4~r"),
            ],
        )
    )
    return Plot(
        "plot-stalls", "Where the GPU's time went",
        "Stacked bars: computing, stalls by cause and idle time of each variant.",
        "Means over the seeds. A stall is named by what the GPU waits for.",
        framed(chart), ("setting", "variant", "part", "seconds", "order"), rows,
        {"variant": "variant", "part": "what", "seconds": "seconds"},
        choice("setting", "Setting", [setting_name(each) for each in comparison.settings]),
        names(labels), ("variant", 26),
    )  # fmt: skip
