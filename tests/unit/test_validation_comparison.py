"""Comparing runs of two machines: decisions must agree, times are compared row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simpy
from stand_in_machines import on_threads, simulated
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.errors import UsageError
from moesim.machine.sim import SimMachine
from moesim.policies.eviction.lru import LRU
from moesim.simulate import Plan, SimPrices, build_server
from moesim.validate import Replay, Witness, compare, differences, observe, spread_pct

OPEN = {"arrivals": {"kind": "poisson", "rate_per_s": 300}}


@pytest.mark.parametrize("seed", range(8))
def test_decisions_agree_where_all_requests_arrive_at_once(seed: int) -> None:
    plan = plan_of(*random_case(4000 + seed, at_once=True))
    comparison = compare([on_threads(plan), on_threads(plan)], simulated(plan))
    assert comparison.differences == []
    assert comparison.summary["decisions_equal"] is True


def test_decisions_agree_with_open_arrivals_once_the_schedule_is_replayed() -> None:
    parted = 0
    for seed in range(4000, 4045):
        scenario, trace = random_case(seed)
        if scenario["workload"]["arrivals"] == "all_at_once":
            continue
        plan = plan_of(scenario, trace)
        sooner = simulated(plan, slower=0.001)
        parted += bool(differences(sooner.decisions, simulated(plan).decisions))
        for first in (sooner, on_threads(plan)):
            again = [simulated(plan, first.decisions.schedule)]
            again.append(on_threads(plan, first.decisions.schedule))
            assert [differences(first.decisions, run.decisions) for run in again] == [[], []], seed
    assert parted > 3, "nothing was shown: the schedules agreed by themselves"


def test_a_replay_waits_for_the_arrival_of_the_requests_in_its_step() -> None:
    workload = {**OPEN, "lengths": {"prompt": 8, "output": 8}}
    plan = plan_of(tiny_scenario(workload=workload), tiny_trace(requests=4))
    patient = [tuple((index, 0, 8) for index in range(4))]  # all prompts in one step
    run = simulated(plan, [*patient, *_decodes(4, 8, 8)])
    assert run.steps["sequences"][0] == 4
    assert run.steps["start_ns"][0] == run.requests["arrival_ns"].max() > 0


def _decodes(requests: int, prompt: int, outputs: int) -> list[Any]:
    steps = range(outputs - 1)
    return [tuple((i, prompt + step, 1) for i in range(requests)) for step in steps]


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ([((0, 3, 5),)], "takes request 0 at row 3, but it is at row 0"),
        ([((0, 0, 8),)], "ends after 1 steps"),
    ],
)
def test_a_replay_of_another_workload_says_where_they_part(script: Any, complaint: str) -> None:
    plan = plan_of(tiny_scenario(), tiny_trace(requests=1))
    with pytest.raises(UsageError, match=complaint):
        simulated(plan, script)
    assert Replay(script).name == "replay"


def _other_cache(plan: Plan, **changes: Any) -> Plan:
    cache = plan.scenario.cache.model_copy(update=changes)
    return replace(plan, scenario=plan.scenario.model_copy(update={"cache": cache}))


def test_different_decisions_of_a_machine_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tiny_scenario(cache={"policy": "lru", "slots": "2/layer"}), tiny_trace())
    good = simulated(plan)

    def most_recent(self: LRU, view: Any) -> list[int]:
        for key in view.union:
            self.book[key] = None
        return [self.book.popitem()[0] for _ in range(len(self.book) - self.capacity)]

    with monkeypatch.context() as patch:
        patch.setattr(LRU, "decide", most_recent)
        wrong = simulated(plan)
    comparison = compare([good, wrong], good)
    assert comparison.summary["decisions_equal"] is False
    said = " ".join(comparison.differences)
    assert "eviction" in said
    assert "miss" in said
    assert "demand bytes" in said
    assert not compare([good, good], good).differences


def test_an_observed_policy_sees_as_much_as_before() -> None:
    trace = tiny_trace(requests=6, prompt_tokens=12, output_tokens=2, stickiness=0.0)
    cache = {"policy": "lookahead", "slots": "3/layer"}
    plan = plan_of(
        tiny_scenario(cache=cache, batching={"token_budget": 1, "max_sequences": 1}),
        trace.with_meta(router="decoupled"),
    )
    heard = simulated(plan)
    assert int(heard.steps["misses"].sum()) == sum(run_on(plan).ledger.demand_copies)


def test_each_kind_of_decision_is_compared_by_itself() -> None:
    scenario = tiny_scenario(
        cache={"policy": "lru", "slots": "3/layer"},
        prefetch={"policy": "predicted", "options": {"depth": 1}},
    )
    made = simulated(plan_of(scenario, tiny_trace())).decisions
    assert made.misses
    assert made.prefetches
    assert made.evictions
    for name in ("schedule", "misses", "prefetches", "evictions"):
        other = replace(made, **{name: getattr(made, name)[:-1]})
        assert len(differences(made, other)) == 1, name
    assert differences(made, replace(made, nbytes={**made.nbytes, "readback": 0}))


def test_errors_are_those_of_the_prices_with_their_sign() -> None:
    plan = plan_of(tiny_scenario(cache={"policy": "lru", "slots": "3/layer"}), tiny_trace())
    comparison = compare([simulated(plan)] * 5, simulated(plan, slower=1.1))
    summary = comparison.summary
    for name in ("step_time", "event_time", "ttft", "e2e"):
        assert summary[f"{name}_error_median_pct"] == pytest.approx(10, abs=0.01)
        assert summary[f"{name}_bias_median_pct"] == pytest.approx(10, abs=0.01)
    assert summary["total_time_error_pct"] == pytest.approx(10, abs=0.01)
    assert summary["executor_spread_pct"] == 0
    assert summary["testable"]
    fast = compare([simulated(plan)] * 5, simulated(plan, slower=0.8)).summary
    assert fast["total_time_bias_pct"] == pytest.approx(-20, abs=0.01)
    assert fast["total_time_error_pct"] == pytest.approx(20, abs=0.01)


def test_real_times_are_medians_over_the_runs() -> None:
    plan = plan_of(tiny_scenario(), tiny_trace())
    runs = [simulated(plan, slower=factor) for factor in (1.0, 1.2, 1.0, 9.0, 1.0)]
    summary = compare(runs, simulated(plan)).summary
    assert summary["total_time_error_pct"] == pytest.approx(0, abs=0.01)
    assert summary["executor_spread_pct"] > 400
    assert not summary["testable"]


def test_a_layer_event_lasts_from_its_front_to_its_last_expert() -> None:
    plan = plan_of(
        tiny_scenario(cache={"policy": "lru", "slots": "3/layer"}, timeline={"steps": 1000}),
        tiny_trace(),
    )
    witness = Witness()
    env = simpy.Environment()
    machine = SimMachine(env, SimPrices(plan.cost))
    server = build_server(plan, machine, observers=[witness])
    env.run(until=env.process(server.run()))
    seen = observe(plan, server, witness, machine.now_ns)
    gpu = [row for row in server.ledger.timeline if row[0] == "gpu"]
    for place, (step, layer) in enumerate(
        zip(seen.events["step"].tolist(), seen.events["layer"].tolist(), strict=True)
    ):
        here = [row for row in gpu if row[4:6] == (step, layer)]
        assert seen.events["start_ns"][place] == max(r[3] for r in here if r[1] == "front")
        assert seen.events["finish_ns"][place] == max(r[3] for r in here if r[1] == "experts")
    assert len(seen.events["step"]) == 4 * len(seen.steps["step"])
    by_step = np.bincount(seen.events["step"], weights=seen.events["misses"])
    assert by_step.tolist() == seen.steps["misses"].tolist()


def test_the_spread_is_p90_less_p10_over_the_median() -> None:
    assert spread_pct([100, 101, 102, 103, 104]) == pytest.approx(100 * 3.2 / 102)
    assert spread_pct([5.0]) == 0
