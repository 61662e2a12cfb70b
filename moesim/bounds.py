"""Bounds: how far a run is from what no policy, no memory and no link could beat.

MIN is the run's own logged layer events scored again with hindsight; it bounds misses, not
latency. The infinite cache holds every expert once fetched; the infinite link copies for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.metrics import latency_summary, ratio

if TYPE_CHECKING:
    from moesim.policies import Key
    from moesim.simulate import Outcome

BOUND_KEYS = (
    "min_hit_rate",
    "infinite_cache_hit_rate",
    "infinite_cache_makespan_s",
    "infinite_cache_e2e_p95_ms",
    "infinite_link_makespan_s",
    "infinite_link_e2e_p95_ms",
    "verdict",
    "verdict_reason",
)
_COPY_BOUND_SHARE = 0.1


def bounds_summary(
    outcome: Outcome, summary: dict[str, Any], *, cached: Outcome, linked: Outcome
) -> dict[str, Any]:
    """The bounds' keys of `summary.json`, and the verdict: `BOUND_KEYS`.

    `cached` is the run again with a slot for every expert, `linked` with free copies.
    """
    unions = outcome.ledger.layer_events()
    accesses = sum(map(len, unions))
    distinct = len({key for union in unions for key in union})
    result: dict[str, Any] = {
        "min_hit_rate": ratio(min_hits(outcome, unions), accesses),
        "infinite_cache_hit_rate": ratio(accesses - distinct, accesses),
    }
    for name, bound in (("infinite_cache", cached), ("infinite_link", linked)):
        result[f"{name}_makespan_s"] = bound.now_ns / 1e9
        result[f"{name}_e2e_p95_ms"] = latency_summary(bound.requests)["e2e_p95_ms"]
    word, reason = verdict({**summary, **result})
    return {**result, "verdict": word, "verdict_reason": reason}


def min_hits(outcome: Outcome, unions: Sequence[list[Key]]) -> int:
    """Hits of MIN over the run's own layer events, at the run's own capacities."""
    import numpy as np

    from moesim.curve import replay_hits
    from moesim.policies.eviction import MIN, CacheContext
    from moesim.wiring import group_by_cache

    hits = 0
    groups = group_by_cache(outcome.plan, unions)
    for capacity, events in zip(outcome.plan.slots, groups, strict=True):
        context = CacheContext(
            capacity=capacity,
            universe=sorted({key for union in events for key in union}),
            admission="bypass",
            rng=np.random.default_rng(0),
            future=events,
        )
        hits += replay_hits(MIN(context), events)
    return hits


def verdict(summary: dict[str, Any]) -> tuple[str, str]:
    """What to change first: the policy, the working set (memory), the link — or none of them."""
    copying = (summary["stall_demand_s"] or 0) + (summary["stall_late_s"] or 0)
    stepping = (summary["busy_s"] or 0) + (summary["stall_s"] or 0)
    share = ratio(copying, stepping) or 0.0
    if share < _COPY_BOUND_SHARE:
        return "compute", f"waiting for experts takes {share:.0%} of the time in steps"
    mine, best = summary["expert_hit_rate"] or 0.0, summary["min_hit_rate"] or 0.0
    all_in = summary["infinite_cache_hit_rate"] or 0.0
    waiting = f"waiting for experts takes {share:.0%} of the time in steps; "
    if best - mine > all_in - best:
        return "policy", (
            waiting + f"MIN would hit {best:.0%} instead of {mine:.0%} with the same slots"
        )
    slots_help = 1 - summary["infinite_cache_makespan_s"] / summary["makespan_s"]
    link_helps = 1 - summary["infinite_link_makespan_s"] / summary["makespan_s"]
    if slots_help >= link_helps / 2:
        limit = (
            f"even MIN hits only {best:.0%}"
            if mine <= best
            else f"prefetch lifts hits to {mine:.0%}, but not all land in time"
        )
        return "working set", waiting + f"{limit}; all experts resident would hit {all_in:.0%}"
    return "link", (
        waiting
        + f"a faster link saves up to {link_helps:.0%} of the time, more slots {slots_help:.0%}"
    )
