"""The points of a curve: hit rate with its interval, missed bytes and a bound on copy time.

Intervals are percentile bootstrap intervals over requests (Efron and Tibshirani, *An Introduction
to the Bootstrap*, chapter 13). Requests are drawn again with replacement, each with the hits and
accesses that it had in the replay. The replay itself is not repeated: a request meets the cache
that the recorded requests before it left. So the intervals show how requests differ, and not what
another order of requests would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moesim.report.statistics import CONFIDENCE
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.simulate.curve import CurveHits

__all__ = ["RESAMPLES", "CopyLink", "CurvePoint", "Resampling", "curve_points", "rate_interval"]

RESAMPLES: Final = 1000
"""Resamples of the requests, unless others are asked for."""
_SAMPLED_AT_ONCE: Final = 2**22  # weights (resamples x requests) in memory


@dataclass(frozen=True, slots=True)
class CopyLink:
    """The link that copies missed experts; a copy takes latency + bytes / bandwidth."""

    name: str
    bytes_per_s: int
    latency_ns: int = 0

    def busy_ns(self, nbytes: int, copies: int) -> float:
        """Return how long the link is busy with copies of `nbytes` together."""
        return nbytes * 1e9 / self.bytes_per_s + copies * self.latency_ns


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are drawn: the number of resamples, 0 for none, and their seed."""

    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One policy at one capacity.

    `capacity` is slots per layer, `slots` those of all layers. The interval is None without
    resamples, or if fewer than two requests access an expert. Bytes are None where the size of an
    expert is not known, the bound also where there is no link. A token is a row of the trace.
    `bound_ns_per_token` bounds the time of a token from below: that of the link, which copies each
    missed expert, while everything else takes no time.
    """

    policy: str
    capacity: int
    slots: int
    accesses: int
    hits: int
    misses: int
    hit_rate: float
    hit_rate_low: float | None
    hit_rate_high: float | None
    cache_bytes: int | None
    miss_bytes: int | None
    miss_bytes_per_token: float | None
    bound_ns_per_token: float | None

    def as_plain(self) -> dict[str, Any]:
        """Return the point as plain data."""
        return asdict(self)


def curve_points(
    found: CurveHits,
    num_layers: int,
    *,
    expert_bytes: int | None = None,
    link: CopyLink | None = None,
    resampling: Resampling | None = None,
) -> list[CurvePoint]:
    """Return the points of each policy, in the order of the capacities.

    Intervals need hits by request, and `resampling`.
    """
    accesses, rows = int(found.accesses.sum()), int(found.rows.sum())
    points = []
    for policy, hits_RC in found.hits.items():
        interval = None
        if resampling is not None:
            interval = rate_interval(hits_RC, found.accesses, resampling)
        for column, capacity in enumerate(found.capacities):
            hits = int(hits_RC[:, column].sum())
            low, high = (None, None) if interval is None else interval[:, column].tolist()
            misses, slots = accesses - hits, capacity * num_layers
            # Python's integers, because the bytes of a long trace exceed 64 bits.
            nbytes = None if expert_bytes is None else misses * expert_bytes
            busy_ns = None if nbytes is None or link is None else link.busy_ns(nbytes, misses)
            points.append(
                CurvePoint(
                    policy, capacity, slots, accesses, hits, misses, hits / accesses, low, high,
                    None if expert_bytes is None else slots * expert_bytes,
                    nbytes,
                    None if nbytes is None else nbytes / rows,
                    None if busy_ns is None else busy_ns / rows,
                )
            )  # fmt: skip
    return points


def rate_interval(
    hits_RC: npt.NDArray[np.int64], accesses_R: npt.NDArray[np.int64], resampling: Resampling
) -> npt.NDArray[np.float64] | None:
    """Return the lower and upper ends of the 95 % intervals of hit rates, (2, capacities).

    Requests that access no expert are left out. Return None if fewer than two are left.
    """
    used = accesses_R > 0
    count = int(used.sum())
    if count < 2 or not resampling.resamples:
        return None
    # Whole numbers below 2**53 are exact as floats, and floats multiply faster.
    hits_RC, accesses_R = hits_RC[used].astype(np.float64), accesses_R[used].astype(np.float64)
    rng = stream(resampling.seed, "curve bootstrap")
    share = np.full(count, 1 / count)
    rates = []
    left = resampling.resamples
    while left:
        size = min(left, max(1, _SAMPLED_AT_ONCE // count))
        times_SR = rng.multinomial(count, share, size=size).astype(np.float64)
        rates.append((times_SR @ hits_RC) / (times_SR @ accesses_R)[:, None])
        left -= size
    tail = (1 - CONFIDENCE) / 2
    return np.asarray(np.quantile(np.concatenate(rates), [tail, 1 - tail], axis=0))


def groups(points: Sequence[CurvePoint]) -> dict[str, list[CurvePoint]]:
    """Return the points of each policy, by capacity."""
    by_policy: dict[str, list[CurvePoint]] = {}
    for point in points:
        by_policy.setdefault(point.policy, []).append(point)
    return {
        policy: sorted(each, key=lambda point: point.capacity) for policy, each in by_policy.items()
    }
