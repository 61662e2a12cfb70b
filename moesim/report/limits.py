"""Which bounds hold for which rows of a comparison: only those are drawn and printed.

A bound is that of a run, so each row has its own. MIN and an infinite cache bound the hits of runs
that prefetch nothing. An infinite cache bounds the throughput of such runs, an infinite link that
of all runs, and both only where all requests arrive at once: otherwise the steps differ.
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
    def rate(run: Run) -> float:
        return math.nan if prefetches(run) else run.value(key) * HITS.scale

    return rate


def _throughput(key: str, *, prefetching: bool) -> Callable[[Run], float]:
    def tokens_per_s(run: Run) -> float:
        if not _at_once(run) or (prefetches(run) and not prefetching):
            return math.nan
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
    """A bound of a row: its mean over the seeds; NaN where it does not hold or was not computed."""
    return estimate(of(run) for run in row.runs).mean


def _at_once(run: Run) -> bool:
    value: Any = run.scenario
    for key in ("workload", "arrivals", "kind"):
        value = value.get(key, {}) if isinstance(value, dict) else value
    return value in ("all_at_once", {})
