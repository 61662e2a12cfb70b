"""The plots of one run: latencies, throughput over time, hits, stalls, lanes and occupancy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from moesim.report.distribution import in_window, latencies_ns, latency_scale
from moesim.report.lane_names import LANES, STALL_CAUSES, busy_key, causes_of, lanes_of
from moesim.report.metrics import HITS_LEGEND
from moesim.report.page.charts import (
    EDGE,
    binned,
    colors,
    data,
    framed,
    names,
    outcome_colors,
    stall_colors,
    strokes,
)
from moesim.report.page.parts import Plot
from moesim.report.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

__all__ = ["lanes", "latencies", "layers", "occupancy", "over_time"]

POINTS: Final = 200
"""The most points of a curve. A page holds no more than its reader can see."""
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"


def latencies(run: Run) -> Iterator[Plot]:
    """Yield the distributions of TTFT with its two parts, of token times, and of E2E."""
    samples = latencies_ns(run)
    yield from _distribution(
        "ttft", "Time to first token",
        "queueing + service: queueing lasts from arrival to the first step, service from there to "
        "the first token",
        {"time to first token": samples["ttft"], **_ttft_parts(run)}, (BLUE, ORANGE, GREEN),
    )  # fmt: skip
    yield from _distribution(
        "tpot", "Time between tokens",
        "the mean gap of each request (TPOT), and every single gap (ITL)",
        {"mean gap of a request (TPOT)": samples["tpot"], "single gaps (ITL)": samples["itl"]},
        (BLUE, GREY),
    )  # fmt: skip
    yield from _distribution(
        "e2e", "End-to-end latency", "from arrival to the last token",
        {"end-to-end": samples["e2e"]}, (BLUE,),
    )  # fmt: skip


def _ttft_parts(run: Run) -> dict[str, Any]:
    """Return queueing and service of the requests that `latencies_ns` counts, in ns."""
    import numpy as np

    columns = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns")
    table = run.table("requests", columns)
    arrival, scheduled, first, finish = (table[key].astype(np.int64) for key in columns)
    done = in_window(run, finish) & (finish >= 0) & (first >= 0)
    return {"queueing": (scheduled - arrival)[done], "service": (first - scheduled)[done]}


def _distribution(
    name: str, title: str, what: str, samples: Mapping[str, Any], range_: tuple[str, ...]
) -> Iterator[Plot]:
    """Yield the cumulative shares of samples in ns; nothing where all are empty."""
    import altair as alt
    import numpy as np

    pooled = np.concatenate([np.asarray(sample, np.float64) for sample in samples.values()])
    if not len(pooled):
        return
    largest, median = float(pooled.max()), float(np.median(pooled))
    wide = median > 0 and largest > 50 * median and pooled.min() > 0
    scale, unit = latency_scale(median if wide else largest)
    rows = [
        (label, share, float(value))
        for label, sample in samples.items()
        if len(sample)
        for share, value in _quantiles(np.asarray(sample, np.float64) / scale)
    ]
    labels = [label for label in samples if any(row[0] == label for row in rows)]
    chart = (
        alt.Chart(data())
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            alt.X("value:Q", title=f"{title.lower()} ({unit})",
                  scale=alt.Scale(type="log" if wide else "linear")),
            alt.Y("share:Q", title="share of requests or gaps", axis=alt.Axis(format="%")),
            alt.Color("line:N", scale=colors(labels, range_[: len(labels)]), legend=strokes()),
            alt.StrokeDash("line:N", scale=alt.Scale(domain=labels, range=_DASHES[: len(labels)]),
                           legend=strokes()),
            tooltip=[
                alt.Tooltip("line:N", title="of"),
                alt.Tooltip("share:Q", title="share", format=".1%"),
                alt.Tooltip("value:Q", title=f"at most ({unit})", format=",.4~r"),
            ],
        )
    )  # fmt: skip
    hover = chart.mark_point(size=60, opacity=0, filled=True)
    most = max(len(sample) for sample in samples.values())
    thinned = f" Curves have {POINTS} points at even shares." if most > POINTS else ""
    yield Plot(
        f"plot-{name}", title, f"Line plot: cumulative distribution. {what}.",
        f"Cumulative share: {what}.{thinned}",
        framed(alt.layer(chart, hover), 230), ("line", "share", "value"), rows,
        {"line": "line", "share": "share", "value": f"at most ({unit})"},
        longest_label=names(labels),
    )  # fmt: skip


_DASHES: Final[list[list[int]]] = [[1, 0], [6, 3], [2, 2]]


def _quantiles(sample: Numbers) -> Iterator[tuple[float, float]]:
    """Yield shares and values of an empirical distribution; of large samples, even shares."""
    import numpy as np

    yield 0.0, float(sample.min())
    values = np.sort(sample)
    shares = np.arange(1, len(values) + 1) / len(values)
    if len(values) > POINTS:
        chosen = np.unique(np.rint(np.linspace(0, len(values) - 1, POINTS)).astype(np.int64))
        values, shares = values[chosen], shares[chosen]
    yield from zip(shares.tolist(), values.tolist(), strict=True)


def over_time(run: Run) -> Iterator[Plot]:
    """Yield output tokens per second over the whole run, in even bins."""
    import altair as alt
    import numpy as np

    lists = [
        times for times in run.table("requests", ["token_ns"])["token_ns"] if times is not None
    ]
    times = np.concatenate([np.empty(0), *(np.asarray(each, np.float64) for each in lists)]) / 1e9
    end = run.value("makespan_s")
    if not len(times) or not end > 0:
        return
    edges, counts = binned(times, end, max(1, min(60, len(times) // 5)))
    width = float(edges[1] - edges[0])
    rows = [
        (float(start), float(stop), count / width)
        for start, stop, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]
    chart = (
        alt.Chart(data())
        .mark_bar(color=BLUE, stroke=EDGE, strokeWidth=0.3)
        .encode(
            alt.X("start:Q", title="time (s)", scale=alt.Scale(nice=False)),
            alt.X2("stop:Q"),
            alt.Y("rate:Q", title="output tokens/s", scale=alt.Scale(domainMin=0)),
            alt.Y2(datum=0),
            tooltip=[
                alt.Tooltip("start:Q", title="from (s)", format=",.4~r"),
                alt.Tooltip("stop:Q", title="to (s)", format=",.4~r"),
                alt.Tooltip("rate:Q", title="output tokens/s", format=",.4~r"),
            ],
        )
    )
    yield Plot(
        "plot-rate", "Output tokens per second over time",
        "Bar plot of output tokens per second in even intervals of the run.",
        f"Output tokens of all requests, in intervals of {width:.3g} s, over the whole run.",
        framed(chart, 230), ("start", "stop", "rate"), rows,
        {"start": "from (s)", "stop": "to (s)", "rate": "output tokens/s"},
    )  # fmt: skip


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
    causes = causes_of([run])
    parts = [("computing", "busy_s", BLUE)]
    looks = dict(zip(causes, stall_colors(list(causes)), strict=True))
    parts += [(f"stalled: {label}", f"stall_{cause}_s", looks[cause])
              for cause, label in causes.items()]  # fmt: skip
    parts += [("idle, no request", "idle_s", "#C9CCD1")]
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


def occupancy(run: Run) -> Iterator[Plot]:
    """Yield requests, KV blocks and resident experts over the steps of the whole run."""
    import numpy as np

    optional = {"residents"} & set(run.arrow("steps").column_names)  # older runs lack it
    table = run.table("steps", ["start_ns", "finish_ns", "sequences", "kv_blocks", *optional])
    known = {name: values.astype(np.float64) for name, values in table.items()}
    start, finish = known["start_ns"], known["finish_ns"]
    if not len(start):
        return
    groups = np.array_split(np.arange(len(start)), min(POINTS, len(start)))
    note = f" Each point is the mean of about {len(start) / len(groups):.0f} steps."
    note *= len(start) > POINTS
    peak = f"KV blocks held in each step; the peak is {run.text('peak_kv_blocks')}."
    slots = f"Experts with a slot when a step ends, of {run.text('cache_slots')} slots."
    batch = {"running": (known["sequences"], BLUE), "waiting": (_waiting(run, start), ORANGE)}
    for quantity, title, series, caption in (
        ("requests", "Requests in each step", batch, _BATCH),
        ("KV blocks", "KV blocks in use", {"KV blocks": (known["kv_blocks"], GREEN)}, peak),
        ("experts", "Experts in GPU memory",
         {"experts": (known["residents"], BLUE)} if "residents" in known else {}, slots),
    ):  # fmt: skip
        rows = [
            (line, start[group[0]] / 1e9, finish[group[-1]] / 1e9, part.mean(), part.max())
            for line, (values, _) in series.items()
            for group in groups
            for part in [values[group]]
        ]
        plain = [(line, *map(float, numbers)) for line, *numbers in rows]
        looks = [look for _, look in series.values()]
        if plain:
            yield _series(quantity, title, list(series), looks, caption + note, plain)


_BATCH: Final = (
    "Requests that a step serves, and requests that have arrived and wait for their first step."
)


def _waiting(run: Run, starts: Numbers) -> Numbers:
    """Return how many requests have arrived and not been served yet, at each time."""
    import numpy as np

    columns = ("arrival_ns", "scheduled_ns")
    table = run.table("requests", columns)
    arrival, scheduled = (table[key].astype(np.float64) for key in columns)
    known = scheduled >= 0
    arrived = np.searchsorted(np.sort(arrival[known]), starts, side="right")
    served = np.searchsorted(np.sort(scheduled[known]), starts, side="right")
    return (arrived - served).astype(np.float64)


def _series(
    name: str, title: str, labels: list[str], looks: list[str], caption: str, rows: list[Any]
) -> Plot:
    import altair as alt

    tooltip = [
        alt.Tooltip("line:N", title="of"),
        alt.Tooltip("start:Q", title="from (s)", format=",.4~r"),
        alt.Tooltip("stop:Q", title="to (s)", format=",.4~r"),
        alt.Tooltip("mean:Q", title="mean", format=",.4~r"),
        alt.Tooltip("most:Q", title="most", format=",.4~r"),
    ]
    chart = (
        alt.Chart(data())
        .mark_rule(strokeWidth=2.5)
        .encode(
            alt.X("start:Q", title="time (s)", scale=alt.Scale(nice=False)),
            alt.X2("stop:Q"),
            alt.Y("mean:Q", title=name),
            alt.Color("line:N", scale=colors(labels, looks),
                      legend=strokes() if len(labels) > 1 else None),
            tooltip=tooltip,
        )
    )  # fmt: skip
    return Plot(
        f"plot-{name.replace(' ', '-').lower()}", title, f"Plot over time: {title.lower()}.",
        caption, framed(chart, 180), ("line", "start", "stop", "mean", "most"), rows,
        {"line": "line", "start": "from (s)", "stop": "to (s)", "mean": "mean", "most": "most"},
        longest_label=names(labels) if len(labels) > 1 else 0,
    )  # fmt: skip


def _whole(run: Run) -> str:
    return " Numbers by layer are of the whole run, not only its window." if run.windowed else ""
