"""Bounds bound: MIN misses least, and neither more memory nor a faster link makes a run slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workloads import TINY_CONFIG, plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.bounds import BOUND_KEYS, min_hits, verdict
from moesim.errors import ScenarioError
from moesim.policies import find, names
from moesim.simulate import Outcome, Plan, bounds_of, result_of, simulate, summarise
from moesim.trace import Trace

# Policies that load only what is asked for; `static` starts loaded, and is none of them.
DEMAND_POLICIES = [name for name in names("eviction") if name != "static"]


def crowd(seed: int = 0) -> Trace:
    return tiny_trace(requests=6, prompt_tokens=5, output_tokens=8, seed=seed, stickiness=0.4)


def hits(outcome: Outcome) -> int:
    return sum(outcome.ledger.hits) + sum(outcome.ledger.late_hits)


def no_prefetch(seed: int, **changes: Any) -> tuple[dict[str, Any], Trace]:
    scenario, trace = random_case(seed, **changes)
    scenario["prefetch"] = {"policy": "none"}
    return scenario, trace


# --- MIN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("slots", [0, 1, 7, 16, 25, 32])
def test_min_hits_at_least_as_often_as_any_demand_policy(slots: int, scope: str) -> None:
    """On the run's own logged events, the same for all as nothing depends on time here."""
    scores = {}
    for policy in DEMAND_POLICIES:
        cache = {"policy": policy, "slots": slots, "scope": scope}
        outcome = run_on(plan_of(tiny_scenario(cache=cache), crowd()))
        scores[policy] = hits(outcome)
        assert scores[policy] <= min_hits(outcome, outcome.ledger.layer_events()), policy
    assert scores["min"] == max(scores.values())
    if slots in (7, 16, 25):
        others = {name: score for name, score in scores.items() if not name.startswith("min")}
        assert scores["min"] > max(others.values())


@pytest.mark.parametrize("block", range(4))
def test_min_bounds_every_run_without_prefetch_whenever_requests_arrive(block: int) -> None:
    for seed in range(block, 80, 4):
        scenario, trace = no_prefetch(8000 + seed)
        if scenario["cache"]["policy"] == "static":
            scenario["cache"]["policy"] = "lru"
        outcome = run_on(plan_of(scenario, trace))
        assert hits(outcome) <= min_hits(outcome, outcome.ledger.layer_events()), seed


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("replay", ["atomic", "sequential"])
@pytest.mark.parametrize("slots", [0, 5, 14, 32])
def test_live_min_hits_as_often_as_the_offline_score_says(
    slots: int, replay: str, scope: str
) -> None:
    def outcome(policy: str) -> Outcome:
        cache = {"policy": policy, "slots": slots, "scope": scope}
        scenario = tiny_scenario(cache=cache, replay=replay, batching={"token_budget": 9})
        return run_on(plan_of(scenario, crowd(1)))

    other = outcome("fifo")
    assert hits(outcome("min")) == min_hits(other, other.ledger.layer_events())


def test_live_min_beside_prefetching_is_kept_to_its_promise() -> None:
    """Prefetching changes residency, not the events: the future it was promised still comes."""
    scenario = tiny_scenario(cache={"policy": "min", "slots": 12}, prefetch={"policy": "predicted"})
    outcome = run_on(plan_of(scenario, crowd()))
    assert all(one.status == "finished" for one in outcome.requests)


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "poisson", "rate_per_s": 50.0},
        {"kind": "gamma", "rate_per_s": 9.0, "burstiness": 2.0},
    ],
)
def test_live_min_is_refused_where_its_future_depends_on_time(arrivals: Any) -> None:
    scenario = tiny_scenario(cache={"policy": "min"}, workload={"arrivals": arrivals})
    with pytest.raises(ScenarioError) as caught:
        run_on(plan_of(scenario, crowd()))
    (problem,) = caught.value.problems
    assert "cache.policy" in problem
    assert "all requests arrive at once" in problem


def test_a_run_whose_arrivals_are_spread_still_has_its_min_score() -> None:
    scenario = tiny_scenario(
        workload={"arrivals": {"kind": "poisson", "rate_per_s": 50.0}}, cache={"slots": 12}
    )
    outcome = run_on(plan_of(scenario, crowd()))
    summary = bounds_of(outcome, summarise(outcome))
    assert summary["min_hit_rate"] > summarise(outcome)["expert_hit_rate"]


# --- infinite cache, infinite link ----------------------------------------------------------------


def bounds(plan: Plan) -> tuple[Outcome, dict[str, Any]]:
    outcome = simulate(plan)
    return outcome, bounds_of(outcome, summarise(outcome))


