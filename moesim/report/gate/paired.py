"""Paired changes: how a metric of a run differs from that of a baseline, and how sure that is.

Pairs cancel what both runs share. Two kinds exist:
- *Several seeds*: each seed is one pair of runs. The interval is a t-interval over the pairs
  (`moesim.report.statistics`).
- *One seed*: latencies belong to requests, and both runs serve the same requests. A bootstrap draws
  requests, the same ones from both runs (Efron and Tibshirani, *An Introduction to the Bootstrap*,
  1993, chapter 13: percentile intervals). It says how far the change depends on which requests the
  workload has. Requests of one run share batches and caches, so the interval does not say what
  another order of arrivals would give: several seeds do.

A number of a whole run, like its throughput, has no pairs under one seed, and so no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from moesim.report.gate.samples import RequestPairs, Sample
from moesim.report.runs import Run
from moesim.report.statistics import CONFIDENCE, Estimate, difference, estimate
from moesim.streams import stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Change", "Interval", "change_of"]

_RESAMPLES: Final = 2000
_FEWEST_RESAMPLES: Final = 200
_MOST_VALUES: Final = 2 * 10**8
"""The most values that all resamples of one run together read; more would take seconds."""
_FEWEST_REQUESTS: Final = 10


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Change:
    """A metric of a run beside that of a baseline, in the metric's unit; NaN where undefined.

    With several seeds, `value` and `baseline` are means, and the changes are means over pairs.
    `relative` is a share of the baseline. Each interval is None where no pairing is possible.
    `basis` says how the intervals were made, or why there are none.
    """

    metric: str
    value: float
    baseline: float
    absolute: float
    relative: float
    absolute_interval: Interval | None
    relative_interval: Interval | None
    basis: str


def change_of(
    metric: str, runs: Sequence[Run], baselines: Sequence[Run], requests: RequestPairs
) -> Change:
    """Return the change of a metric between runs and baselines, paired in their order.

    `requests` are those of the only pair; they are read if there are no other pairs.
    """
    values, bases = ([run.value(metric) for run in each] for each in (runs, baselines))
    absolute = difference(values, bases, relative=False)
    relative = difference(values, bases)
    ends: tuple[Interval | None, Interval | None]
    if len(runs) > 1:
        ends = _of_seeds(absolute), _of_seeds(relative)
        basis = f"95 % t-interval over {absolute.n} seeds, paired by seed"
        if absolute.n < 2:
            basis = "no interval: under two seeds define it in both runs"
    else:
        found = _of_requests(metric, requests, runs[0].seed or 0)
        ends, basis = (found.absolute, found.relative), found.basis
    return Change(
        metric,
        estimate(values).mean,
        estimate(bases).mean,
        absolute.mean,
        relative.mean,
        *ends,
        basis,
    )


def _of_seeds(change: Estimate) -> Interval | None:
    return None if change.half is None else Interval(change.low, change.high)


class _Found(NamedTuple):
    absolute: Interval | None
    relative: Interval | None
    basis: str


def _of_requests(metric: str, requests: RequestPairs, seed: int) -> _Found:
    """Return the bootstrap intervals of a metric of requests, or why there are none."""
    pair = requests.samples(metric)
    if isinstance(pair, str):
        return _Found(None, None, f"no interval: {pair}")
    after, before = pair
    if reason := _too_few(after):
        return _Found(None, None, f"no interval: {reason}")
    values, bases = _bootstrap(after, before, seed)
    count = f"{after.requests} requests"
    rough = ""
    if after.beyond < 5:
        rough = f"; rough, {after.beyond:.1f} values of {len(after.values)} lie beyond"
    return _Found(
        _ends(values - bases),
        _ends(values / bases - 1) if (bases > 0).all() else None,
        f"95 % percentile interval of a bootstrap over {count}, paired by request{rough}",
    )


def _too_few(sample: Sample) -> str:
    """Return why a sample is too small for an interval; "" if it is large enough."""
    if sample.requests < _FEWEST_REQUESTS:
        return f"{sample.requests} requests are too few to draw from; {_FEWEST_REQUESTS} are needed"
    if sample.beyond < 1:
        return (
            f"of {len(sample.values)} values fewer than one lies beyond p{sample.percentile:g}, so "
            "it is near the largest, of which a bootstrap says nothing"
        )
    return ""


def _bootstrap(after: Sample, before: Sample, seed: int) -> tuple[Floats, Floats]:
    """Return the statistic of both samples for each resample of their requests."""
    import numpy as np

    rng = stream(seed, "gate")
    fitting = _MOST_VALUES // max(1, len(after.values))
    resamples = max(_FEWEST_RESAMPLES, min(_RESAMPLES, fitting))
    drawn = np.empty((2, resamples))
    for place in range(resamples):
        counts = np.bincount(rng.integers(after.requests, size=after.requests),
                             minlength=after.requests)  # fmt: skip
        drawn[:, place] = after.statistic(counts), before.statistic(counts)
    return drawn[0], drawn[1]


def _ends(changes: Floats) -> Interval | None:
    import numpy as np

    tail = 50 * (1 - CONFIDENCE)
    defined = changes[~np.isnan(changes)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, (tail, 100 - tail)).tolist()
    return Interval(low, high) if math.isfinite(low) and math.isfinite(high) else None
