"""All simulated machines agree where experts run on the CPU, lie on disk, and the host takes time.

A run is the same on the folded machine, on that of one event per chunk, with simultaneous events in
any order, and where each step is walked layer by layer. Slower hardware changes no decision that
is not a matter of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from random_lanes import ENGINE, QUIET, Walking, random_lanes_case
from workloads import decisions, everything, plan_of, run_on, shuffled

from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.serving.step_memo import StepMemo
from moesim.simulate import Outcome, summarise

BLOCKS = 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_machines_agree_on_any_lanes(block: int) -> None:
    for seed in range(block, 200, BLOCKS):
        plan = plan_of(*random_lanes_case(seed))
        simulated = run_on(plan)
        for machine in (EventMachine, shuffled(seed), Walking):
            other = run_on(plan, machine)
            assert everything(simulated) == everything(other), (seed, machine)
            assert decisions(simulated) == decisions(other), (seed, machine)
            assert summarise(simulated) == summarise(other), (seed, machine)


@pytest.mark.parametrize("case", range(8))
def test_simultaneous_events_of_any_lanes_in_any_order_change_nothing(case: int) -> None:
    plan = plan_of(*random_lanes_case(1000 + case))
    expected = everything(run_on(plan))
    for seed in range(15):
        assert everything(run_on(plan, shuffled(seed))) == expected, seed


def test_random_cases_have_all_that_lanes_differ_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would compare runs without CPU work, reads or late copies."""
    timed: list[int] = []
    step = StepMemo.step

    def counted(memo: StepMemo, number: int, *given: Any) -> int:
        timed.append(number)
        return step(memo, number, *given)

    monkeypatch.setattr(StepMemo, "step", counted)
    found: Counter[str] = Counter()
    for seed in range(60):
        scenario, trace = random_lanes_case(seed)
        outcome = run_on(plan_of(scenario, trace))
        ledger, moved = outcome.ledger, outcome.ledger.moved_bytes
        found[scenario["placement"]["policy"]] += 1
        found["copied for later"] += (
            scenario["prefetch"]["policy"] == "none" and sum(ledger.prefetch_copies) > 0
        )
        found["copied and on the CPU"] += sum(ledger.demand_copies) * sum(ledger.elsewhere) > 0
        found["read"] += moved["read"] > 0
        found["part of an expert read"] += moved["read"] % outcome.plan.cost.expert_bytes > 0
        found["written back"] += moved["write_back"] > 0
        found["late"] += sum(ledger.late_hits) > 0
        found["layers on the CPU"] += bool(outcome.plan.places.lanes)
        found["pinned in part"] += outcome.plan.places.host.mixed
        found["host stalls"] += sum(ledger.stall_ns[5]) > 0
        found["CPU and timed at once"] += sum(ledger.elsewhere) > 0 and bool(timed)
        engine = outcome.plan.engine
        found["timed at once under an engine"] += bool(engine.gpu) and bool(timed)
        found[f"{engine.name} on both processors"] += bool(engine.gpu) and moved["states"] > 0
        found["interface"] += outcome.plan.scenario.engine.interface == "vulkan"
        timed.clear()
    for name in ("copy", "cpu_layers", "cpu_experts", "cost", "two_queue"):
        assert found.pop(name) >= 5, name
    assert not found.pop("ideal on both processors")  # it has no kernels of its own
    assert len(found) == 14
    assert min(found.values()) > 0, found


# --- decisions and speed --------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def slower_cpu(scenario: dict[str, Any]) -> None:
    scenario["hardware"] |= {"cpu_flops": "1GFLOPS", "cpu_overhead": "77us", "cpu_threads": 1}


def slower_disk(scenario: dict[str, Any]) -> None:
    if "disk" in scenario["hardware"]:
        scenario["hardware"]["disk"] |= {"bandwidth": "200MB/s", "latency": "300us"}


def slower_host(scenario: dict[str, Any]) -> None:
    scenario["hardware"]["host_memory_bandwidth"] = "1GB/s"


def slower_engine(scenario: dict[str, Any]) -> None:
    scenario["engine"] |= {"launch": "61us", "copy_launch": "83us", "layer_event": "200us"}


def decided(outcome: Outcome) -> tuple[Any, ...]:
    """Return what a run decided, lanes included; reads only where none may be left under way."""
    ledger = outcome.ledger
    read = ledger.moved_bytes["read"] if not any(ledger.prefetch_copies) else None
    return *decisions(outcome), list(ledger.elsewhere), read


@pytest.mark.parametrize("change", [slower_cpu, slower_disk, slower_host, slower_engine])
def test_slower_hardware_changes_no_decision_of_placements_without_estimates(
    change: Change,
) -> None:
    """Where all requests arrive at once. `cost` and `two_queue` decide by estimated durations."""
    changed = 0
    for seed in range(2000, 2060):
        scenario, trace = random_lanes_case(seed, at_once=True)
        if scenario["placement"]["policy"] in ("cost", "two_queue"):
            continue
        fast = run_on(plan_of(scenario, trace))
        change(scenario)
        slow = run_on(plan_of(scenario, trace))
        assert decided(fast) == decided(slow), seed
        changed += fast.now_ns != slow.now_ns
    assert changed > 5  # otherwise nothing was slower


@pytest.mark.parametrize("policy", ["cost", "two_queue"])
def test_a_faster_link_copies_more_experts_where_durations_are_estimated(policy: str) -> None:
    """So the rule above cannot hold for these placements; both machines still agree."""
    copied = []
    for bandwidth in ("1GB/s", "500GB/s"):
        scenario, trace = random_lanes_case(3, at_once=True)
        scenario |= {"placement": {"policy": policy}, "cache": {"slots": 4, "policy": "lru"}}
        scenario["hardware"] |= {"h2d": {"bandwidth": bandwidth}, "cpu_flops": "700GFLOPS"}
        scenario["hardware"]["host_memory_bandwidth"] = "60GB/s"
        plan = plan_of(scenario, trace)
        outcomes = [run_on(plan, machine) for machine in (SimMachine, EventMachine)]
        assert everything(outcomes[0]) == everything(outcomes[1])
        copied.append(sum(outcomes[0].ledger.demand_copies))
    assert copied[0] < copied[1]


# --- decisions and engines ------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [QUIET, ENGINE])
def test_policies_and_engines_are_independent_where_all_requests_are_there_at_once(
    profile: str,
) -> None:
    """An engine changes when, never what, unless the scenario leaves it a key of its own."""
    changed = 0
    for seed in range(3000, 3030):
        scenario, trace = random_lanes_case(seed, at_once=True)
        scenario |= {"placement": {"policy": "copy"}, "prefetch": {"policy": "none"}}
        scenario["cache"]["policy"] = "lru"
        scenario["engine"] = {"profile": "ideal"}
        ideal = run_on(plan_of(scenario, trace))
        scenario["engine"] = {"profile": profile}
        other = run_on(plan_of(scenario, trace))
        assert decided(ideal) == decided(other), seed
        changed += ideal.now_ns != other.now_ns
    assert changed > 20
