"""Machines that fold time and machines that simulate each event agree, to the nanosecond."""

from __future__ import annotations

import pytest
from workloads import decisions, everything, plan_of, random_case, run_on, shuffled

from moesim.machine.events import EventMachine

BLOCKS = 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_folded_machine_equals_one_event_per_chunk(block: int) -> None:
    for seed in range(block, 150, BLOCKS):
        plan = plan_of(*random_case(seed))
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


@pytest.mark.parametrize("case", range(8))
def test_simultaneous_events_in_any_order_change_nothing(case: int) -> None:
    plan = plan_of(*random_case(1000 + case))
    expected = everything(run_on(plan))
    for seed in range(25):
        assert everything(run_on(plan, shuffled(seed))) == expected, seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_link_four_times_slower_changes_no_decision(block: int) -> None:
    for seed in range(block, 150, BLOCKS):
        scenario, trace = random_case(2000 + seed, at_once=True)
        fast = run_on(plan_of(scenario, trace))
        scenario["hardware"]["h2d"]["bandwidth"] //= 4
        slow = run_on(plan_of(scenario, trace))
        assert decisions(fast) == decisions(slow), seed