@pytest.mark.parametrize("policy", ["lru", "lfu", "random"])
def test_the_infinite_cache_has_compulsory_misses_only(policy: str) -> None:
    cache = {"policy": policy, "slots": 10}
    outcome, summary = bounds(plan_of(tiny_scenario(cache=cache), crowd()))
    seen: set[int] = set()
    accesses = misses = 0
    for union in outcome.ledger.layer_events():
        accesses += len(union)
        misses += len(set(union) - seen)
        seen.update(union)
    assert summary["infinite_cache_hit_rate"] == pytest.approx(1 - misses / accesses)
    roomy = run_on(plan_of(tiny_scenario(cache={"policy": policy, "slots": "100%"}), crowd()))
    assert summarise(roomy)["misses"] == misses
    assert summarise(roomy)["makespan_s"] == summary["infinite_cache_makespan_s"]


@pytest.mark.parametrize("block", range(4))
def test_neither_more_memory_nor_a_faster_link_makes_a_run_longer(block: int) -> None:
    """Where all requests arrive at once, so that steps are composed alike."""
    for seed in range(block, 60, 4):
        scenario, trace = no_prefetch(9000 + seed, at_once=True)
        if scenario["cache"]["policy"] == "static":
            scenario["cache"]["policy"] = "lfu"
        outcome, summary = bounds(plan_of(scenario, trace))
        actual = outcome.now_ns / 1e9
        assert summary["infinite_cache_makespan_s"] <= actual, seed
        assert summary["infinite_link_makespan_s"] <= actual, seed
        latency = summarise(outcome)["e2e_p95_ms"]
        assert summary["infinite_link_e2e_p95_ms"] <= latency, seed
        assert summary["infinite_cache_e2e_p95_ms"] <= latency, seed


@pytest.mark.parametrize("block", range(4))
def test_an_infinite_link_bounds_runs_with_prefetching_too(block: int) -> None:
    for seed in range(block, 60, 4):
        plan = plan_of(*random_case(9500 + seed, at_once=True))
        outcome, summary = bounds(plan)
        assert summary["infinite_link_makespan_s"] <= outcome.now_ns / 1e9, seed


def test_an_infinite_link_leaves_no_wait_for_experts() -> None:
    outcome = simulate(plan_of(tiny_scenario(cache={"slots": 5}), crowd()), free_link=True)
    summary = summarise(outcome)
    assert summary["stall_demand_s"] == summary["stall_late_s"] == summary["h2d_busy_share"] == 0
    assert summary["misses"] > 0
    assert summary["stall_readback_s"] == summary["stall_s"] > 0


def test_the_bounds_do_not_change_the_run() -> None:
    scenario = tiny_scenario(cache={"slots": 9})
    without = result_of(plan_of(scenario, crowd())).summary
    with_bounds = result_of(plan_of({**scenario, "bounds": True}, crowd())).summary
    assert with_bounds.keys() == without.keys(), "a key is there, and null where undefined"
    assert all(with_bounds[key] is not None for key in BOUND_KEYS)
    assert all(without[key] is None for key in BOUND_KEYS)
    changed = {key for key in without if without[key] != with_bounds[key]}
    assert changed == set(BOUND_KEYS)


# --- the verdict ----------------------------------------------------------------------------------


def judged(**changes: float) -> str:
    summary = {
        "stall_demand_s": 8.0,
        "stall_late_s": 0.0,
        "stall_s": 8.5,
        "busy_s": 1.5,
        "expert_hit_rate": 0.3,
        "min_hit_rate": 0.5,
        "infinite_cache_hit_rate": 0.9,
        "makespan_s": 10.0,
        "infinite_cache_makespan_s": 2.0,
        "infinite_link_makespan_s": 2.0,
    }
    return verdict({**summary, **changes})[0]


def test_the_verdict_names_what_to_change_first() -> None:
    assert judged() == "working set"
    assert judged(stall_demand_s=0.2) == "compute"
    assert judged(min_hit_rate=0.8) == "policy"
    assert judged(infinite_cache_makespan_s=9.0) == "link"
    assert judged(expert_hit_rate=0.85, min_hit_rate=0.86, infinite_cache_makespan_s=8.0) == "link"


def test_clairvoyant_policies_are_the_only_bounds_among_policies() -> None:
    marked = [name for name in names("eviction") if find("eviction", name).clairvoyant]
    assert marked == ["min", "min_window"]


@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_live_min_lives_through_layer_events_that_want_nobody(scope: str) -> None:
    ids = np.full((4, 4, 2), -1)
    ids[0], ids[2], ids[3, :2] = [0, 1], [1, 2], [0, 3]
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[4], num_experts=8, model_config=TINY_CONFIG)
    scenario = tiny_scenario(
        cache={"policy": "min", "scope": scope, "slots": 8}, batching={"token_budget": 1}
    )
    outcome = run_on(plan_of(scenario, trace))
    assert sum(outcome.ledger.hits) == min_hits(outcome, outcome.ledger.layer_events()) > 0
