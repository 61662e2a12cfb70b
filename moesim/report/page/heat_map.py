"""Variants against sizes of the cache, or against settings, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.report.comparison import Comparison, Row
from moesim.report.metrics import Metric, number
from moesim.report.page.charts import EDGE, data, framed
from moesim.report.page.parts import Plot
from moesim.report.page.variants import choice, defined_metrics, setting_name

__all__ = ["heat_map"]


def heat_map(comparison: Comparison) -> Plot | None:
    """Return variants against capacities, or against settings where only these vary."""
    import altair as alt

    capacities = [row.capacity for row in comparison.rows if row.capacity]
    by_size = len(set(capacities)) > 1
    across = list(dict.fromkeys(
        (row.capacity if by_size else row.setting)
        for setting in comparison.settings for row in comparison.within(setting)))  # fmt: skip
    if len(comparison.variants) < 2 or len(across) < 2:
        return None
    facets = comparison.facets if by_size else [""]
    rows = []
    for metric in defined_metrics(comparison):
        for facet in facets:
            chosen = [row for row in comparison.rows if not by_size or row.facet == facet]
            shades = _shades(chosen, metric)
            for row, shade in zip(chosen, shades, strict=True):
                value = row.estimate(metric)
                where = row.capacity if by_size else row.setting
                texts = metric.text(value), number(value.mean)
                rows.append((metric.title, setting_name(facet), row.label, where, value.mean, shade,
                             *texts, _ink(shade)))  # fmt: skip
    labels = list(dict.fromkeys(row[2] for row in rows))
    base = alt.Chart(data()).encode(
        alt.X("where:N", title=None, sort=across, axis=alt.Axis(labelAngle=-35, labelLimit=220)),
        alt.Y("variant:N", title=None, sort=labels),
        tooltip=[
            alt.Tooltip("variant:N", title="variant"),
            alt.Tooltip("where:N", title="at"),
            alt.Tooltip("text:N", title="value"),
        ],
    )
    # Not in hexadecimal: these colours are the same on a dark page, because texts lie on them.
    blues = alt.Scale(domain=[0, 1], range=["rgb(222,235,247)", "rgb(8,69,148)"])
    cells = base.mark_rect(stroke=EDGE, strokeWidth=0.5).encode(
        alt.Color("shade:Q", scale=blues, legend=None)
    )
    texts = base.mark_text(fontSize=11).encode(
        alt.Text("short:N"),
        color=alt.Color("ink:N", scale=None),
    )
    kind = "expert slots" if by_size else "settings"
    return Plot(
        "plot-heat", f"Variants against {kind}",
        f"Heat map: a metric of each variant, by {kind}.",
        "The darker, the better. Where neither more nor less is always better, the darker, the "
        "more. Cells hold means over seeds; the tooltip and the table have the intervals.",
        framed(alt.layer(cells, texts).resolve_scale(color="independent")),
        ("metric", "facet", "variant", "where", "mean", "shade", "text", "short", "ink"), rows,
        {"variant": "variant", "where": "at", "text": "value"},
        (*choice("metric", "Metric", [metric.title for metric in defined_metrics(comparison)]),
         *choice("facet", "Setting", [setting_name(facet) for facet in facets])),
        rising=("variant", 28),
    )  # fmt: skip


def _ink(shade: float | None) -> str:
    """Return the colour of a text on a cell; grey where the cell has no colour."""
    if shade is None:
        return "gray"
    return "white" if shade > 0.55 else "black"


def _shades(rows: Sequence[Row], metric: Metric) -> list[float | None]:
    """Return how dark each cell is, from 0 to 1; None where the metric is undefined."""
    means = [row.estimate(metric).mean for row in rows]
    defined = [mean for mean in means if mean == mean]
    low, high = min(defined, default=0.0), max(defined, default=0.0)
    span = high - low or 1.0
    shares = [(mean - low) / span if mean == mean else None for mean in means]
    if metric.better == "lower":
        return [None if share is None else 1 - share for share in shares]
    return shares
