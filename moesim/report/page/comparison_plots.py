"""The plots of a comparison's page: differences, a heat map, fronts, lines and stalls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from moesim.report.comparison import CAPACITY_KEYS, LOAD_KEYS, Comparison, Row
from moesim.report.lane_names import causes_of
from moesim.report.marks import FORESEES
from moesim.report.metrics import UNDEFINED, Metric, number
from moesim.report.page.charts import EDGE, colors, data, framed, names, stall_colors
from moesim.report.page.parts import Choice, Plot
from moesim.report.statistics import Estimate
from moesim.report.style import styles_of
from moesim.report.swept import lines_of, swept_number
from moesim.report.tables import paired_change

__all__ = ["differences", "fronts", "heat_map", "lines", "stalls"]

MOST_COLORS: Final = 12
"""With more variants, colours tell nothing apart; points then have one colour and a tooltip."""
MOST_PAIRS: Final = 12_000
"""The most differences that a page holds."""
EVERY: Final = "all settings"
BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#000000"
VERDICTS: Final = {
    "better": (BLUE, "triangle-up"),
    "worse": (ORANGE, "triangle-down"),
    "interval includes zero": (GREY, "circle"),
    "one seed, no interval": (GREY, "square"),
    "difference without a better side": (GREY, "stroke"),
    "bound, not a policy": (INK, "diamond"),
}


def _short(setting: str) -> str:
    return setting or EVERY


def _defined(comparison: Comparison) -> list[Metric]:
    """Return the headline metrics that any row defines; older runs lack some."""
    rows = comparison.rows
    return [metric for metric in comparison.headline
            if any(row.estimate(metric).defined for row in rows)]  # fmt: skip


def _choice(field: str, label: str, options: Sequence[str]) -> tuple[Choice, ...]:
    return (Choice(field, label, tuple(options)),)


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
        *_choice("baseline", "Baseline", baselines),
        *_choice("metric", "Metric", [titles[metric] for metric in metrics]),
        *_choice("setting", "Setting", [s or EVERY for s in comparison.settings]),
    )
    return Plot(
        "plot-differences", "Paired differences",
        "Intervals of the difference of each variant to the baseline; zero is the baseline.",
        f"Differences seed by seed, with 95 % t-intervals: {'relative for all but shares. '}"
        "A difference is better or worse only where its interval excludes zero."
        f"{' One seed gives no interval.' if not comparison.has_intervals else ''}"
        f"{f' {left_out} variants are left out as baselines.' if left_out else ''}",
        framed(alt.layer(zero, intervals, points)),
        ("setting", "baseline", "metric", "variant", "mean", "low", "high", "n", "verdict", "text"),
        rows,
        {"variant": "variant", "text": "difference", "n": "pairs of seeds", "verdict": "reads as"},
        choices, names(labels), ("variant", 26),
    )  # fmt: skip


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
    half = "" if change.half is None else f" ± {change.half * scale:.1f}"
    text = "same" if change.mean == 0 and not change.half else f"{change.mean * scale:+.1f}{half}"
    ends = (change.mean * scale, change.low * scale, change.high * scale)
    return *ends, change.n, _verdict(row, base, metric, change), text


def _verdict(row: Row, base: Row, metric: Metric, change: Estimate) -> str:
    if row.knows_the_future or base.knows_the_future:
        return "bound, not a policy"
    if change.half is None:
        return "one seed, no interval"
    if abs(change.mean) <= change.half:
        return "interval includes zero"
    if metric.better is None:
        return "difference without a better side"
    return "better" if (change.mean > 0) == (metric.better == "higher") else "worse"


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
    for metric in _defined(comparison):
        for facet in facets:
            chosen = [row for row in comparison.rows if not by_size or row.facet == facet]
            shades = _shades(chosen, metric)
            for row, shade in zip(chosen, shades, strict=True):
                value = row.estimate(metric)
                where = row.capacity if by_size else row.setting
                texts = metric.text(value), number(value.mean)
                rows.append((metric.title, _short(facet), row.label, where, value.mean, shade,
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
        (*_choice("metric", "Metric", [metric.title for metric in _defined(comparison)]),
         *_choice("facet", "Setting", [_short(facet) for facet in facets])),
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


def fronts(comparison: Comparison) -> Plot | None:
    """Return throughput against a latency or the cache, with the points that none beats in both."""
    import altair as alt

    rate = next(m for m in comparison.headline if m.key == "output_tokens_per_s")
    sizes = [row.slots_per_layer for row in comparison.rows]
    several = len({round(size, 6) for size in sizes if size == size}) > 1
    across = {"expert slots a layer": sizes} if several else {}
    across |= {
        m.title: [row.estimate(m).mean for row in comparison.rows]
        for key in ("tpot_mean_ms", "ttft_p95_ms", "e2e_p95_ms")
        for m in comparison.headline
        if m.key == key
    }
    rates = [row.estimate(rate).mean for row in comparison.rows]
    rows = [
        (title, where, row.label, row.setting, x, y, state)
        for title, values in across.items()
        for where, places in _groups(comparison).items()
        for (row, x, y, state) in _front(comparison, places, values, rates)
    ]
    if len(rows) < 2:
        return None
    shown = {row[2] for row in rows}
    variants = [label for label in dict.fromkeys(row.label for row in comparison.rows)
                if label in shown]  # fmt: skip
    base = alt.Chart(data()).encode(
        alt.X("x:Q", title="{across}: less is better", scale=alt.Scale(zero=False)),
        alt.Y("y:Q", title=f"{rate.title}: more is better", scale=alt.Scale(zero=False)),
    )
    color = _by_variant(variants)
    states = list(STATES)
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        color,
        alt.Shape("state:N", scale=colors(states, list(STATES.values())),
                  legend=alt.Legend(orient="bottom")),
        tooltip=[
            alt.Tooltip("variant:N", title="variant"),
            alt.Tooltip("setting:N", title="setting"),
            alt.Tooltip("x:Q", title="{across}", format=",.4~r"),
            alt.Tooltip("y:Q", title=rate.title, format=",.4~r"),
            alt.Tooltip("state:N", title="is"),
        ],
    )  # fmt: skip
    front = base.transform_filter(f"datum.state === '{ON_FRONT}'").mark_line(
        interpolate="step-after", color=EDGE, strokeDash=[5, 3], strokeWidth=1.2
    )
    return Plot(
        "plot-front", "Pareto fronts",
        "Scatter plot: throughput against a latency or the size of the cache.",
        f"A point is on the front if no other policy is better in one of the two and as good in "
        f"the other. Diamonds are variants that know the future [{FORESEES}]: bounds, which are "
        "on no front. Means over seeds, without their intervals. Compare across settings only "
        "where the setting is yours to choose, like the size of a batch.",
        framed(alt.layer(front, points), 380),
        ("across", "where", "variant", "setting", "x", "y", "state"), rows,
        {"variant": "variant", "setting": "setting", "x": "across", "y": rate.title, "state": "is"},
        (*_choice("across", "Against", list(across)),
         *_choice("where", "Setting", list(_groups(comparison)))),
        names(variants) if len(variants) <= MOST_COLORS else names(states),
    )  # fmt: skip


ON_FRONT: Final = "on the front"
STATES: Final = {ON_FRONT: "square", "beaten": "circle", "bound, not a policy": "diamond"}


def _by_variant(variants: Sequence[str]) -> Any:
    """Return the colour of points by variant, in the style of all figures; one colour if many."""
    import altair as alt

    if len(variants) > MOST_COLORS:
        return alt.ColorValue(BLUE)
    return alt.Color("variant:N", scale=colors(variants, _looks(variants)))


def _looks(labels: Sequence[str]) -> list[str]:
    """Return the colours of variants, which a mark behind the name does not change."""
    variants = [label.removesuffix(f" [{FORESEES}]") for label in labels]
    by_variant = styles_of(variants)
    return [by_variant[variant].color for variant in variants]


def _groups(comparison: Comparison) -> dict[str, list[int]]:
    """Return the places of the rows that may be on one front, by the name of their setting."""
    facets: dict[str, list[int]] = {}
    for place, row in enumerate(comparison.rows):
        facets.setdefault(_short(row.facet), []).append(place)
    if len(facets) == 1:
        return facets
    # Sizes of cache and batch are the reader's choice; another machine or workload is not.
    chosen = set(comparison.setting_keys) <= {*CAPACITY_KEYS, *LOAD_KEYS}
    every = {EVERY: list(range(len(comparison.rows)))}
    return {**every, **facets} if chosen else {**facets, **every}


def _front(
    comparison: Comparison, places: Sequence[int], xs: Sequence[float], ys: Sequence[float]
) -> Iterator[tuple[Row, float, float, str]]:
    """Yield the points with their state; less of x and more of y are better."""
    known = [place for place in places if xs[place] == xs[place] and ys[place] == ys[place]]
    ranked = [place for place in known if not comparison.rows[place].knows_the_future]
    for place in sorted(known, key=lambda place: xs[place]):
        x, y, row = xs[place], ys[place], comparison.rows[place]
        beaten = any(
            xs[other] <= x and ys[other] >= y and (xs[other] < x or ys[other] > y)
            for other in ranked
        )
        state = "beaten" if beaten else ON_FRONT
        yield row, x, y, "bound, not a policy" if row.knows_the_future else state


def lines(comparison: Comparison) -> Plot | None:
    """Return each metric against expert slots, or against a number of the sweep."""
    import altair as alt

    found = _by_number(comparison)
    if found is None:
        return None
    title, series = found
    rows = [
        (metric.title, facet, line, number_, value.mean, value.low, value.high, metric.text(value))
        for metric in comparison.headline
        for facet, line, points in series
        for number_, row in points
        for value in [row.estimate(metric)]
        if value.defined
    ]
    labels = list(dict.fromkeys(row[2] for row in rows))
    if not rows or len(labels) > MOST_COLORS:
        return None
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    base = alt.Chart(data()).encode(
        alt.X("number:Q", title=title, axis=alt.Axis(tickMinStep=1, format="~g")),
        alt.Color("line:N", scale=colors(labels, _looks(labels))),
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
    facets = list(dict.fromkeys(facet for _, facet, *_ in rows))
    return Plot(
        "plot-lines", f"Performance against {title}",
        f"Lines: a metric of each variant against {title}.",
        f"Means over the seeds.{bars} A line ends where the metric is undefined.",
        framed(alt.layer(curve, spread, points), 320),
        ("metric", "facet", "line", "number", "mean", "low", "high", "text"), rows,
        {"line": "variant", "number": title, "text": "value"},
        (*_choice("metric", "Metric", list(dict.fromkeys(row[0] for row in rows))),
         *_choice("facet", "Setting", facets)),
        names(labels),
    )  # fmt: skip


Series = list[tuple[str, str, list[tuple[float, Row]]]]


def _by_number(comparison: Comparison) -> tuple[str, Series] | None:
    """Return the label of an axis, and the lines along it; None where no number is swept."""
    sizes = {round(row.slots_per_layer, 6) for row in comparison.rows}
    if len(sizes) > 1 and any(row.capacity for row in comparison.rows):
        label = {row.variant: row.label for row in comparison.rows}
        series = [
            (_short(facet), label[variant], [(r.slots_per_layer, r) for r in rows])
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
    return swept.label, [(_short(facet), line or "all runs", points)
                         for (facet, line), points in found.items()]  # fmt: skip


def stalls(comparison: Comparison) -> Plot | None:
    """Return the GPU's time of each variant by what it did or waited for."""
    import altair as alt

    causes = causes_of(comparison.runs)
    parts = [("computing", "busy_s", BLUE)]
    looks = stall_colors(list(causes))
    parts += [(f"stalled: {label}", f"stall_{cause}_s", look)
              for (cause, label), look in zip(causes.items(), looks, strict=True)]  # fmt: skip
    parts += [("idle, no request", "idle_s", "#C9CCD1")]
    rows = [
        (_short(setting), row.label, label, row.mean(key), place)
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
        _choice("setting", "Setting", [_short(each) for each in comparison.settings]),
        names(labels), ("variant", 26),
    )  # fmt: skip
