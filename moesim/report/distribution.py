"""Empirical distribution functions of latencies: the share of a sample that is at most x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Sample = NDArray[np.float64]

__all__ = ["cdf", "latency_axis", "latency_scale"]

# More points than a figure has pixels would only make files larger.
POINTS: Final = 1000
LATENCIES: Final = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end-to-end latency",
}


def cdf(sample: Sample) -> tuple[Sample, Sample]:
    """Return sorted values, and the share of the sample at or below each.

    Samples of more than `POINTS` values are thinned to even steps, with both ends.
    """
    import numpy as np

    values = np.sort(sample)
    shares = np.arange(1, len(values) + 1) / max(1, len(values))
    if len(values) > POINTS:
        chosen = np.unique(np.rint(np.linspace(0, len(values) - 1, POINTS)).astype(np.int64))
        values, shares = values[chosen], shares[chosen]
    return values, shares


def latency_scale(largest_ns: float) -> tuple[float, str]:
    """Return the nanoseconds of an axis's unit, and the unit's name."""
    # From two units on, so that the numbers along the axis seldom start with "0.".
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if largest_ns >= 2 * size:
            return size, unit
    return 1.0, "ns"


def latency_axis(axes: Axes, samples: list[Sample]) -> tuple[float, str]:
    """Set up a latency axis for samples in ns, and return its unit as `latency_scale` does.

    The axis is logarithmic if the slowest takes over fifty times the median, and linear otherwise.
    A linear axis starts at zero unless all values lie far from it.
    """
    import numpy as np

    pooled = np.concatenate([np.empty(0), *samples])
    if not len(pooled):
        return latency_scale(0)
    largest, median = float(pooled.max()), float(np.median(pooled))
    if median > 0 and largest > 50 * median and pooled.min() > 0:
        axes.set_xscale("log")
        return latency_scale(median)
    scale, unit = latency_scale(largest)
    span = largest - float(pooled.min())
    # From zero where it costs little room: lengths then compare as they look.
    first = 0.0 if span > 0.5 * largest else max(0.0, float(pooled.min()) - 0.1 * span)
    axes.set_xlim(first / scale, max((largest + 0.04 * (span or largest)) / scale, 1e-9))
    return scale, unit
