"""Means over seeds, with confidence intervals.

Each seed draws another order of requests and other arrivals. The same seed gives every policy the
same workload (common random numbers; Law, *Simulation Modeling and Analysis*, chapter 11). So
differences between policies are taken seed by seed: effects of the workload cancel.

Intervals are 95 % Student t-intervals: mean ± t(n−1) · s / √n. For the three to ten seeds of a
usual sweep a bootstrap interval is too narrow, because it only resamples the few values drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

__all__ = ["CONFIDENCE", "Estimate", "difference", "estimate", "t_quantile"]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` seeds; `half` is half its 95 % interval, None if n < 2.

    `undefined` counts the seeds that leave the quantity undefined; `mean` is NaN if all do.
    """

    mean: float
    half: float | None
    n: int
    undefined: int = 0

    @property
    def defined(self) -> bool:
        """Return whether any seed defines the quantity."""
        return not math.isnan(self.mean)

    @property
    def low(self) -> float:
        """Return the interval's lower end; the mean if there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Return the interval's upper end; the mean if there is no interval."""
        return self.mean + (self.half or 0.0)


def estimate(values: Iterable[float]) -> Estimate:
    """Return mean and interval of values, one per seed; NaN counts as undefined and is left out."""
    values = list(values)
    defined = [value for value in values if not math.isnan(value)]
    undefined = len(values) - len(defined)
    if not defined:
        return Estimate(math.nan, None, 0, undefined)
    n = len(defined)
    # Equal values give exactly that value and no spread, whatever their floating-point sum is.
    if min(defined) == max(defined):
        return Estimate(defined[0], 0.0 if n > 1 else None, n, undefined)
    mean = math.fsum(defined) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in defined) / (n - 1))
    return Estimate(mean, t_quantile(n - 1) * spread / math.sqrt(n), n, undefined)


def difference(
    values: Sequence[float], baseline: Sequence[float], *, relative: bool = True
) -> Estimate:
    """Return the difference to a baseline, paired seed by seed; if `relative`, 0.1 is 10 % more.

    A pair with NaN is undefined. If `relative`, so is a pair with a baseline of 0.

    Raises:
        ValueError: the sequences have different lengths.
    """
    # A mean of ratios, not a ratio of means: each seed is one paired observation.
    pairs = zip(values, baseline, strict=True)
    if not relative:
        return estimate(value - base for value, base in pairs)
    return estimate((value - base) / abs(base) if base else math.nan for value, base in pairs)


@cache
def t_quantile(degrees: int) -> float:
    """Return t such that |T| ≤ t with probability 0.95, for Student's T with `degrees` of freedom.

    Raises:
        ValueError: `degrees` is less than 1.
    """
    from scipy.special import stdtrit  # slow to import

    if degrees < 1:
        raise ValueError(f"degrees of freedom ({degrees}) must be at least 1")
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
