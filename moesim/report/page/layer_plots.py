"""The plots of one run by layer and by lane: hits, stalls, and busy times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from moesim.report.lane_names import LANES, STALL_CAUSES, busy_key, causes_of, lanes_of
from moesim.report.metrics import HITS_LEGEND
from moesim.report.page.charts import (
    EDGE,
    colors,
    data,
    framed,
    gpu_parts,
    names,
    outcome_colors,
    stall_colors,
)
from moesim.report.page.parts import Plot
from moesim.report.runs import Run
from moesim.report.style import BLUE

__all__ = ["lanes", "layers"]


def layers(run: Run) -> Iterator[Plot]:
    """Yield hits, late hits and misses by layer, and the stalls by layer."""
    yield from _outcomes(run)
    yield from _stalls_by_layer(run)


def _outcomes(run: Run) -> Iterator[Plot]:
    import altair as alt

    on_cpu = "cpu" in lanes_of(run)
    columns = ["layer", "accesses", "hits", "late_hits", "misses"]
    table = run.table("layers", [*columns, *(["elsewhere"] if on_cpu else [])])
    rows = []
    for place, layer in enumerate(table["layer"].tolist()):
        hits, late, misses, every = (
            int(table[key][place]) for key in ("hits", "late_hits", "misses", "accesses")
        )
        parts = {"hit in time": hits, "late hit": late}
        if on_cpu:
            elsewhere = int(table["elsewhere"][place])
            parts |= {"miss, on the CPU": elsewhere, "miss, copied": misses - elsewhere}
        else:
            parts["miss"] = misses
        rows += [(layer, part, n, n / every if every else None, i)
                 for i, (part, n) in enumerate(parts.items())]  # fmt: skip
    if not any(row[2] for row in rows):
        return
    labels = list(dict.fromkeys(row[1] for row in rows))
    looks = outcome_colors([label.replace("hit in time", "hit") for label in labels])
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("layer:O", title="layer (numbered as in the trace)", axis=alt.Axis(labelAngle=0)),
            alt.Y("share:Q", title="share of accesses", axis=alt.Axis(format="%"),
                  scale=alt.Scale(domain=[0, 1])),
            alt.Color("outcome:N", scale=colors(labels, looks)),
            alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("outcome:N", title="outcome"),
                alt.Tooltip("count:Q", title="accesses", format=","),
                alt.Tooltip("share:Q", title="share", format=".1%"),
            ],
        )
    )  # fmt: skip
    yield Plot(
        "plot-hits", "Hits, late hits and misses by layer",
        "Stacked bars: the share of hits in time, late hits and misses at each layer.",
        f"{HITS_LEGEND}{_whole(run)}", framed(chart, 230),
        ("layer", "outcome", "count", "share", "order"), rows,
        {"layer": "layer", "outcome": "outcome", "count": "accesses", "share": "share"},
        longest_label=names(labels),
    )  # fmt: skip


def _stalls_by_layer(run: Run) -> Iterator[Plot]:
    import altair as alt

    causes = causes_of([run])
    table = run.table("layers", ["layer", *(f"stall_{cause}_ns" for cause in causes)])
    rows = [
        (layer, STALL_CAUSES[cause], value / 1e9)
        for cause in causes
        for layer, value in zip(
            table["layer"].tolist(), table[f"stall_{cause}_ns"].tolist(), strict=True
        )
        if value
    ]
    if not rows:
        return
    shown = [cause for cause in causes if any(row[1] == STALL_CAUSES[cause] for row in rows)]
    labels = [STALL_CAUSES[cause] for cause in shown]
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("layer:O", title="layer (numbered as in the trace)", axis=alt.Axis(labelAngle=0)),
            alt.Y("seconds:Q", title="stalled (s)"),
            alt.Color("cause:N", scale=colors(labels, stall_colors(shown))),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("cause:N", title="waits for"),
                alt.Tooltip("seconds:Q", title="seconds", format=",.4~r"),
            ],
        )
    )
    yield Plot(
        "plot-layer-stalls", "Stalls by layer",
        "Stacked bars: how long the GPU stalled at each layer, by what it waited for.",
        f"Time that the GPU waited, by the layer that waited and the cause. {_TAIL}{_whole(run)}",
        framed(chart, 230), ("layer", "cause", "seconds"), sorted(rows, key=lambda row: row[0]),
        {"layer": "layer", "cause": "waits for", "seconds": "seconds"},
        longest_label=names(labels),
    )  # fmt: skip


_TAIL: Final = "Stalls in the tail of a step belong to no layer."


def lanes(run: Run) -> Iterator[Plot]:
    """Yield where the GPU's time went, and how busy each lane was."""
    parts = gpu_parts(causes_of([run]))
    window = run.window_s
    rows = [
        (label, run.value(key), run.value(key) / window if window > 0 else None)
        for label, key, _ in parts
    ]
    rows = [row for row in rows if row[1] == row[1]]
    of = "window" if run.windowed else "makespan"
    if rows:
        yield _bars(
            "plot-gpu", "Where the GPU's time went",
            f"Seconds of the GPU lane, with shares of the {of}. A stall is named by what the GPU "
            "waits for.",
            rows, "seconds", [color for label, _, color in parts if label in {r[0] for r in rows}],
            f"share of {of}",
        )  # fmt: skip
    shares = [(LANES.get(lane, lane).replace("\n", " "), run.value(busy_key(lane)))
              for lane in lanes_of(run)]  # fmt: skip
    busy = [(label, share * window, share) for label, share in shares if share == share]
    if busy:
        yield _bars(
            "plot-lanes", "How busy each lane was",
            f"Busy time of each lane and its share of the {of}. Lanes work beside each other, so "
            "shares do not add up.",
            busy, "seconds", [BLUE] * len(busy), f"share of {of}",
        )  # fmt: skip


def _bars(
    name: str, title: str, caption: str, rows: list[Any], unit: str, looks: list[str], of: str
) -> Plot:
    import altair as alt

    labels = [row[0] for row in rows]
    chart = (
        alt.Chart(data())
        .mark_bar(stroke=EDGE, strokeWidth=0.5)
        .encode(
            alt.X("value:Q", title=unit),
            alt.Y("part:N", title=None, sort=labels),
            alt.Color("part:N", scale=colors(labels, looks), legend=None),
            tooltip=[
                alt.Tooltip("part:N", title="what"),
                alt.Tooltip("value:Q", title=unit, format=",.4~r"),
                alt.Tooltip("share:Q", title=of, format=".1%"),
            ],
        )
    )
    return Plot(
        name, title, f"Bars: {title.lower()}.", caption, framed(chart),
        ("part", "value", "share"), rows, {"part": "what", "value": unit, "share": of},
        rising=("part", 24),
    )  # fmt: skip


def _whole(run: Run) -> str:
    return " Numbers by layer are of the whole run, not only its window." if run.windowed else ""
