"""The plots of one run over latencies and time: distributions, and tokens per second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from moesim.report.distribution import cdf, is_wide, latencies_ns, latency_scale
from moesim.report.page.charts import EDGE, POINTS, binned, colors, data, framed, names, strokes
from moesim.report.page.parts import Plot
from moesim.report.runs import Run
from moesim.report.style import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


__all__ = ["latencies", "over_time"]


def latencies(run: Run) -> Iterator[Plot]:
    """Yield the distributions of TTFT with its two parts, of token times, and of E2E."""
    samples = latencies_ns(run)
    yield from _distribution(
        "ttft", "Time to first token",
        "queued and served: a request is queued until its first step, and served from there to "
        "the first token",
        {"time to first token": samples["ttft"], "queued": samples["ttft_queue"],
         "served": samples["ttft_service"]}, (BLUE, ORANGE, GREEN),
    )  # fmt: skip
    yield from _distribution(
        "tpot", "Time between tokens",
        "the mean gap of each request (TPOT), and every single gap (ITL)",
        {"mean gap of a request (TPOT)": samples["tpot"], "single gaps (ITL)": samples["itl"]},
        (BLUE, GREY), "requests or gaps",
    )  # fmt: skip
    yield from _distribution(
        "e2e", "End-to-end latency", "from arrival to the last token",
        {"end-to-end": samples["e2e"]}, (BLUE,),
    )  # fmt: skip


def _distribution(
    name: str,
    title: str,
    what: str,
    samples: Mapping[str, Numbers],
    range_: tuple[str, ...],
    counted: str = "requests",
) -> Iterator[Plot]:
    """Yield the cumulative shares of samples in ns; nothing where all are empty."""
    import altair as alt
    import numpy as np

    pooled = np.concatenate(list(samples.values()))
    if not len(pooled):
        return
    wide = is_wide(pooled)
    scale, unit = latency_scale(float(np.median(pooled) if wide else pooled.max()))
    rows = [
        (label, share, float(value))
        for label, sample in samples.items()
        if len(sample)
        for share, value in _steps(sample / scale)
    ]
    labels = [label for label in samples if any(row[0] == label for row in rows)]
    chart = (
        alt.Chart(data())
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            alt.X("value:Q", title=f"{title.lower()} ({unit})",
                  scale=alt.Scale(type="log" if wide else "linear")),
            alt.Y("share:Q", title=f"share of {counted}", axis=alt.Axis(format="%")),
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


def _steps(sample: Numbers) -> Iterator[tuple[float, float]]:
    """Yield shares and values of an empirical distribution, from share zero on."""
    values, shares = cdf(sample, POINTS)
    yield 0.0, float(values[0])
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
