"""Machines that fold time and machines that simulate each event agree, to the nanosecond."""

from __future__ import annotations

import random

import pytest
from layer_events import run_on_five_lanes
from workloads import decisions, everything, plan_of, random_case, run_on, shuffled

from moesim.hardware.topology import CPU, GPU
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.serving.invariants import check_lanes

BLOCKS = 10


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_folded_machine_equals_one_event_per_chunk(block: int, newer: bool) -> None:
    for seed in range(block, 150, BLOCKS):
        plan = plan_of(*random_case(seed, newer=newer))
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


@pytest.mark.parametrize("case", range(8))
def test_simultaneous_events_in_any_order_change_nothing(case: int) -> None:
    plan = plan_of(*random_case(1000 + case))
    expected = everything(run_on(plan))
    for seed in range(25):
        assert everything(run_on(plan, shuffled(seed))) == expected, seed


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_link_four_times_slower_changes_no_decision(block: int, newer: bool) -> None:
    for seed in range(block, 150, BLOCKS):
        scenario, trace = random_case(2000 + seed, at_once=True, newer=newer)
        fast = run_on(plan_of(scenario, trace))
        scenario["hardware"]["h2d"]["bandwidth"] //= 4
        slow = run_on(plan_of(scenario, trace))
        assert decisions(fast) == decisions(slow), seed


@pytest.mark.parametrize("block", range(4))
def test_machines_agree_where_layers_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """And the GPU idles for known causes only, with ids sorted on the host or on the GPU."""
    moved = 0
    for seed in range(block, 32, 4):
        scenario, trace = random_case(9000 + seed)
        if scenario["cache"]["policy"] == "min":  # its rehearsal has one GPU alone
            scenario["cache"] |= {"policy": "lru"}
        plan, rng = plan_of(scenario, trace), random.Random(seed)
        lanes = tuple(rng.choice([GPU, CPU]) for _ in range(plan.cost.shape.num_layers + 1))
        simulated, events = (
            run_on_five_lanes(
                plan,
                machine,
                monkeypatch,
                in_host=(None, 6, 20)[seed % 3],
                lanes=lanes,
                copies_later=True,
                sorts_on_device=seed % 2 == 0,
            )
            for machine in (SimMachine, EventMachine)
        )
        assert everything(simulated) == everything(events), seed
        check_lanes(simulated.ledger, simulated.now_ns)
        moved += simulated.ledger.moved_bytes["states"]
    assert moved > 0
