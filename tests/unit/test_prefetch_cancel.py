"""Cancelled copies ahead: what turns out useless before it starts does not use the link."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from layer_events import run_on_five_lanes
from watched_machines import Watched, check_buffers, enlist, watch
from workloads import buffered_case, decisions, everything, plan_of, run_on, tiny_scenario

from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.simulate import Outcome, summarise
from moesim.trace import Trace

BLOCKS = 4
both_machines = pytest.mark.parametrize("make", [SimMachine, EventMachine])
SLOW = {"profile": "rtx-4090", "h2d": {"bandwidth": 10**9}}
"""A copy takes 3 ms, longer than all computations of a step."""


def cancelling_case(seed: int, *, buffers: bool | None = None) -> tuple[dict[str, Any], Trace]:
    """Return a random case that cancels copies ahead, in half of all cases without buffers."""
    scenario, trace = buffered_case(seed)
    scenario["prefetch"]["cancel"] = True
    if buffers is False or (buffers is None and random.Random(-seed).random() < 0.5):
        del scenario["prefetch"]["buffers"]
    return scenario, trace


class Names(Prefetch):
    """Asks once for four experts, at the start of the third step."""

    def wanted(self, view: View) -> Any:
        self.steps = getattr(self, "steps", 0) + (view.layer < 0)
        return [5, 6, 7, 4] if view.layer < 0 and self.steps == 3 else ()


def served(monkeypatch: pytest.MonkeyPatch, make: Any, **keys: Any) -> tuple[Outcome, Watched]:
    """Serve a trace of one layer, top-1, on a slow link: experts 0, 0, 7 and 0."""
    name = enlist(monkeypatch, "prefetch", Names)
    rows = np.array([0, 0, 7, 0]).reshape(-1, 1, 1)
    scenario = tiny_scenario(
        hardware=SLOW, cache={"slots": 8}, prefetch={"policy": name, "cancel": True, **keys}
    )
    return watch(plan_of(scenario, costed_trace(rows, prompt=1)), make)


def prefetched(machine: Watched) -> list[int]:
    """Return the keys whose copies ahead were finished, in order."""
    return [asked.keys[0] for asked in machine.on("h2d") if asked.priority]


@both_machines
def test_queued_wrong_guesses_are_cancelled_and_the_running_one_lands(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """Expert 5 is on the link at the layer event, 6 and 4 are queued, and 7 is wanted."""
    outcome, machine = served(monkeypatch, make, buffers=4)
    assert prefetched(machine) == [5, 7]
    summary, nbytes = summarise(outcome), outcome.plan.cost.expert_bytes
    assert summary["prefetch_cancelled"] == 2
    assert summary["prefetch_bytes"] == 2 * nbytes
    assert summary["prefetch_wasted_bytes"] == nbytes
    assert summary["prefetch_late_bytes"] == nbytes
    assert set(outcome.caches[0].slots) == {0, 7}


@both_machines
def test_without_the_key_all_guesses_are_copied(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    outcome, machine = served(monkeypatch, make, buffers=4, cancel=False)
    issued = [asked.keys[0] for asked in machine.log if asked.lane == "h2d" and asked.priority]
    assert issued == [5, 6, 7, 4]
    assert machine.cancelled == []
    assert summarise(outcome)["prefetch_cancelled"] == 0
    assert summarise(outcome)["prefetch_wasted_bytes"] == 3 * outcome.plan.cost.expert_bytes


@both_machines
def test_without_buffers_a_cancelled_guess_gives_back_its_slot(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    outcome, machine = served(monkeypatch, make)
    assert prefetched(machine) == [5, 7]
    assert set(outcome.caches[0].slots) == {0, 5, 7}  # 5 had started, so it stays
    assert outcome.ledger.prefetch_cancelled == 2
    assert outcome.ledger.prefetch_wasted == 0
    assert summarise(outcome)["prefetch_unused_bytes"] == outcome.plan.cost.expert_bytes


@both_machines
def test_a_guess_that_leaves_its_slot_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """Experts 4 to 6 of layer 1 take the slots. Two misses of layer 0 push out the first two.

    The copy of the first has started, so it lands. The third has started at the event of layer 1.
    """

    class Early(Prefetch):
        def wanted(self, view: View) -> Any:
            self.steps = getattr(self, "steps", 0) + (view.layer < 0)
            return [12, 13, 14] if view.layer < 0 and self.steps == 2 else ()

    name = enlist(monkeypatch, "prefetch", Early)
    rows = np.array([[[0, 1], [2, 3]]] * 2)
    scenario = tiny_scenario(
        hardware=SLOW,
        cache={"slots": 3, "scope": "global"},
        prefetch={"policy": name, "cancel": True},
    )
    outcome, machine = watch(plan_of(scenario, costed_trace(rows, prompt=1)), make)
    assert [work.op.key for work in machine.cancelled] == [13]
    assert prefetched(machine) == [12, 14]
    assert (outcome.ledger.prefetch_cancelled, outcome.ledger.prefetch_wasted) == (1, 2)


@pytest.mark.parametrize("buffers", [False, True])
def test_a_slot_whose_copy_was_cancelled_waits_as_that_copy_did_and_has_no_expert(
    buffers: bool,
) -> None:
    """With write-backs so slow that the cancelled copy still waited for one.

    The router is decoupled, because other ids come back only after the write-backs.
    """
    follow = 0
    for seed in range(60):
        scenario, trace = cancelling_case(1 + 5 * (seed // 4) + seed % 4, buffers=buffers)
        scenario["cache"] = {"policy": "lru", "slots": 1 + seed % 12, "write_back": True}
        slow_back = {"bandwidth": 10**8}
        scenario["hardware"] |= {"d2h": slow_back}
        _, machine = watch(plan_of(scenario, trace.with_meta(router="decoupled")))
        follow += check_buffers(machine)
    assert follow > 0


@pytest.mark.parametrize("block", range(BLOCKS))
def test_machines_agree_and_cancelled_copies_are_in_no_sum(block: int) -> None:
    cancelled = 0
    for seed in range(block, 120, BLOCKS):
        plan = plan_of(*cancelling_case(seed))
        outcome = run_on(plan)
        assert everything(outcome) == everything(run_on(plan, EventMachine)), seed
        ledger, summary = outcome.ledger, summarise(outcome)
        names = ("useful", "late", "wasted", "unused")
        copied = sum(summary[f"prefetch_{name}_bytes"] for name in names)
        assert copied == sum(ledger.prefetch_bytes), seed
        assert all(row[11] >= 0 for row in ledger.steps), seed  # bytes of a step
        assert min(ledger.prefetch_copies) >= 0
        assert summary["prefetch_cancelled"] == ledger.prefetch_cancelled
        cancelled += ledger.prefetch_cancelled
    assert cancelled > 0


@pytest.mark.parametrize("in_host", [None, 6])
def test_machines_agree_with_host_time_disk_and_cpu(
    monkeypatch: pytest.MonkeyPatch, in_host: int | None
) -> None:
    cancelled = 0
    for seed in range(16):
        scenario, trace = cancelling_case(4001 + 10 * seed)
        scenario["engine"] = {"profile": "ideal", "launch": "3us", "copy_launch": "9us"}
        if scenario["cache"]["policy"] == "min":  # its rehearsal has one GPU alone
            scenario["cache"] |= {"policy": "lru"}
        plan = plan_of(scenario, trace)
        simulated, events = (
            run_on_five_lanes(plan, machine, monkeypatch, in_host=in_host, copies_later=True)
            for machine in (SimMachine, EventMachine)
        )
        assert everything(simulated) == everything(events), seed
        cancelled += simulated.ledger.prefetch_cancelled
    assert cancelled > 0


@pytest.mark.parametrize("block", range(BLOCKS))
def test_machines_agree_where_the_host_takes_time_to_issue(block: int) -> None:
    for seed in range(block, 60, BLOCKS):
        scenario, trace = cancelling_case(600 + seed)
        scenario["engine"] = {"profile": "ideal", "launch": "20us", "copy_launch": "50us"}
        plan = plan_of(scenario, trace)
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_with_buffers_cancelling_changes_no_decision_and_moves_no_more_bytes(block: int) -> None:
    saved = 0
    for seed in range(block, 60, BLOCKS):
        scenario, trace = buffered_case(2000 + seed, at_once=True)
        plain = run_on(plan_of(scenario, trace))
        scenario["prefetch"]["cancel"] = True
        again = run_on(plan_of(scenario, trace))
        hits, _, caches, _, events = decisions(plain)
        assert (hits, caches, events) == (lambda it: (it[0], it[2], it[4]))(decisions(again)), seed
        assert plain.ledger.demand_copies == again.ledger.demand_copies
        nbytes = [it.ledger.moved_bytes["prefetch"] for it in (plain, again)]
        saved += nbytes[0] - nbytes[1]
    assert saved > 0


def test_the_same_run_twice_is_the_same() -> None:
    for seed in range(6):
        assert everything(run_on(plan_of(*cancelling_case(seed)))) == everything(
            run_on(plan_of(*cancelling_case(seed)))
        )
