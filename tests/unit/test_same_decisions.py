"""Bounds that are read from the run itself equal those that are simulated."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from workloads import TINY_CONFIG, plan_of, random_case, tiny_scenario, tiny_trace

import moesim.simulate.simulation as simulation
from moesim.policies.batching import Batching
from moesim.simulate import Outcome, Plan, bounds_of, simulate
from moesim.simulate.bounds import ReplayAtOnce, hindsight, min_hits
from moesim.simulate.same_decisions import (
    BoundTimes,
    decides_alike,
    keeps_all,
    without_copies,
)
from moesim.trace import Trace


def case(seed: int, *, at_once: bool) -> tuple[dict[str, Any], Trace]:
    """Return a random case that copies nothing ahead, often with a slot for every expert."""
    scenario, trace = random_case(seed, at_once=at_once)
    rng = random.Random(seed)
    scenario |= {"prefetch": {"policy": "none"}, "bounds": True}
    if rng.random() < 0.8:
        scenario |= {"replay": "atomic"}
        scenario["cache"].pop("write_back", None)
    if rng.random() < 0.3:
        scenario["cache"]["slots"] = "100%"
    return scenario, trace


def all_simulated(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the bounds of a run with every one of them simulated."""
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "without_copies", lambda outcome: None)
        patch.setattr(simulation, "keeps_all", lambda outcome, used: False)
        patch.setattr(simulation, "decides_alike", lambda plan: False)
        return bounds_of(outcome)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("block", range(4))
def test_bounds_are_the_same_whether_they_are_read_or_simulated(
    block: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(block, 40, 4):
        outcome = simulate(plan_of(*case(12_000 + seed, at_once=at_once)))
        assert bounds_of(outcome) == all_simulated(outcome, monkeypatch), seed


def test_many_of_these_bounds_are_read() -> None:
    outcomes = [simulate(plan_of(*case(12_000 + seed, at_once=True))) for seed in range(40)]
    kept = [keeps_all(each, each.ledger.used_keys()) for each in outcomes]
    assert sum(without_copies(each) is not None for each in outcomes) >= 20
    assert sum(kept) >= 5


def served(**changes: Any) -> Plan:
    scenario = tiny_scenario(**{"cache": {"slots": 12}, "bounds": True, **changes})
    return plan_of(scenario, tiny_trace(requests=5, prompt_tokens=9, output_tokens=6))


def simulations(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return which bounds of a plan are simulated."""
    outcome, names = simulate(plan), []

    def counted(*arguments: Any, what: str, **options: Any) -> Outcome:
        names.append(what)
        return simulate(*arguments, what=what, **options)

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "simulate", counted)
        bounds_of(outcome)
    return names


SPREAD = {"arrivals": {"kind": "poisson", "rate_per_s": 50.0}}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["MIN", "infinite cache"]),
        ({"cache": {"slots": "100%"}}, ["MIN"]),
        ({"workload": SPREAD}, ["MIN", "infinite cache", "infinite link", "infinite cache"]),
        ({"workload": SPREAD, "cache": {"slots": "100%"}}, ["MIN", "infinite link"]),
        ({"prefetch": {"policy": "oracle"}}, ["MIN", "infinite cache", "infinite link"]),
        ({"replay": "sequential"}, ["MIN", "infinite cache", "infinite link"]),
    ],
)
def test_a_bound_is_simulated_only_where_it_may_decide_otherwise(
    changes: dict[str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert simulations(served(**changes), monkeypatch) == names


@pytest.mark.parametrize("prefill", ["recorded", "skip"])
def test_a_free_link_saves_the_waits_for_copies_and_nothing_else(prefill: str) -> None:
    plan = served(workload={"prefill": prefill})
    outcome = simulate(plan)
    times = without_copies(outcome)
    assert times is not None
    assert times == BoundTimes.of(simulate(plan, free_link=True))
    saved_ns = outcome.ledger.stepping_ns - times.stepping_ns
    assert saved_ns == sum(map(sum, outcome.ledger.copy_stalls_ns)) > 0


def test_times_of_an_engine_that_takes_time_to_copy_are_simulated() -> None:
    plan = served()
    slow = replace(plan, engine=replace(plan.engine, copy_ns=10_000))
    assert without_copies(simulate(slow)) is None


def test_a_policy_that_drops_what_it_used_is_not_its_own_bound() -> None:
    outcome = simulate(served(cache={"slots": "100%", "policy": "drop_after_use"}))
    assert not keeps_all(outcome, outcome.ledger.used_keys())


@pytest.mark.parametrize(
    ("cache", "kept"),
    [
        ({"slots": "100%"}, True),
        ({"slots": "100%", "policy": "drop_after_use"}, False),  # it misses no key twice, either
        ({"slots": "7/layer"}, False),  # enough for this run, and not a slot for every expert
    ],
)
def test_a_run_of_one_step_is_its_own_bound_if_it_has_all_slots_and_uses_them(
    cache: dict[str, Any], kept: bool
) -> None:
    scenario = tiny_scenario(cache=cache, bounds=True)
    outcome = simulate(plan_of(scenario, tiny_trace(requests=1, prompt_tokens=3, output_tokens=1)))
    assert outcome.ledger.num_steps == 1
    assert keeps_all(outcome, outcome.ledger.used_keys()) is kept


def test_min_hits_as_often_as_its_run() -> None:
    outcome = simulate(served())
    assert decides_alike(outcome.plan)
    summary = bounds_of(outcome)
    unions = outcome.ledger.layer_events()
    assert summary["min_hit_rate"] == min_hits(outcome, unions) / sum(map(len, unions))


def test_steps_are_replayed_at_once_without_a_look_at_the_queue() -> None:
    plan = served(workload=SPREAD)
    outcome = simulate(plan)
    asked: list[int] = []

    class Watched(ReplayAtOnce):
        def plan(self, queue: Any) -> Any:
            asked.append(len(queue.waiting))
            return super().plan(queue)

    schedule = outcome.repeated
    assert schedule is not None
    # The scheduler shows the whole queue to a policy whose `ready` is its own.
    assert ReplayAtOnce(schedule).ready.__func__ is Batching.ready  # type: ignore[attr-defined]
    again = simulate(plan, batching=Watched(schedule), at_once=True)
    assert [row[3:7] for row in again.ledger.steps] == [row[3:7] for row in outcome.ledger.steps]
    assert len(asked) == len(schedule)


def test_layer_events_and_what_min_knows_of_them_take_few_bytes_for_each_key() -> None:
    trace = tiny_trace(requests=4, num_experts=100)
    config = {**TINY_CONFIG, "num_local_experts": 100}
    plan = plan_of(tiny_scenario(), trace.with_meta(model_config=config))
    outcome = simulate(plan)
    events = outcome.ledger.layer_events()
    assert max(map(max, events)) > 256
    assert events.flat.nbytes == 2 * len(events.flat)
    assert outcome.ledger.layer_events().flat is events.flat  # not a copy for each reader
    for policy in hindsight(outcome, events):
        assert policy.future.flat.nbytes == 2 * len(policy.future.flat)
        assert policy.following.flat.nbytes == 4 * len(policy.future.flat)
