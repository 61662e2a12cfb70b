"""The run log: observers receive what a run plans, decides and issues, and change nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import simpy
from watched_machines import Watched
from workloads import everything, plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.hardware.ops import Copy, Experts
from moesim.hardware.topology import CPU, GPU
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.policies.batching import Batching, Queue, StepPlan
from moesim.policies.eviction import LRU, CacheContext
from moesim.policies.view import View
from moesim.serving.run_log import (
    Decided,
    DecidedAhead,
    Issued,
    Planned,
    RunLog,
    StepEnded,
    StepStarted,
    listener,
)
from moesim.serving.server import Server
from moesim.simulate import Plan, build_server, simulate
from moesim.simulate.build import universe_of
from moesim.validate import Witness, differences, simulate_observed

CPU_CASES: list[dict[str, Any]] = [
    {"placement": {"policy": "two_queue"}, "cache": {"slots": 9, "policy": "lru"}},
    {"placement": {"policy": "cost"}, "cache": {"slots": 9, "policy": "static"}},
    {
        "placement": {"policy": "cpu_layers", "options": {"layers": 2}},
        "cache": {"slots": "100%"},
    },
    {
        "placement": {"policy": "two_queue"},
        "cache": {"slots": 9, "policy": "lru"},
        "prefetch": {"policy": "oracle"},
    },
]


def cpu_plan(changes: dict[str, Any]) -> Plan:
    trace = tiny_trace(requests=4, prompt_tokens=5, output_tokens=6, seed=1)
    return plan_of(tiny_scenario(timeline={"steps": 1000}, **changes), trace)


@cache
def plans() -> list[Plan]:
    """Return plans with any policies, and plans with experts on the CPU."""
    return [*(plan_of(*random_case(seed)) for seed in range(30)), *map(cpu_plan, CPU_CASES)]


def serve(plan: Plan, *observers: Any) -> Server:
    env = simpy.Environment()
    machine = SimMachine(env, plan.prices(), plan.places.topology)
    server = build_server(plan, machine, observers=observers)
    env.run(until=env.process(server.run()))
    return server


def test_observers_change_nothing() -> None:
    for number, plan in enumerate(plans()):
        alone = everything(run_on(plan))
        for observer in (RunLog(), RunLog(Decided), RunLog(Planned)):
            assert everything(run_on(plan, observers=[observer])) == alone, number


def test_only_an_observer_of_works_makes_the_server_run_layer_by_layer() -> None:
    plan = plan_of(tiny_scenario(cache={"slots": 12}), tiny_trace())
    every = (Planned, StepStarted, Decided, DecidedAhead, StepEnded)
    assert serve(plan, RunLog(*every))._memo is not None
    assert serve(plan, RunLog(Planned), RunLog(Issued))._memo is None


def test_steps_that_are_timed_at_once_have_the_records_of_steps_that_are_walked() -> None:
    compared = 0
    for number, plan in enumerate(plans()):
        timed = RunLog(Planned, StepStarted, Decided, StepEnded)
        walked = RunLog()
        compared += serve(plan, timed)._memo is not None
        serve(plan, walked)
        assert timed.of(Planned) == walked.of(Planned), number
        assert timed.of(StepStarted) == walked.of(StepStarted), number
        assert timed.of(StepEnded) == walked.of(StepEnded), number
        assert list(map(_facts, timed.of(Decided))) == list(map(_facts, walked.of(Decided))), number
    assert compared > 5


def _facts(it: Decided) -> tuple[Any, ...]:
    """Return what is decided, without slots: they belong to one run."""
    event = it.decision
    keys = [[key for key, *_ in part] for part in (event.late, event.loads, event.later)]
    leavers = sorted(event.leavers)
    return it.step, it.cache, event.layer, list(event.ready), keys, event.elsewhere, leavers


def test_every_work_that_the_machine_gets_is_in_the_log_with_its_step() -> None:
    """The machine's own list is the oracle; the times of steps say which step a work belongs to."""
    for number, plan in enumerate(plans()):
        log, env = RunLog(StepStarted, Issued, StepEnded), simpy.Environment()
        machine = Watched(EventMachine(env, plan.prices(), plan.places.topology))
        server = build_server(plan, machine, observers=[log])
        env.run(until=env.process(server.run()))
        issued = log.of(Issued)
        assert [it.work for it in issued] == [asked.work for asked in machine.log], number
        spans = {step.step: step.now_ns for step in log.of(StepStarted)}
        ends = {step.step: step.now_ns for step in log.of(StepEnded)}
        assert list(zip(spans, spans.values(), ends.values(), strict=True)) == [
            row[:3] for row in server.ledger.steps
        ]
        for it, asked in zip(issued, machine.log, strict=True):
            assert spans[it.step] <= asked.issued_ns <= ends[it.step], number


