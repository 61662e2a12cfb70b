"""Whether a trace is long enough: bootstrap intervals over requests.

Requests are drawn again with replacement (Efron and Tibshirani, *An Introduction to the Bootstrap*,
chapter 13). The interval of a share narrows with the root of the number of requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["FEW", "Interval", "interval"]

_RESAMPLES: Final = 1000
FEW: Final = 8
"""Requests below which an interval is itself uncertain."""
_FINE, _COARSE = 0.01, 0.03


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of uses with its 95 % interval over `requests`; NaN ends with one request."""

    value: float
    low: float
    high: float
    requests: int

    @property
    def half_width(self) -> float:
        """Return half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def verdict(self) -> str:
        """Return `enough` (within 1 point), `coarse` (3 points), `short`, or `unknown`."""
        if self.requests < 2 or math.isnan(self.half_width):
            return "unknown"
        if self.requests < FEW:
            return "short"
        return next(
            (name for name, most in (("enough", _FINE), ("coarse", _COARSE))
             if self.half_width <= most),
            "short",
        )  # fmt: skip

    @property
    def needed(self) -> float:
        """Return about how many requests give an interval of one point on either side."""
        return max(FEW, math.ceil(self.requests * (self.half_width / _FINE) ** 2))


def interval(
    part_R: npt.NDArray[np.integer], whole_R: npt.NDArray[np.integer], rng: np.random.Generator
) -> Interval:
    """Return the ratio of two sums over requests with its interval."""
    used = whole_R > 0
    part, whole = part_R[used].astype(np.float64), whole_R[used].astype(np.float64)
    count = len(part)
    value = float(part.sum() / whole.sum()) if count else math.nan
    if count < 2:
        return Interval(value, math.nan, math.nan, count)
    times = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    rates = (times @ part) / (times @ whole)
    low, high = np.quantile(rates, (0.025, 0.975))
    return Interval(value, float(low), float(high), count)
