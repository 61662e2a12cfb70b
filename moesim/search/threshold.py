"""The threshold: the value of one key from which on a condition holds, found by bisection.

The values are tried at both ends and at a few inner probes first. If the condition holds at one end
only, the gap in which it changes is halved until two neighbours remain. A bisection is right only
if the metric is monotone. So the search is refused where the tried values show that it is not:

- the condition changes more than once, or
- the metric moves against its trend by more than `tolerance` of the range of its values.

Between values that were not tried, a metric may still turn. More probes make that less likely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moesim.search.metrics import Condition

__all__ = ["Bisection", "Side", "Status", "most_steps"]

Status = Literal["found", "met everywhere", "met nowhere", "not monotone", "failed", "searching"]
Side = Literal["smallest", "largest"]


@dataclass(slots=True)
class Bisection:
    """A bisection over `count` ordered values; `wanted` says which to try next.

    Values are numbered from 0. `tried` holds the metric by number; NaN is an undefined or failed
    run, which does not meet the condition.
    """

    count: int
    condition: Condition
    probes: int
    tolerance: float
    tried: dict[int, float] = field(default_factory=dict)
    failed: bool = False
    """Whether a run failed for another reason than its memory, so that its value is unknown."""

    def wanted(self) -> list[int]:
        """Return the numbers of the values to try next; none once the search has ended."""
        if self.failed:
            return []
        if first := [at for at in self._first() if at not in self.tried]:
            return first
        if self.broken or not (gaps := self.gaps):
            return []
        low, high = gaps[0]
        return [(low + high) // 2] if high - low > 1 else []

    @property
    def status(self) -> Status:
        """What the tried values show."""
        if self.failed:
            return "failed"
        if self.wanted():
            return "searching"
        if self.broken:
            return "not monotone"
        if self.gaps:
            return "found"
        return "met everywhere" if self.meets(0) else "met nowhere"

    @property
    def broken(self) -> str:
        """Why a bisection would be wrong here; "" if nothing tried shows that."""
        if len(gaps := self.gaps) > 1:
            return f"the condition changes {len(gaps)} times"
        against, span = against_trend(list(self._defined().values()))
        if against > self.tolerance * span:
            return f"the metric moves against its trend by {against / span:.0%} of its range"
        return ""

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The pairs of neighbours among the tried values between which the condition changes."""
        places = sorted(self.tried)
        return [(i, j) for i, j in itertools.pairwise(places) if self.meets(i) != self.meets(j)]

    @property
    def found(self) -> int | None:
        """The number of the last value that meets the condition; None without a threshold."""
        if self.status != "found":
            return None
        low, high = self.gaps[0]
        return high if self.meets(high) else low

    @property
    def beyond(self) -> int | None:
        """The number of the neighbour of `found` that misses the condition."""
        if self.found is None:
            return None
        low, high = self.gaps[0]
        return low if self.found == high else high

    @property
    def side(self) -> Side | None:
        """Whether `found` is the smallest or the largest value that meets the condition."""
        if self.found is None or self.beyond is None:
            return None
        return "smallest" if self.found > self.beyond else "largest"

    def meets(self, at: int) -> bool:
        """Return whether a tried value meets the condition."""
        return self.condition.meets(self.tried[at])

    def _first(self) -> list[int]:
        """Return the ends and the probes at even steps between them."""
        last, parts = self.count - 1, self.probes + 1
        return sorted({round(last * part / parts) for part in range(parts + 1)})

    def _defined(self) -> Mapping[int, float]:
        return {at: self.tried[at] for at in sorted(self.tried) if not math.isnan(self.tried[at])}


def against_trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the largest move of a sequence against its trend, and the range of its values.

    The trend is the direction in which the sequence moves farthest.
    """
    fall, rise = _largest_fall(values), _largest_fall([-value for value in values])
    return min(fall, rise), max(values, default=0.0) - min(values, default=0.0)


def most_steps(count: int, probes: int) -> int:
    """Return the most values that a bisection tries of `count`."""
    first = min(count, probes + 2)
    widest = math.ceil((count - 1) / (probes + 1))
    return first + (math.ceil(math.log2(widest)) if widest > 1 else 0)


def _largest_fall(values: Sequence[float]) -> float:
    """Return how far a sequence falls at most below a value that comes earlier; at least 0."""
    most = itertools.accumulate(values, max)
    return max((top - value for top, value in zip(most, values, strict=True)), default=0.0)