def test_the_steps_of_the_log_are_those_of_the_requests() -> None:
    for number, plan in enumerate(plans()):
        log = RunLog(StepStarted)
        server = serve(plan, log)
        rows = Counter[int]()
        for step in log.of(StepStarted):
            for index, position, tokens in step.parts:
                assert tokens > 0
                assert position >= 0
                rows[index] += tokens
        preempted = server.scheduler.preemptions
        for request in server.requests:
            served = rows[request.index]
            # A preempted request computes some rows again.
            assert served >= request.position if preempted else served == request.position, number


def test_leavers_of_the_log_give_the_residency() -> None:
    """A replay of all decisions on plain sets ends with the keys that each cache holds."""
    evicted = 0
    for number, plan in enumerate(plans()):
        log = RunLog(Decided, DecidedAhead)
        server = serve(plan, log)
        caches = list({id(cache): cache for cache in server.caches}.values())
        held = [set(cache.preloaded) for cache in caches]
        for it in log.records:
            assert isinstance(it, Decided | DecidedAhead)
            if it.decision is None:
                continue
            event, keys = it.decision, held[it.cache]
            keys |= {key for key, *_ in event.loads} | {key for key, _ in event.later}
            keys |= {key for key, *_ in event.elsewhere if key not in event.leavers}
            evicted += len(keys & set(event.leavers))
            keys -= set(event.leavers)
        assert held == [set(cache.slots) for cache in caches], number
    assert evicted > 100


def test_a_copy_ahead_that_gets_no_slot_is_recorded_as_refused() -> None:
    scenario = tiny_scenario(
        cache={"policy": "lru", "slots": "1/layer"},
        prefetch={"policy": "predicted", "options": {"depth": 1}},
    )
    log = RunLog(DecidedAhead)
    server = serve(plan_of(scenario, tiny_trace()), log)
    refused = [it for it in log.of(DecidedAhead) if it.decision is None]
    assert len(refused) == server.ledger.prefetch_refused > 0


def test_a_record_reaches_each_observer_of_its_kind_once() -> None:
    one, two, other = RunLog(Planned), RunLog(), RunLog(StepEnded)
    tell = listener([one, other, two], Planned)
    assert tell is not None
    record = Planned(((0, 0, 1),))
    tell(record)
    assert (one.records, two.records, other.records) == ([record], [record], [])
    assert listener([other], Planned) is None
    assert listener([], Planned) is None


def test_a_log_keeps_the_records_in_the_order_of_the_run() -> None:
    for number, plan in enumerate(plans()):
        log = RunLog()
        serve(plan, log)
        steps = [it.step for it in log.records if not isinstance(it, Planned)]
        assert steps == sorted(steps), number
        ends = {it.step: place for place, it in enumerate(log.records) if type(it) is StepEnded}
        assert list(ends) == sorted(set(steps)), number
        last = {it.step: at for at, it in enumerate(log.records) if not isinstance(it, Planned)}
        assert ends == last, number


# --- replaced policies ----------------------------------------------------------------------------


class LastFirst(Batching):
    """One row of each request, the last request first."""

    name = "last_first"

    def plan(self, queue: Queue) -> StepPlan:
        everyone = [*queue.running, *queue.waiting]
        return [(request, 1) for request in reversed(everyone)][: queue.token_budget]


class Recent(LRU):
    """LRU that notes the layers of its events."""

    def __init__(self, context: CacheContext) -> None:
        super().__init__(context)
        self.layers: list[int] = []

    def decide(self, view: View) -> Any:
        self.layers.append(view.layer)
        return super().decide(view)


def test_a_batching_policy_that_replaces_the_scenarios_own_forms_the_steps() -> None:
    plan = plan_of(tiny_scenario(cache={"slots": 12}), tiny_trace(requests=3))
    log = RunLog(Planned)
    run_on(plan, batching=LastFirst(), observers=[log])
    assert log.of(Planned)[0].plan == ((2, 0, 1), (1, 0, 1), (0, 0, 1))


