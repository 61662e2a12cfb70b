"""The same server decides the same on sleeping threads as in virtual time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from workloads import buffered_case, decisions, plan_of, random_case, run_on

from moesim.errors import InvariantError
from moesim.hardware.ops import Copy
from moesim.machine import threads
from moesim.machine.threads import ThreadMachine, drive
from moesim.machine.work import Work
from moesim.simulate import Outcome, Plan, SimPrices, build_server, finish


def run_on_threads(plan: Plan, speed: float = 200.0) -> Outcome:
    machine = ThreadMachine(SimPrices(plan.cost), speed=speed)
    try:
        server = build_server(plan, machine)
        drive(server.run())
    finally:
        machine.close()
    return finish(plan, server, machine.now_ns)


@pytest.mark.parametrize("seed", range(12))
def test_threads_decide_as_the_simulated_machine_does(seed: int) -> None:
    plan = plan_of(*random_case(3000 + seed, at_once=True))
    assert decisions(run_on_threads(plan)) == decisions(run_on(plan))


@pytest.mark.parametrize("seed", [1, 3, 7, 9])
def test_threads_decide_the_same_with_prefetch_buffers(seed: int) -> None:
    plan = plan_of(*buffered_case(3000 + seed, at_once=True))
    assert decisions(run_on_threads(plan)) == decisions(run_on(plan))


def test_no_thread_outlives_its_machine() -> None:
    before = threading.active_count()
    run_on_threads(plan_of(*random_case(3100, at_once=True)))
    assert threading.active_count() == before


def test_a_stuck_wait_is_an_error_that_lists_what_is_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_STUCK_S", 0.05)
    plan = plan_of(*random_case(3000, at_once=True))
    machine = ThreadMachine(SimPrices(plan.cost))
    never = Work("h2d", Copy(0, 1))
    try:
        machine.submit(Work("h2d", Copy(7, 1), (never,)))
        with pytest.raises(InvariantError, match="Copy\\(key=7"):
            drive(iter_wait(machine, never))
    finally:
        machine.close()


def iter_wait(machine: ThreadMachine, ticket: Any) -> Any:
    yield from machine.wait_any((ticket,))
