"""The real machine on every device there is: the same decisions, and no byte in the wrong place.

`Blocks` stands for the executor: an expert's weights are its key, over and over, so that whoever
computes from the wrong bytes, or from a buffer that is overwritten meanwhile, is found out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from patience import in_a_quiet_moment
from workloads import decisions, plan_of, random_case, run_on

from moesim.errors import DeviceError, InvariantError, UsageError
from moesim.hardware.hardware import Link
from moesim.hardware.ops import Experts
from moesim.machine.base import DEMAND, GPU, H2D, PREFETCH
from moesim.machine.threads import drive
from moesim.simulate import Outcome, Plan, build_server, finish

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from moesim.machine.real.cpu import CpuDevice  # noqa: E402
from moesim.machine.real.device import DEVICES, Device, open_device  # noqa: E402
from moesim.machine.real.machine import RealMachine  # noqa: E402

SIZE = 512


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


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    try:
        opened = open_device(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


def run_real(plan: Plan, device: Device, blocks: Blocks | None = None) -> Outcome:
    keys = plan.trace.num_layers * plan.trace.num_experts
    buffers = sum(plan.slots) + plan.scenario.memory.staging
    executor: Any = blocks or Blocks(buffers, keys, device.torch_device)
    machine = RealMachine(executor, device, chunk_bytes=1000, patience_s=20)
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


def test_arrivals_are_waited_for_in_real_time() -> None:
    scenario, trace = random_case(7001, at_once=True)
    scenario["workload"] = {"arrivals": {"kind": "poisson", "rate_per_s": 100}}
    scenario["cache"] = {"policy": "lru", "slots": 9}
    outcome = run_real(plan_of(scenario, trace), CpuDevice())
    assert outcome.now_ns >= outcome.requests[-1].arrival_ns > 0
    assert all(r.scheduled_ns >= r.arrival_ns for r in outcome.requests)


def test_nothing_outlives_a_run(device: Device) -> None:
    before = threading.active_count()
    run_real(plan_of(*random_case(7002, at_once=True)), device)
    assert threading.active_count() == before


def served(
    machine: RealMachine, script: Callable[[], Any], at_last: Callable[[], None] = int
) -> None:
    machine.start()
    try:
        drive(script())
    finally:
        at_last()
        machine.close()


def test_demand_goes_before_what_is_queued_and_not_begun() -> None:
    blocks: Any = Blocks(4, 4)
    link = Link(5_000_000, 10**12, 10**12)
    machine = RealMachine(blocks, CpuDevice(h2d=link))
    tickets: list[Any] = []

    def script() -> Any:
        for key, priority in ((0, PREFETCH), (1, PREFETCH), (2, DEMAND), (3, PREFETCH)):
            tickets.append(machine.copy(H2D, key, SIZE * 4, priority, (), key))
            if key == 0:
                time.sleep(0.002)
        machine.promote(tickets[3])
        for ticket in tickets:
            yield from machine.wait_any((ticket,))

    served(machine, script)
    order = sorted(range(4), key=lambda key: tickets[key].finish_ns)
    assert order == [0, 2, 3, 1]


def test_an_emulated_link_takes_its_time_and_no_more() -> None:
    in_a_quiet_moment(_emulate_a_link)


def _emulate_a_link() -> None:
    blocks: Any = Blocks(8, 8)
    link = Link(1_000_000, SIZE * 4 * 250, SIZE * 4 * 250)  # 1 ms and 4 ms
    machine = RealMachine(blocks, CpuDevice(h2d=link), chunk_bytes=SIZE * 2)
    tickets: list[Any] = []

    def script() -> Any:
        tickets.extend(machine.copy(H2D, key, SIZE * 4, DEMAND, (), key) for key in range(8))
        for ticket in tickets:
            yield from machine.wait_any((ticket,))

    served(machine, script)
    ends = np.array([ticket.finish_ns for ticket in tickets]) / 1e6
    assert ends[0] >= 5
    assert np.median(np.diff(ends)) == pytest.approx(5, rel=0.1)
    assert ends[-1] == pytest.approx(40, rel=0.2)  # late wake-ups do not add up


def test_a_copy_that_fails_is_an_error_that_names_it(device: Device) -> None:
    scenario, trace = random_case(7003, at_once=True)
    scenario["cache"] = {"policy": "lru", "slots": 9}
    plan = plan_of(scenario, trace)
    keys = plan.trace.num_layers * plan.trace.num_experts
    blocks = Blocks(sum(plan.slots) + plan.scenario.memory.staging, keys, device.torch_device)
    blocks.host = blocks.host[:, : SIZE - 1]  # the rest cannot be read
    before = time.monotonic()
    with pytest.raises(DeviceError, match=rf"device '{device.name}' failed at copy of key \d+"):
        run_real(plan, device, blocks)
    assert time.monotonic() - before < 10


def test_a_hang_is_an_error_that_lists_what_is_pending(device: Device) -> None:
    blocks: Any = Blocks(1, 1, device.torch_device)
    release = threading.Event()
    blocks.run = lambda op, places=(): release.wait(3)
    machine = RealMachine(blocks, device, patience_s=0.2)

    def script() -> Any:
        landing = machine.copy(H2D, 0, SIZE * 4, DEMAND, (), 0)
        done = machine.compute(GPU, Experts(0, (0,), (1,)), (landing,))
        later = machine.copy(H2D, 0, SIZE * 4, DEMAND, (done,), 0)
        yield from machine.wait_any((later,))

    with pytest.raises(InvariantError, match=r"nothing got done.*pending: .*Experts.*copy of key"):
        served(machine, script, at_last=release.set)


def test_bytes_in_the_wrong_place_are_noticed() -> None:
    machine = RealMachine(Blocks(2, 2), CpuDevice())  # type: ignore[arg-type]

    def too_soon() -> Any:
        landing = machine.copy(H2D, 0, SIZE * 4, DEMAND, (), 0)
        yield from machine.wait_any((landing,))
        machine.copy(H2D, 1, SIZE * 4, DEMAND, (), 0)  # overwrites what is about to be read
        done = machine.compute(GPU, Experts(0, (0,), (1,)), ())
        yield from machine.wait_any((done,))

    machine._executor.run = lambda op, places=(): time.sleep(0.05)  # type: ignore[method-assign]
    with pytest.raises(InvariantError, match="key 0 in buffer 0"):
        served(machine, too_soon)


def test_there_is_no_other_device() -> None:
    with pytest.raises(UsageError, match="there is no device 'tpu'"):
        open_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device is available"):
            open_device("cuda")
