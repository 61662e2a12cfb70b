"""Bounds bound: MIN misses least, and neither more memory nor a faster link makes a run slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workloads import TINY_CONFIG, plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.config.units import format_bytes
from moesim.errors import ScenarioError
from moesim.policies import find, names
from moesim.simulate import Outcome, Plan, bounds_of, result_of, simulate, summarise
from moesim.simulate.bounds import BOUND_KEYS, min_hits
from moesim.simulate.verdict import verdict
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
        {"kind": "closed", "clients": 1},
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
        workload={"arrivals": {"kind": "poisson", "rate_per_s": 50.0}},
        cache={"slots": 12},
        bounds=True,
    )
    outcome = simulate(plan_of(scenario, crowd()))
    summary = bounds_of(outcome)
    assert summary["min_hit_rate"] > summarise(outcome)["expert_hit_rate"]


# --- infinite cache, infinite link ----------------------------------------------------------------


def bounds(plan: Plan) -> tuple[Outcome, dict[str, Any]]:
    outcome = simulate(plan)
    return outcome, bounds_of(outcome)


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
def test_neither_a_slot_for_every_expert_nor_a_free_link_makes_a_run_longer(block: int) -> None:
    """Where all requests arrive at once, so that steps are composed alike. Written back or not."""
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


STACK_POLICIES = [name for name in names("eviction") if vars(find("eviction", name)).get("stack")]


@pytest.mark.parametrize("policy", STACK_POLICIES)
def test_more_slots_make_no_run_longer_whose_policy_keeps_what_fewer_would(policy: str) -> None:
    """Of atomic events without prefetching or write-back, where all requests arrive at once."""
    for seed in range(10):
        scenario, trace = no_prefetch(9200 + seed, at_once=True)
        cache = {**scenario["cache"], "policy": policy, "write_back": False}
        cache["admission"] = "bypass" if policy == "static" else cache.get("admission", "bypass")
        each = 4 if cache["scope"] == "per_layer" else 1
        times, loads = [], []
        for slots in range(0, 33, each * (1 + seed % 3)):
            plan = plan_of(
                {**scenario, "replay": "atomic", "cache": {**cache, "slots": slots}}, trace
            )
            outcome = run_on(plan)
            times.append(outcome.now_ns)
            loads.append(sum(outcome.ledger.demand_copies))
        assert times == sorted(times, reverse=True), seed
        assert loads == sorted(loads, reverse=True), seed


def test_with_write_back_more_slots_can_make_a_run_longer() -> None:
    """An expert without a slot is never evicted, so it is never written back."""

    def served(slots: int, *, write_back: bool) -> tuple[int, int]:
        cache = {"policy": "lru", "slots": slots, "write_back": write_back}
        slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "3GB/s"}, "d2h": {"bandwidth": "1GB/s"}}
        outcome = run_on(plan_of(tiny_scenario(hardware=slow, cache=cache), crowd()))
        return outcome.now_ns, hits(outcome)

    (fewer_ns, fewer_hits), (more_ns, more_hits) = (
        served(slots, write_back=True) for slots in (0, 12)
    )
    assert more_hits > fewer_hits
    assert more_ns > fewer_ns
    assert served(12, write_back=False)[0] < served(0, write_back=False)[0]


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


# --- what the bounds start with -------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("arrivals", ["all_at_once", {"kind": "poisson", "rate_per_s": 300}])
@pytest.mark.parametrize(
    "cache",
    [
        {"policy": "static", "slots": 5},
        {"policy": "static", "slots": 26},
        {"policy": "lru", "slots": 21, "initial_layers": 2},
    ],
)
def test_bounds_start_as_loaded_as_the_run(cache: Any, arrivals: Any, scope: str) -> None:
    scenario = tiny_scenario(
        cache={**cache, "scope": scope}, workload={"arrivals": arrivals}, bounds=True
    )
    outcome, found = bounds(plan_of(scenario, crowd()))
    summary = summarise(outcome)
    assert summary["expert_hit_rate"] <= found["min_hit_rate"] <= found["infinite_cache_hit_rate"]
    steps_s = summary["busy_s"] + summary["stall_s"]
    assert found["infinite_cache_time_in_steps_s"] <= steps_s
    assert found["infinite_link_time_in_steps_s"] <= steps_s
    empty = run_on(plan_of(tiny_scenario(cache={"policy": "lru", "slots": "100%"}), crowd()))
    loaded = {key for keys in outcome.loaded for key in keys}
    used = {key for union in outcome.ledger.layer_events() for key in union}
    assert len(used & loaded) > 0
    if arrivals == "all_at_once":
        assert found["infinite_cache_makespan_s"] < summarise(empty)["makespan_s"]


# --- time in steps with each remedy ---------------------------------------------------------------

RARELY = {"kind": "poisson", "rate_per_s": 20.0}
TWO_CLIENTS = {"kind": "closed", "clients": 2, "think": "1ms"}


def time_in_steps_s(outcome: Outcome) -> float:
    return outcome.ledger.stepping_ns / 1e9


def test_live_min_takes_the_time_that_the_policy_remedy_says() -> None:
    """Where all requests arrive at once, the remedy can be run by itself."""
    live = simulate(plan_of(tiny_scenario(cache={"policy": "min", "slots": 12}), crowd()))
    for policy in ("lru", "lfu", "min"):
        scenario = tiny_scenario(cache={"policy": policy, "slots": 12})
        outcome, found = bounds(plan_of(scenario, crowd()))
        assert found["min_time_in_steps_s"] == time_in_steps_s(live), policy
        assert (time_in_steps_s(live) < time_in_steps_s(outcome)) == (policy != "min")


def test_waiting_for_arrivals_is_no_time_that_a_remedy_could_save() -> None:
    """The steps of requests that never meet are those of requests that come one by one."""
    alone = {"batching": {"max_sequences": 1}, "cache": {"slots": 12}, "bounds": True}
    rare, found = bounds(plan_of(tiny_scenario(workload={"arrivals": RARELY}, **alone), crowd()))
    at_once, same = bounds(plan_of(tiny_scenario(**alone), crowd()))
    assert rare.now_ns > 2 * at_once.now_ns, "mostly idle"
    assert time_in_steps_s(rare) == time_in_steps_s(at_once)
    for key in BOUND_KEYS:
        if "time_in_steps" in key or "verdict" in key or "hit_rate" in key:
            assert found[key] == same[key], key


def test_a_run_says_that_its_bounds_are_of_other_steps_where_arrivals_are_spread() -> None:
    def said(**workload: Any) -> bool:
        scenario = tiny_scenario(workload=workload, cache={"slots": 12}, bounds=True)
        notes = result_of(plan_of(scenario, crowd())).summary["notes"]
        return any("bounds are of runs that form their own steps" in note for note in notes)

    assert said(arrivals=RARELY)
    assert not said()


@pytest.mark.parametrize("arrivals", [RARELY, TWO_CLIENTS], ids=["poisson", "closed"])
@pytest.mark.parametrize("block", range(4))
def test_remedies_of_spread_arrivals_time_the_steps_that_the_run_formed(
    block: int, arrivals: Any
) -> None:
    """A remedy that decides as the run did takes as long; free copies take away their waits."""
    for seed in range(block, 60, 4):
        scenario, trace = no_prefetch(9900 + seed)
        scenario |= {"workload": {"arrivals": arrivals}, "bounds": True}
        scenario["cache"]["slots"] = 32  # a slot for every expert, as with the memory remedy
        if scenario["cache"]["policy"] in ("static", "min"):
            scenario["cache"]["policy"] = "lru"
        outcome, found = bounds(plan_of(scenario, trace))
        assert found["infinite_cache_time_in_steps_s"] == time_in_steps_s(outcome), seed
        free = simulate(outcome.plan, free_link=True)
        if len(outcome.requests) == 1:  # then a free link forms the same steps
            assert found["infinite_link_time_in_steps_s"] == time_in_steps_s(free), seed


def test_remedies_are_not_charged_for_steps_that_a_faster_run_would_split() -> None:
    """The slow run batches requests that meet in it; a faster one serves them one by one."""
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "1GB/s"}, "kernel_overhead": "1ms"}
    scenario = tiny_scenario(
        hardware=slow, cache={"slots": 8}, workload={"arrivals": RARELY}, bounds=True
    )
    outcome, found = bounds(plan_of(scenario, crowd()))
    free = simulate(outcome.plan, free_link=True)
    assert free.ledger.num_steps > outcome.ledger.num_steps
    assert found["infinite_link_time_in_steps_s"] < time_in_steps_s(free)
    roomy = simulate(plan_of({**scenario, "cache": {"slots": "100%"}}, crowd()))
    assert roomy.ledger.num_steps > outcome.ledger.num_steps
    assert found["infinite_cache_time_in_steps_s"] < time_in_steps_s(roomy)
    assert found["infinite_cache_makespan_s"] == roomy.now_ns / 1e9


# --- the verdict ----------------------------------------------------------------------------------


def judged(now: int = 100, *, policy: int = 100, slots: int = 100, link: int = 100) -> str:
    return verdict(now, {"policy": policy, "working set": slots, "link": link})[0]


def test_the_verdict_names_the_remedy_that_gains_most() -> None:
    assert judged(policy=40, slots=100, link=100) == "policy"
    assert judged(policy=90, slots=40, link=100) == "working set"
    assert judged(policy=96, slots=91, link=33) == "link"


def test_no_remedy_is_named_that_saves_no_more_than_a_tenth() -> None:
    assert judged() == "compute"
    assert judged(policy=90, slots=90, link=90) == "compute"
    assert judged(policy=89, slots=89, link=89) == "policy"
    assert judged(link=90) == "compute"
    assert judged(link=89) == "link"
    assert judged(slots=90) == "compute"
    assert judged(slots=89) == "working set"


def test_a_dearer_remedy_must_save_a_tenth_more_than_a_cheaper_one() -> None:
    assert judged(policy=30, slots=20, link=20) == "policy"
    assert judged(policy=31, slots=20, link=20) == "working set"
    assert judged(policy=90, slots=30, link=20) == "working set"
    assert judged(policy=90, slots=31, link=20) == "link"
    assert judged(policy=30, slots=90, link=20) == "policy"


def test_a_remedy_that_only_costs_time_is_never_named() -> None:
    assert judged(policy=120, slots=110, link=101) == "compute"
    assert judged(policy=50, slots=110, link=120) == "policy"
    assert verdict(0, {"policy": 0, "working set": 0, "link": 0})[0] == "compute"


def test_a_tenth_is_of_the_time_now_exactly() -> None:
    """In whole nanoseconds: no rounding decides a verdict."""
    assert judged(10**18 + 1, policy=2 * 10**18, slots=2 * 10**18, link=9 * 10**17) == "link"
    assert judged(10**18, policy=2 * 10**18, slots=2 * 10**18, link=9 * 10**17) == "compute"


def test_the_reason_gives_the_time_now_and_with_each_remedy() -> None:
    then = {"policy": 1_010_000_000, "working set": 1_000_000_000, "link": 358_541_540}
    assert verdict(1_100_000_000, then) == (
        "link",
        "copies that take no time would cut the time in steps from 1.10 s to 0.359 s (-67%); "
        "MIN's evictions: 1.01 s (-8%); a slot for every expert (filled at first use): "
        "1.00 s (-9%)",
    )
    then = {"policy": 1_630 * 10**9, "working set": 129 * 10**9, "link": 1_600 * 10**9}
    assert verdict(1_632 * 10**9, then)[1] == (
        "a slot for every expert (filled at first use) would cut the time in steps from 1,632 s "
        "to 129 s (-92%); MIN's evictions: 1,630 s (-0%); copies that take no time: 1,600 s (-2%)"
    )
    assert verdict(100, {"policy": 110, "working set": 95, "link": 92})[1] == (
        "no remedy would save more than a tenth of the 1.00e-07 s in steps; MIN's evictions: "
        "1.10e-07 s (+10%); a slot for every expert (filled at first use): 9.50e-08 s (-5%); "
        "copies that take no time: 9.20e-08 s (-8%)"
    )


NO_READBACK = {"readback_latency": "0us", "d2h": {"latency": "0us"}}


def test_a_verdict_rests_on_the_times_of_the_run() -> None:
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "1GB/s"}}
    fast = {"profile": "rtx-4090", "h2d": {"bandwidth": "900GB/s", "latency": "0us"}}
    for hardware, slots, expected in (
        (slow, 12, "working set"),
        (slow, 32, "link"),
        (fast, 32, "host"),  # a layer waits for the router's choices on their way to the host
        ({**fast, **NO_READBACK}, 32, "compute"),
    ):
        scenario = tiny_scenario(hardware=hardware, cache={"slots": slots})
        _, found = bounds(plan_of(scenario, tiny_trace(output_tokens=200)))
        assert found["verdict"] == expected, (slots, found["verdict_reason"])


def test_a_verdict_of_the_working_set_says_what_the_unused_memory_holds() -> None:
    """And `cache.slots: rest` gives just that many slots."""
    long = tiny_trace(output_tokens=200)
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "1GB/s"}}

    def reason(slots: Any, **memory: Any) -> str:
        scenario = tiny_scenario(hardware=slow, cache={"slots": slots}, memory=memory)
        _, found = bounds(plan_of(scenario, long))
        assert found["verdict"] == "working set"
        reason, _, source = str(found["verdict_reason"]).rpartition("; ")
        assert source.startswith("synthetic routing")
        return reason

    assert "is unused: cache.slots: rest would give 32 of 32 slots" in reason(12)
    assert reason(12).endswith("a slot for every expert fits in 24 GiB")
    filled = plan_of(tiny_scenario(cache={"slots": 12}), long).budget
    expert_bytes = filled.slots_bytes // 12
    tight = filled.used_bytes + 6 * expert_bytes
    rest = tiny_scenario(cache={"slots": "rest"}, memory={"capacity": tight})
    held = sum(plan_of(rest, long).slots)
    assert held > 12 + 4, "a slot a layer more"
    assert f"rest would give {held} of 32 slots" in reason(12, capacity=tight)
    assert reason(12, capacity=tight).endswith(f"does not fit in {format_bytes(tight)}")
    assert "unused" not in reason(12, capacity=filled.used_bytes + 3 * expert_bytes)
    assert "unused" not in reason("rest", capacity=tight)


def test_the_parts_of_the_memory_and_what_is_free_make_its_whole() -> None:
    summary = result_of(plan_of(tiny_scenario(cache={"slots": 12}), crowd())).summary
    parts = ("fixed", "kv", "slots", "staging", "activations", "free")
    assert summary["free_bytes"] > 0
    assert sum(summary[f"{part}_bytes"] for part in parts) == summary["vram_bytes"]


def test_clairvoyant_policies_are_the_only_bounds_among_policies() -> None:
    marked = [name for name in names("eviction") if find("eviction", name).clairvoyant]
    assert marked == ["min", "min_window"]


@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_live_min_skips_layer_events_without_experts(scope: str) -> None:
    ids = np.full((4, 4, 2), -1)
    ids[0], ids[2], ids[3, :2] = [0, 1], [1, 2], [0, 3]
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[4], num_experts=8, model_config=TINY_CONFIG)
    scenario = tiny_scenario(
        cache={"policy": "min", "scope": scope, "slots": 8}, batching={"token_budget": 1}
    )
    outcome = run_on(plan_of(scenario, trace))
    assert sum(outcome.ledger.hits) == min_hits(outcome, outcome.ledger.layer_events()) > 0
