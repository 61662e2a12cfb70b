"""Pareto fronts: throughput against a latency or the size of the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from moesim.report.comparison import CAPACITY_KEYS, LOAD_KEYS, Comparison, Row
from moesim.report.marks import FORESEES
from moesim.report.metrics import E2E, THROUGHPUT, TPOT, TTFT
from moesim.report.page.charts import EDGE, colors, data, framed, names
from moesim.report.page.parts import Plot
from moesim.report.page.variants import (
    EVERY,
    MOST_COLORS,
    by_variant,
    choice,
    inside_by_variant,
    setting_name,
)

__all__ = ["fronts"]

ON_FRONT: Final = "on the front"
STATES: Final = {ON_FRONT: "square", "beaten": "circle", "bound, not a policy": "diamond"}


def fronts(comparison: Comparison) -> Plot | None:
    """Return throughput against a latency or the cache, with the points that none beats in both."""
    import altair as alt

    rate = next(m for m in comparison.headline if m.key == THROUGHPUT.key)
    sizes = [row.slots_per_layer for row in comparison.rows]
    # The first group is the one shown first; a column of points at one size says nothing.
    first = [sizes[place] for place in next(iter(_groups(comparison).values()))]
    several = len({round(size, 6) for size in first if size == size}) > 1
    across = {"expert slots a layer": sizes} if several else {}
    across |= {
        m.title: [row.estimate(m).mean for row in comparison.rows]
        for latency in (TPOT, TTFT, E2E)
        for m in comparison.headline
        if m.key == latency.key
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
    states = list(STATES)
    points = base.mark_point(size=90, opacity=1, strokeWidth=2).encode(
        by_variant(variants),
        inside_by_variant(variants),
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
        "plot-front", "Throughput against latency or slots",
        "Scatter plot: throughput against a latency or the size of the cache.",
        f"A point is on the front if no other policy is better in one of the two and as good in "
        f"the other. Diamonds are variants that know the future [{FORESEES}]: bounds, which are "
        "on no front. Means over seeds, without their intervals. Compare across settings only "
        "where the setting is yours to choose, like the size of a batch.",
        framed(alt.layer(front, points), 380),
        ("across", "where", "variant", "setting", "x", "y", "state"), rows,
        {"variant": "variant", "setting": "setting", "x": "against", "y": rate.title,
         "state": "is"},
        (*choice("across", "Against", list(across)),
         *choice("where", "Setting", list(_groups(comparison)))),
        names(variants) if len(variants) <= MOST_COLORS else names(states),
    )  # fmt: skip


def _groups(comparison: Comparison) -> dict[str, list[int]]:
    """Return the places of the rows that may be on one front, by the name of their setting."""
    facets: dict[str, list[int]] = {}
    for place, row in enumerate(comparison.rows):
        facets.setdefault(setting_name(row.facet), []).append(place)
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
