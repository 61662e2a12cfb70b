"""Latencies of a run, and their distribution functions: the share of a sample that is at most x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from moesim.report.runs import Run

    Sample = NDArray[np.float64]

__all__ = [
    "PERCENTILES",
    "cdf",
    "counted",
    "in_window",
    "is_wide",
    "latencies_ns",
    "latency_axis",
    "latency_ns",
    "latency_scale",
    "percentiles",
]

# More points than a figure has pixels would only make files larger.
POINTS: Final = 1000
PERCENTILES: Final = (50, 95, 99)
"""The percentiles that are marked on a curve."""
LATENCIES: Final = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end-to-end latency",
}


_COLUMNS: Final = (
    "arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns", "output_tokens", "token_ns"
)  # fmt: skip


def latencies_ns(run: Run) -> dict[str, Sample]:
    """Return latencies in nanoseconds under "ttft", "tpot", "itl" and "e2e".

    "ttft_queue" and "ttft_service" are the parts of each TTFT, before and from the first step on.
    Each has one entry per request that finished in the run's window, except that "itl" has one per
    gap between tokens. TPOT, the mean gap after the first token, leaves out requests with fewer
    than two tokens.
    """
    table = counted(run)
    names = ("ttft", "ttft_queue", "ttft_service", "tpot", "itl", "e2e")
    return {name: latency_ns(name, table)[0] for name in names}


def counted(run: Run, further: Sequence[str] = ()) -> dict[str, Any]:
    """Return the rows of the requests that a summary's latencies are of, with `further` columns."""
    import numpy as np

    table = run.table("requests", (*_COLUMNS, *further))
    first, finish = (table[f"{key}_ns"].astype(np.int64) for key in ("first_token", "finish"))
    kept = in_window(run, finish) & (finish >= 0) & (first >= 0)
    return {key: column[kept] for key, column in table.items()}


def latency_ns(name: str, table: dict[str, Any]) -> tuple[Sample, NDArray[np.int64]]:
    """Return a latency in ns for the rows of `counted`, and the place of each value's row.

    The names are those of `latencies_ns`, and "normalised": E2E divided by the tokens.
    """
    import numpy as np

    arrival, begun, first, finish, tokens = (
        table[column].astype(np.int64) for column in _COLUMNS[:5]
    )
    places = np.arange(len(arrival))
    if name == "itl":
        gaps = [np.diff(np.asarray(times, np.int64)) for times in table["token_ns"]]
        return np.concatenate([np.empty(0), *gaps]), places.repeat([len(each) for each in gaps])
    if name == "tpot":
        places = np.flatnonzero(tokens > 1)
        return (finish - first)[places] / (tokens[places] - 1), places
    spans = {
        "ttft": first - arrival,
        "ttft_queue": begun - arrival,
        "ttft_service": first - begun,
        "e2e": finish - arrival,
        "normalised": (finish - arrival) / tokens,
    }
    return spans[name].astype(np.float64), places


def in_window(run: Run, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which times lie in the run's window; all of them if it has none."""
    import numpy as np

    if not run.windowed:
        return np.ones(len(times_ns), np.bool_)
    from_ns, to_ns = (round(run.value(f"window_{end}_s") * 1e9) for end in ("from", "to"))
    return ((times_ns > from_ns) | (from_ns == 0)) & (times_ns <= to_ns)


def percentiles(sample: Sample) -> Sample:
    """Return the `PERCENTILES` of a sample, interpolated linearly as in `summary.json`."""
    import numpy as np

    return np.percentile(sample, PERCENTILES)


def cdf(sample: Sample, most: int = POINTS) -> tuple[Sample, Sample]:
    """Return sorted values, and the share of the sample at or below each.

    Samples of more than `most` values are thinned to even steps, with both ends.
    """
    import numpy as np

    values = np.sort(sample)
    shares = np.arange(1, len(values) + 1) / max(1, len(values))
    if len(values) > most:
        chosen = np.unique(np.rint(np.linspace(0, len(values) - 1, most)).astype(np.int64))
        values, shares = values[chosen], shares[chosen]
    return values, shares


def latency_scale(largest_ns: float) -> tuple[float, str]:
    """Return the nanoseconds of an axis's unit, and the unit's name."""
    # From two units on, so that the numbers along the axis seldom start with "0.".
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if largest_ns >= 2 * size:
            return size, unit
    return 1.0, "ns"


def is_wide(sample: Sample) -> bool:
    """Return whether the slowest takes over fifty times the median, so that a log axis is due."""
    import numpy as np

    median = float(np.median(sample))
    return median > 0 and bool(sample.max() > 50 * median) and bool(sample.min() > 0)


def latency_axis(axes: Axes, samples: list[Sample]) -> tuple[float, str]:
    """Set up a latency axis for samples in ns, and return its unit as `latency_scale` does.

    The axis is logarithmic for samples that are wide, and linear otherwise. A linear axis starts at
    zero unless all values lie far from it.
    """
    import numpy as np

    pooled = np.concatenate([np.empty(0), *samples])
    if not len(pooled):
        return latency_scale(0)
    if is_wide(pooled):
        axes.set_xscale("log")
        return latency_scale(float(np.median(pooled)))
    largest = float(pooled.max())
    scale, unit = latency_scale(largest)
    span = largest - float(pooled.min())
    # From zero where it costs little room: lengths then compare as they look.
    first = 0.0 if span > 0.5 * largest else max(0.0, float(pooled.min()) - 0.1 * span)
    axes.set_xlim(first / scale, max((largest + 0.04 * (span or largest)) / scale, 1e-9))
    return scale, unit
