"""Limits: the bounds of a row of a comparison, only where they hold.

Each run has its own bounds, so each row has, too. MIN and an infinite cache bound the hits of runs
that prefetch nothing. An infinite cache bounds the throughput of such runs; an infinite link
bounds that of all runs. Both hold only if all requests arrive at once: otherwise a faster run
forms other steps. No bound holds for a window of a run, because bounds are of whole runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from moesim.report.comparison import Row
from moesim.report.marks import prefetches
from moesim.report.metrics import HITS
from moesim.report.runs import Run
from moesim.report.statistics import estimate
from moesim.report.style import BOUNDS

__all__ = ["HIT_LIMITS", "INFINITE_CACHE", "INFINITE_LINK", "MIN_BOUND", "TIME_LIMITS", "limit"]

MIN_BOUND, INFINITE_CACHE, INFINITE_LINK = BOUNDS


def _hits(key: str) -> Callable[[Run], float]:
    """Return a function from a run to a bound on its hits, in %."""

    def rate(run: Run) -> float:
        unbounded = prefetches(run) or run.windowed
        return math.nan if unbounded else run.value(key) * HITS.scale

    return rate


def _throughput(key: str, *, prefetching: bool) -> Callable[[Run], float]:
    """Return a function from a run to a bound on its output tokens/s, from a makespan's key.

    `prefetching` says whether the bound holds for runs that prefetch.
    """

    def tokens_per_s(run: Run) -> float:
        if run.windowed or not _at_once(run) or (prefetches(run) and not prefetching):
            return math.nan
        # Every bound generates the run's own tokens. A makespan of 0 has no rate.
        return run.value("output_tokens") / (run.value(key) or math.nan)

    return tokens_per_s


HIT_LIMITS: Final = {
    MIN_BOUND: _hits("min_hit_rate"),
    INFINITE_CACHE: _hits("infinite_cache_hit_rate"),
}
"""Bounds of the expert hit rate in %, by their label."""
TIME_LIMITS: Final = {
    INFINITE_CACHE: _throughput("infinite_cache_makespan_s", prefetching=False),
    INFINITE_LINK: _throughput("infinite_link_makespan_s", prefetching=True),
}
"""Bounds of output tokens per second, by their label."""


def limit(row: Row, of: Callable[[Run], float]) -> float:
    """Return a row's bound: its mean over the seeds; NaN if it does not hold or was not computed.

    `of` is an entry of `HIT_LIMITS` or `TIME_LIMITS` and sets the unit.
    """
    return estimate(of(run) for run in row.runs).mean


def _at_once(run: Run) -> bool:
    # A scenario that leaves the key out has the default, which is `all_at_once`.
    value: Any = run.scenario
    for key in ("workload", "arrivals", "kind"):
        value = value.get(key, {}) if isinstance(value, dict) else value
    return value in ("all_at_once", {})
