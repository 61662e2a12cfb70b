"""Means over seeds and how far they can be trusted.

A seed draws a new order of requests and new arrivals; the same seed gives every policy the same
workload (common random numbers). So a policy's interval comes from its seeds, and a difference
between two policies is taken seed by seed: what the workload does to both cancels.

Intervals are 95 % Student t-intervals: mean ± t(n−1) · s / √n. With the three to ten seeds of a
usual sweep a bootstrap interval is far too narrow, since it cannot see beyond the values drawn.
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
    """A mean over `n` seeds; `half` is half its 95 % interval, None where n < 2.

    `mean` is NaN where no seed defines the quantity, and `undefined` counts those that do not.
    """

    mean: float
    half: float | None
    n: int
    undefined: int = 0

    @property
    def defined(self) -> bool:
        return not math.isnan(self.mean)

    @property
    def low(self) -> float:
        """The interval's lower end; the mean itself where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The interval's upper end; the mean itself where there is no interval."""
        return self.mean + (self.half or 0.0)


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and interval of one value a seed; NaN values are counted as undefined and left out."""
    values = list(values)
    known = [value for value in values if not math.isnan(value)]
    undefined = len(values) - len(known)
    if not known:
        return Estimate(math.nan, None, 0, undefined)
    n = len(known)
    # Equal values give exactly that value and no spread, whatever their floating-point sum is.
    if min(known) == max(known):
        return Estimate(known[0], 0.0 if n > 1 else None, n, undefined)
    mean = math.fsum(known) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    return Estimate(mean, t_quantile(n - 1) * spread / math.sqrt(n), n, undefined)


def difference(
    values: Sequence[float], baseline: Sequence[float], *, relative: bool = True
) -> Estimate:
    """The difference to a baseline, paired seed by seed; `relative` to it, 0.1 is 10 % more.

    Pairs where either is NaN are undefined, and so is what is relative to 0.
    """
    pairs = zip(values, baseline, strict=True)
    if not relative:
        return estimate(value - base for value, base in pairs)
    return estimate((value - base) / abs(base) if base else math.nan for value, base in pairs)


@cache
def t_quantile(degrees: int) -> float:
    """The t below which |T| lies with probability 0.95, for Student's T of integer degrees."""
    from scipy.special import stdtrit  # slow to import

    if degrees < 1:
        raise ValueError(f"degrees of freedom ({degrees}) must be at least 1")
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
