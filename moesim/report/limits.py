"""Limits: the bounds of a row of a comparison, only where they hold.

Each run has its own bounds, so each row has, too. MIN and an infinite cache bound the hits of runs
that prefetch nothing; MIN only where all experts have the same size. An infinite cache bounds the
throughput of such runs if no expert runs on the CPU: a slot is filled by a copy, which can take
longer than the CPU. An infinite link bounds the throughput of all runs. Both hold only if all
requests arrive at once: otherwise a faster run forms other steps. No bound holds for a window of a
run, because bounds are of whole runs. A row has a bound only if each of its seeds has it.
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


def _hits(key: str, *, sizes: bool = True) -> Callable[[Run], float]:
    """Return a function from a run to a bound on its hits, in %.

    `sizes` says whether the bound holds for experts of unequal sizes.
    """

    def rate(run: Run) -> float:
        unequal = run.summary.get("expert_sizes") == "unequal"
        unbounded = prefetches(run) or run.windowed or (unequal and not sizes)
        return math.nan if unbounded else run.value(key) * HITS.scale

    return rate


def _throughput(key: str, *, every_run: bool) -> Callable[[Run], float]:
    """Return a function from a run to a bound on its output tokens/s, from a makespan's key.

    `every_run` says whether the bound also holds for runs that prefetch or use the CPU.
    """

    def tokens_per_s(run: Run) -> float:
        bounded = every_run or not (prefetches(run) or run.placement)
        if run.windowed or not _at_once(run) or not bounded:
            return math.nan
        # Every bound generates the run's own tokens. A makespan of 0 has no rate.
        return run.value("output_tokens") / (run.value(key) or math.nan)

    return tokens_per_s


HIT_LIMITS: Final = {
    MIN_BOUND: _hits("min_hit_rate", sizes=False),
    INFINITE_CACHE: _hits("infinite_cache_hit_rate"),
}
"""Bounds of the expert hit rate in %, by their label."""
TIME_LIMITS: Final = {
    INFINITE_CACHE: _throughput("infinite_cache_makespan_s", every_run=False),
    INFINITE_LINK: _throughput("infinite_link_makespan_s", every_run=True),
}
"""Bounds of output tokens per second, by their label."""


def limit(row: Row, of: Callable[[Run], float]) -> float:
    """Return a row's bound: its mean over the seeds; NaN if it does not hold or was not computed.

    `of` is an entry of `HIT_LIMITS` or `TIME_LIMITS` and sets the unit.
    """
    bounds = [of(run) for run in row.runs]
    # The mean of a part of the seeds does not bound the mean of all of them.
    return math.nan if any(map(math.isnan, bounds)) else estimate(bounds).mean


def _at_once(run: Run) -> bool:
    # A scenario that leaves the key out has the default, which is `all_at_once`.
    value: Any = run.scenario
    for key in ("workload", "arrivals", "kind"):
        value = value.get(key, {}) if isinstance(value, dict) else value
    return value in ("all_at_once", {})
