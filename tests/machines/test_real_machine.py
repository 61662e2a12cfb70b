"""The real machine on every device: the same decisions, and no byte in the wrong place.

`Blocks` replaces the executor. Every weight of an expert is its key, so a computation that reads
the wrong bytes, or a buffer that is overwritten meanwhile, is detected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from late_clock import LateClock
from workloads import buffered_case, decisions, plan_of, random_case, run_on

from moesim.errors import DeviceError, InvariantError, UsageError
from moesim.hardware.hardware import Link
from moesim.hardware.ops import Copy, Experts
from moesim.hardware.topology import GPU, H2D
from moesim.machine.threads import drive
from moesim.machine.work import DEMAND, PREFETCH, Work
from moesim.simulate import Outcome, Plan, build_server, finish

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from moesim.executor import cpu  # noqa: E402
from moesim.executor.cpu import CpuDevice  # noqa: E402
from moesim.executor.device import Device, open_device  # noqa: E402
from moesim.executor.machine import RealMachine  # noqa: E402

SIZE = 512
PATIENCE_S = 60  # a wait this long is a hang


class Blocks:
    """Experts whose weights are their key."""

    def __init__(self, buffers: int, keys: int, device: str = "cpu") -> None:
        values = torch.arange(keys, dtype=torch.float32)[:, None]
        self.host = values.expand(keys, SIZE).contiguous()
        self.buffers = torch.full((buffers, SIZE), -1.0, device=device)
        self.computed: list[int] = []

    def host_of(self, key: int) -> Any:
        return self.host[key]

    def run(self, op: Any, places: Sequence[int] = ()) -> None:
        if isinstance(op, Experts):
            for _ in range(2):  # before and after a moment in which others may do harm
                for key, place in zip(op.keys, places, strict=True):
                    assert bool((self.buffers[place] == key).all()), f"key {key} is not there"
                time.sleep(0.0001)
            self.computed += op.keys

    def fetch(self) -> None:
        pass


def run_real(plan: Plan, device: Device, blocks: Blocks | None = None) -> Outcome:
    keys = plan.trace.num_layers * plan.trace.num_experts
    executor: Any = blocks or Blocks(plan.buffers, keys, device.torch_device)
    machine = RealMachine(executor, device, chunk_bytes=1000, patience_s=PATIENCE_S)
    server = build_server(plan, machine)
    for cache in server.caches:
        for key, slot in cache.slots.items():
            machine.preload(key, slot.number)
    machine.start()
    try:
        drive(server.run())
    finally:
        machine.close()
    return finish(plan, server, machine.now_ns)


@pytest.mark.parametrize("seed", range(10))
def test_it_decides_as_the_simulated_machine_does(seed: int, device: Device) -> None:
    plan = plan_of(*random_case(7000 + seed, at_once=True))
    assert decisions(run_real(plan, device)) == decisions(run_on(plan))


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 6, 7, 8, 9])
def test_it_decides_the_same_with_prefetch_buffers(seed: int, device: Device) -> None:
    plan = plan_of(*buffered_case(seed, at_once=True))
    assert decisions(run_real(plan, device)) == decisions(run_on(plan))


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 6, 7, 8, 9])
def test_cancelled_copies_ahead_keep_the_rules(seed: int, device: Device) -> None:
    """With buffers no decision depends on what could be cancelled; without them slots may."""
    scenario, trace = buffered_case(seed, at_once=True)
    plain = decisions(run_on(plan_of(scenario, trace)))
    scenario["prefetch"]["cancel"] = True
    again = decisions(run_real(plan_of(scenario, trace), device))
    assert [plain[place] for place in (0, 2, 4)] == [again[place] for place in (0, 2, 4)]
    del scenario["prefetch"]["buffers"]
    run_real(plan_of(scenario, trace), device)


def test_arrivals_are_waited_for_in_real_time() -> None:
    scenario, trace = random_case(7001, at_once=True)
    scenario["workload"] = {"arrivals": {"kind": "poisson", "rate_per_s": 100}}
    scenario["cache"] = {"policy": "lru", "slots": 9}
    outcome = run_real(plan_of(scenario, trace), CpuDevice())
    assert outcome.now_ns >= outcome.requests[-1].arrival_ns > 0
    assert all(r.scheduled_ns >= r.arrival_ns for r in outcome.requests)


def test_a_client_on_a_real_machine_waits_for_its_answer_and_thinks() -> None:
    scenario, trace = random_case(7001, at_once=True)
    arrivals = {"kind": "closed", "clients": 1, "think": "2ms"}
    scenario["workload"] = {"requests": 3, "arrivals": arrivals}
    scenario["cache"] = {"policy": "lru", "slots": 9}
    requests = run_real(plan_of(scenario, trace), CpuDevice()).requests
    sent = [request.arrival_ns for request in requests]
    assert sent == [0, *(request.token_ns[-1] + 2_000_000 for request in requests[:-1])]


def test_nothing_outlives_a_run(device: Device) -> None:
    before = threading.active_count()
    run_real(plan_of(*random_case(7002, at_once=True)), device)
    assert threading.active_count() == before


def issued(machine: RealMachine, work: Work) -> Work:
    machine.submit(work)
    return work


def landing_of(key: int, buffer: int, urgency: int = DEMAND, after: Sequence[Work] = ()) -> Work:
    return Work(H2D, Copy(key, SIZE * 4), after, urgency, buffer)


def served(
    machine: RealMachine, script: Callable[[], Any], at_last: Callable[[], object] = int
) -> None:
    machine.start()
    try:
        drive(script())
    finally:
        at_last()
        machine.close()


class HeldDevice(CpuDevice):
    """Begins its first copy and does not end it before `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.release = threading.Event(), threading.Event()

    def submit(self, lane: str, work: Callable[[], None], **given: Any) -> Any:
        if lane == H2D and not self.begun.is_set():
            self.begun.set()
            assert self.release.wait(PATIENCE_S)
        return super().submit(lane, work, **given)


def test_demand_goes_before_what_is_queued_and_not_begun() -> None:
    blocks: Any = Blocks(4, 4)
    device = HeldDevice()
    machine = RealMachine(blocks, device)
    tickets: list[Any] = []

    def script() -> Any:
        for key, priority in ((0, PREFETCH), (1, PREFETCH), (2, DEMAND), (3, PREFETCH)):
            tickets.append(issued(machine, landing_of(key, key, priority)))
            assert device.begun.wait(PATIENCE_S)
        machine.promote(tickets[3])
        device.release.set()
        for ticket in tickets:
            yield from machine.wait_any((ticket,))

    served(machine, script, at_last=device.release.set)
    order = sorted(range(4), key=lambda key: tickets[key].finish_ns)
    assert order == [0, 2, 3, 1]


LINK = Link(1_000_000, SIZE * 4 * 250, SIZE * 4 * 250)  # 1 ms, and 4 ms for an expert


def test_no_copy_over_an_emulated_link_lands_before_its_latency_and_bytes_have_passed() -> None:
    blocks: Any = Blocks(8, 8)
    machine = RealMachine(blocks, CpuDevice(h2d=LINK), chunk_bytes=SIZE * 2)
    tickets: list[Any] = []

    def script() -> Any:
        tickets.extend(issued(machine, landing_of(key, key)) for key in range(8))
        for ticket in tickets:
            yield from machine.wait_any((ticket,))

    served(machine, script)
    for number, ticket in enumerate(tickets, start=1):
        assert ticket.finish_ns - tickets[0].job.issued_ns >= number * 5_000_000


def test_late_wake_ups_of_an_emulated_link_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "time", LateClock(late_ns=300_000))
    device = CpuDevice(h2d=LINK)
    marks = [device.submit(H2D, lambda: None, nbytes=SIZE * 4) for _ in range(8)]
    assert [mark.finish_ns for mark in marks] == [
        number * 5_000_000 + 300_000 for number in range(1, 9)
    ]


def test_a_copy_that_fails_is_an_error_that_names_it(device: Device) -> None:
    scenario, trace = random_case(7003, at_once=True)
    scenario["cache"] = {"policy": "lru", "slots": 9}
    plan = plan_of(scenario, trace)
    keys = plan.trace.num_layers * plan.trace.num_experts
    blocks = Blocks(sum(plan.slots) + plan.scenario.memory.staging, keys, device.torch_device)
    blocks.host = blocks.host[:, : SIZE - 1]  # the rest cannot be read
    # Not the InvariantError of a hang: the failure ends the wait.
    with pytest.raises(DeviceError, match=rf"device '{device.name}' failed at copy of key \d+"):
        run_real(plan, device, blocks)


def test_a_hang_is_an_error_that_lists_what_is_pending(device: Device) -> None:
    blocks: Any = Blocks(1, 1, device.torch_device)
    release = threading.Event()
    blocks.run = lambda op, places=(): release.wait(PATIENCE_S)
    machine = RealMachine(blocks, device, patience_s=0.2)

    def script() -> Any:
        landing = issued(machine, landing_of(0, 0))
        done = issued(machine, Work(GPU, Experts(0, (0,), (1,)), (landing,)))
        later = issued(machine, landing_of(0, 0, after=(done,)))
        yield from machine.wait_any((later,))

    with pytest.raises(InvariantError, match=r"nothing got done.*pending: .*Experts.*copy of key"):
        served(machine, script, at_last=release.set)


def test_bytes_in_the_wrong_place_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = RealMachine(Blocks(2, 2), CpuDevice())  # type: ignore[arg-type]

    computing, overwritten = threading.Event(), threading.Event()

    def too_soon() -> Any:
        landing = issued(machine, landing_of(0, 0))
        yield from machine.wait_any((landing,))
        done = issued(machine, Work(GPU, Experts(0, (0,), (1,))))
        assert computing.wait(PATIENCE_S)
        landing = issued(machine, landing_of(1, 0))  # what is read meanwhile
        yield from machine.wait_any((landing,))
        overwritten.set()
        yield from machine.wait_any((done,))

    def run(op: Any, places: Sequence[int] = ()) -> None:
        computing.set()
        assert overwritten.wait(PATIENCE_S)

    monkeypatch.setattr(machine._executor, "run", run)
    with pytest.raises(InvariantError, match="key 0 in buffer 0 is overwritten while it is comp"):
        served(machine, too_soon, at_last=overwritten.set)


def test_there_is_no_other_device() -> None:
    with pytest.raises(UsageError, match="there is no device 'tpu'"):
        open_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device is available"):
            open_device("cuda")