def test_eviction_policies_that_replace_the_scenarios_own_are_used_by_cache_number() -> None:
    """The scenario's own policy is not even built: it would need a rehearsal."""
    plan = plan_of(tiny_scenario(cache={"policy": "min", "slots": 12}), tiny_trace())
    ours = [
        Recent(CacheContext(count, universe_of(plan, number), "bypass", np.random.default_rng(0)))
        for number, count in enumerate(plan.slots)
    ]
    outcome = simulate(plan, evictions=ours)
    events = outcome.ledger.num_steps
    assert [policy.layers for policy in ours] == [[layer] * events for layer in range(4)]
    lru = simulate(plan_of(tiny_scenario(cache={"policy": "lru", "slots": 12}), tiny_trace()))
    assert outcome.ledger.hits == lru.ledger.hits


# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", CPU_CASES[:3], ids=["two_queue", "cost", "cpu_layers"])
def test_placements_are_the_experts_that_the_cpu_computes_in_layers_of_the_gpu(
    changes: dict[str, Any],
) -> None:
    """The works of the CPU lane are the oracle."""
    witness = Witness()
    server = serve(cpu_plan(changes), witness)
    computed = [
        (it.step, it.layer, key, CPU)
        for it in witness.works
        if it.work.lane == CPU and isinstance(it.work.op, Experts)
        for key in it.work.op.keys
    ]
    assert witness.placements == computed
    assert len(computed) == sum(server.ledger.elsewhere) > 0
    assert sum(server.ledger.demand_copies) == len(witness.misses)


def test_a_layer_event_misses_the_experts_that_run_elsewhere() -> None:
    seen = simulate_observed(cpu_plan(CPU_CASES[0]))
    by_step = Counter[int]()
    for step, misses in zip(seen.events["step"], seen.events["misses"], strict=True):
        by_step[int(step)] += int(misses)
    assert [by_step[step] for step in range(len(seen.steps["step"]))] == list(seen.steps["misses"])
    assert seen.decisions.placements


def test_another_placement_is_a_difference() -> None:
    made = simulate_observed(cpu_plan(CPU_CASES[0])).decisions
    step, layer, key, lane = made.placements[0]
    assert lane != GPU
    other = replace(made, placements=((step, layer, key, GPU), *made.placements[1:]))
    (text,) = differences(made, other)
    assert text.startswith("placement (step, layer, key, lane) number 0")


def test_a_witness_counts_the_bytes_that_the_ledger_counts() -> None:
    for number, plan in enumerate(plans()):
        witness = Witness()
        server = serve(plan, witness)
        issued = witness.nbytes
        moved = server.ledger.moved_bytes
        # Copies that are still under way at the end are issued and not moved.
        for kind, nbytes in moved.items():
            late = 0
            for it in witness.works:
                if it.kind == kind and it.work.finish_ns > server.machine.now_ns:
                    op: Any = it.work.op
                    late += op.nbytes
            assert issued[kind] == nbytes + late, (number, kind)


def test_a_witness_notes_the_victims_of_copies_ahead_and_refusals() -> None:
    scenario = tiny_scenario(
        cache={"policy": "lru", "slots": "3/layer"},
        prefetch={"policy": "predicted", "options": {"depth": 1}},
    )
    witness, log = Witness(), RunLog(DecidedAhead)
    server = serve(plan_of(scenario, tiny_trace()), witness, log)
    left = [keys for _, cause, keys in witness.evictions if cause == "prefetch"]
    copied = [it.decision for it in log.of(DecidedAhead) if it.decision is not None]
    victims = [tuple(event.leavers) for event in copied]
    assert [keys for keys in left if keys] == [keys for keys in victims if keys] != []
    assert left.count(()) == server.ledger.prefetch_refused


def test_misses_of_a_witness_are_the_demand_copies_of_the_log() -> None:
    for plan in plans()[:20]:
        witness = Witness()
        server = serve(plan, witness)
        per_layer = Counter(layer for _, layer, _ in witness.misses)
        copies = enumerate(server.ledger.demand_copies)
        assert per_layer == {layer: count for layer, count in copies if count}
        kinds = {it.kind for it in witness.works if isinstance(it.work.op, Copy)}
        assert kinds <= {"demand", "prefetch", "write_back"}
