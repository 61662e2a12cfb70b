"""Paired differences of a comparison as a figure: intervals, and on which side of zero they lie."""

from __future__ import annotations

from typing import Any, Final

from moesim.report.comparison import Comparison, Row
from moesim.report.metrics import UNDEFINED, Metric
from moesim.report.page.charts import EDGE, colors, data, framed, names
from moesim.report.page.parts import Plot
from moesim.report.page.variants import EVERY, choice
from moesim.report.statistics import Estimate
from moesim.report.style import BLACK, BLUE, GREY, ORANGE
from moesim.report.tables import difference_cell, paired_change

__all__ = ["differences"]

MOST_PAIRS: Final = 12_000
"""The most differences that a page holds."""
VERDICTS: Final = {
    "better": (BLUE, "triangle-up"),
    "worse": (ORANGE, "triangle-down"),
    "interval includes zero": (GREY, "circle"),
    "one seed, no interval": (GREY, "square"),
    "seeds without effect, no interval": (GREY, "square"),
    "difference without a better side": (GREY, "stroke"),
    "bound, not a policy": (BLACK, "diamond"),
}


def differences(comparison: Comparison) -> Plot | None:
    """Return paired differences to a variant that the reader chooses, with their intervals."""
    import altair as alt

    if len(comparison.variants) < 2:
        return None
    metrics = [metric for metric in comparison.metrics
               if any(row.estimate(metric).defined for row in comparison.rows)]  # fmt: skip
    titles = {metric: f"{metric.label} ({'points' if metric.is_share else '%'})"
              for metric in metrics}  # fmt: skip
    each = sum(len(comparison.within(s)) for s in comparison.settings) * len(metrics)
    baselines = _baselines(comparison)[: max(1, MOST_PAIRS // max(1, each))]
    rows = [
        (
            setting or EVERY,
            base.variant,
            titles[metric],
            row.label,
            *_change_cells(row, base, metric),
        )
        for setting in comparison.settings
        for base in comparison.within(setting)
        if base.variant in baselines
        for row in comparison.within(setting)
        if row is not base
        for metric in metrics
    ]
    rows = [row for row in rows if row[4] is not None]
    if not rows:
        return None
    labels = [label for label in VERDICTS if any(row[8] == label for row in rows)]
    base = alt.Chart(data()).encode(
        alt.Y("variant:N", title=None, sort=None),
        alt.Color("verdict:N", scale=colors(labels, [VERDICTS[each][0] for each in labels])),
        tooltip=[
            alt.Tooltip("variant:N", title="variant"),
            alt.Tooltip("text:N", title="difference"),
            alt.Tooltip("n:Q", title="pairs of seeds"),
            alt.Tooltip("verdict:N", title="reads as"),
        ],
    )
    title = "{metric}: difference to {baseline}"
    intervals = base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), alt.X2("high:Q"))
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        alt.X("mean:Q", title=title),
        alt.Shape("verdict:N", scale=colors(labels, [VERDICTS[each][1] for each in labels])),
    )
    zero = alt.Chart(data()).mark_rule(strokeDash=[4, 3], color=EDGE).encode(x=alt.datum(0))
    left_out = len(_baselines(comparison)) - len(baselines)
    choices = (
        *choice("baseline", "Baseline", baselines),
        *choice("metric", "Metric", [titles[metric] for metric in metrics]),
        *choice("setting", "Setting", [s or EVERY for s in comparison.settings]),
    )
    return Plot(
        "plot-differences", "Paired differences",
        "Intervals of the difference of each variant to the baseline; zero is the baseline.",
        f"Differences seed by seed, with 95 % t-intervals: {'relative for all but shares. '}"
        "A difference is better or worse only where its interval excludes zero."
        f"{_without_intervals(comparison)}"
        f"{f' {left_out} variants are left out as baselines.' if left_out else ''}",
        framed(alt.layer(zero, intervals, points)),
        ("setting", "baseline", "metric", "variant", "mean", "low", "high", "n", "verdict", "text"),
        rows,
        {"variant": "variant", "text": "difference", "n": "pairs of seeds", "verdict": "reads as"},
        choices, names(labels), ("variant", 26),
    )  # fmt: skip


def _without_intervals(comparison: Comparison) -> str:
    if comparison.has_intervals:
        return ""
    several = "Seeds without effect give no interval."
    return f" {several if comparison.equal_seeds else 'One seed gives no interval.'}"


def _baselines(comparison: Comparison) -> list[str]:
    """Return the variants that a difference may be to: policies first, then bounds."""
    bounds = {row.variant for row in comparison.rows if row.knows_the_future}
    return sorted(comparison.variants, key=lambda variant: variant in bounds)


def _change_cells(row: Row, base: Row, metric: Metric) -> tuple[Any, ...]:
    """Return mean, ends, number of pairs, verdict and text of a difference."""
    change = paired_change(row, base, metric)
    if not change.defined:
        return None, None, None, 0, UNDEFINED, UNDEFINED
    scale = 1 if metric.is_share else 100
    ends = (change.mean * scale, change.low * scale, change.high * scale)
    cell = difference_cell(row, base, metric)
    verdict = cell.mark or _without_better(row, base, change)
    return *ends, change.n, verdict, cell.text


def _without_better(row: Row, base: Row, change: Estimate) -> str:
    """Return why a difference is neither better nor worse."""
    if row.knows_the_future or base.knows_the_future:
        return "bound, not a policy"
    if change.half is None:
        return "one seed, no interval" if change.n == 1 else "seeds without effect, no interval"
    if abs(change.mean) <= change.half:
        return "interval includes zero"
    return "difference without a better side"
