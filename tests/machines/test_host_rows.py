"""Experts on disk: what is used from host memory was read, and by its content it is the expert."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from late_clock import LateClock  # noqa: E402

from moesim.errors import InvariantError, UsageError  # noqa: E402
from moesim.executor import cpu  # noqa: E402
from moesim.executor.cpu import CpuDevice  # noqa: E402
from moesim.executor.device import Device  # noqa: E402
from moesim.executor.host_rows import HostRows  # noqa: E402
from moesim.executor.machine import RealMachine  # noqa: E402
from moesim.hardware.hardware import Disk  # noqa: E402
from moesim.hardware.ops import Copy, Experts  # noqa: E402
from moesim.hardware.topology import CPU, DISK, H2D, HOST, Lane, Topology  # noqa: E402
from moesim.machine.threads import drive  # noqa: E402
from moesim.machine.work import Work  # noqa: E402
from moesim.serving.experts.host_memory import HostMemory, Unit  # noqa: E402

PATIENCE_S = 60  # a wait this long is a hang
KEYS, SIZE, PAGE = 6, 10, 16
NBYTES = SIZE * 4
LANES = (*Topology.single_gpu().lanes, Lane(CPU, HOST, HOST), Lane(DISK, DISK, HOST))


def stored(dtype: Any = torch.float32) -> Any:
    """Return rows whose numbers are their key and place."""
    keys = torch.arange(KEYS)[:, None] * 100
    return (keys + torch.arange(SIZE)).to(dtype)


def memory_of(held: int, unit: Unit = "expert") -> HostMemory:
    each = NBYTES if unit == "expert" else 48  # three pages
    return HostMemory(held * each, [NBYTES] * KEYS, unit, page_bytes=PAGE)


# --- rows ---

Keep = Callable[..., HostRows]


@pytest.fixture
def kept_in() -> Iterator[Keep]:
    """Return a maker of rows, of `stored()` unless others are given; they are closed later."""
    made: list[HostRows] = []

    def make(memory: HostMemory, rows: Any = None) -> HostRows:
        made.append(HostRows(stored() if rows is None else rows, memory))
        return made[-1]

    yield make
    for kept in made:
        kept.close()


@pytest.mark.parametrize("unit", ["expert", "page"])
@pytest.mark.parametrize("seed", range(5))
def test_every_use_sees_the_whole_expert_whatever_has_left(
    seed: int, unit: Unit, kept_in: Keep
) -> None:
    """Content is read from the file: the rows in memory are spoilt once it is written."""
    rng = random.Random(seed)
    rows, expected = stored(), stored()
    memory = HostMemory(rng.randint(48, 250), [NBYTES] * KEYS, unit, page_bytes=PAGE)
    kept = kept_in(memory, rows)
    for key in range(KEYS):
        if memory.place(key) == DISK:
            rows[key, : memory.unread(key) // 4] = -1
    reads = 0
    for _ in range(60):
        event = rng.sample(range(KEYS), rng.randint(1, 3))
        works = [(key, memory.read(key)) for key in event]  # decided at once, and then issued
        for key, nbytes in works:
            if nbytes:
                kept.read(key, nbytes)()
                reads += 1
            row = kept.use(key)
            row.check()
            assert torch.equal(row.tensor, expected[key])
        kept.settle()
        assert {key for key in range(KEYS) if memory.place(key) == HOST} == {
            key for key in range(KEYS) if is_usable(kept, key)
        }
    assert reads > 5


def is_usable(kept: HostRows, key: int) -> bool:
    try:
        kept.use(key)
    except InvariantError:
        return False
    return True


def test_any_type_of_weights_is_read(kept_in: Keep) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        rows = stored(dtype)
        nbytes = rows[0].numel() * rows.element_size()
        kept = kept_in(HostMemory(nbytes, [nbytes] * KEYS, "expert"), rows)
        kept.read(0, nbytes)()
        assert torch.equal(kept.use(0).tensor, rows[0])


def test_a_row_in_use_is_not_changed_by_what_follows(kept_in: Keep) -> None:
    memory = memory_of(1)
    kept = kept_in(memory)
    used = kept.use(KEYS - 1)
    memory.read(0)
    kept.read(0, NBYTES)()
    kept.settle()
    memory.read(KEYS - 1)
    again = kept.read(KEYS - 1, NBYTES)
    assert torch.equal(used.tensor, stored()[KEYS - 1])
    again()
    assert kept.use(KEYS - 1) is not used


def test_an_expert_on_disk_cannot_be_used(kept_in: Keep) -> None:
    kept = kept_in(memory_of(2))
    with pytest.raises(InvariantError, match="key 0 is used from host memory, but 40 of its 40"):
        kept.use(0)
    pages = HostMemory(64, [NBYTES] * KEYS, "page", page_bytes=PAGE)
    kept = kept_in(pages)
    assert pages.unread(KEYS - 2) == 32
    with pytest.raises(InvariantError, match="key 4 is used from host memory, but 32 of its 40"):
        kept.use(KEYS - 2)


def test_an_expert_that_has_left_cannot_be_used(kept_in: Keep) -> None:
    memory = memory_of(2)
    kept = kept_in(memory)
    kept.use(KEYS - 2)
    memory.read(0)  # the least recently used of two leaves
    kept.use(KEYS - 2)  # work of the same event may still be issued
    kept.settle()
    with pytest.raises(InvariantError, match=f"key {KEYS - 2} is used from host memory"):
        kept.use(KEYS - 2)


def test_a_read_brings_all_that_is_missing(kept_in: Keep) -> None:
    pages = HostMemory(64, [NBYTES] * KEYS, "page", page_bytes=PAGE)
    kept = kept_in(pages)
    with pytest.raises(InvariantError, match="16 bytes of key 4 are read from disk, and 32 are"):
        kept.read(KEYS - 2, 16)


def test_a_full_disk_says_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: Any) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(UsageError, match=r"240 bytes .*: No space left on device; set TMPDIR"):
        HostRows(stored(), memory_of(2))


# --- on the machine ---


class Rows:
    """An executor whose experts are those of `stored`; it notes what the CPU computed."""

    def __init__(self, device: Device) -> None:
        self.host = stored()
        self.buffers = torch.full((2, SIZE), -1.0, device=device.torch_device)
        self.computed: list[int] = []

    def host_of(self, key: int) -> Any:
        return self.host[key]

    def run(self, op: Experts, places: Any = ()) -> None:
        for key, place in zip(op.keys, places, strict=True):
            assert torch.equal(self.buffers[place].cpu(), stored()[key])

    def run_on_host(self, op: Experts, rows: Any) -> None:
        for key, row in zip(op.keys, rows, strict=True):
            assert torch.equal(row, stored()[key])
            self.computed.append(key)


def machine_on(device: Device, memory: HostMemory) -> RealMachine:
    executor: Any = Rows(device)
    machine = RealMachine(
        executor, device, topology=Topology(LANES), chunk_bytes=16, patience_s=PATIENCE_S
    )
    machine.keep_on_disk(memory)
    for key in range(KEYS):
        if memory.place(key) == DISK:
            executor.host[key] = -1
    return machine


def run(
    machine: RealMachine, script: Callable[[], Any], at_last: Callable[[], object] = int
) -> None:
    machine.start()
    try:
        drive(script())
    finally:
        at_last()
        machine.close()


def issue(machine: RealMachine, lane: str, op: Any, *after: Work, buffer: int = -1) -> Work:
    work = Work(lane, op, after, buffer=buffer)
    machine.submit(work)
    return work


def test_an_expert_is_read_then_copied_or_computed(device: Device) -> None:
    memory = memory_of(2)
    machine = machine_on(device, memory)

    def script() -> Any:
        memory.read(0)
        memory.read(1)
        reads = [issue(machine, DISK, Copy(key, NBYTES)) for key in (0, 1)]
        landing = issue(machine, H2D, Copy(0, NBYTES), reads[0], buffer=1)
        on_gpu = issue(machine, "gpu", Experts(0, (0,), (1,)), landing)
        on_cpu = issue(machine, CPU, Experts(0, (0, 1), (1, 1)), *reads)
        for work in (on_gpu, on_cpu):
            yield from machine.wait_any((work,))

    run(machine, script)
    computed: Any = machine._executor
    assert computed.computed == [0, 1]


class HeldDisk(CpuDevice):
    """Reads nothing before `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def submit(self, lane: str, work: Callable[[], None], **given: Any) -> Any:
        if lane == DISK:
            assert self.release.wait(PATIENCE_S)
        return super().submit(lane, work, **given)


@pytest.mark.parametrize("lane", [H2D, CPU])
def test_work_that_does_not_wait_for_the_read_is_noticed(lane: str) -> None:
    device = HeldDisk()
    memory = memory_of(2)
    machine = machine_on(device, memory)

    def script() -> Any:
        issue(machine, DISK, Copy(0, memory.read(0)))
        op: Any = Copy(0, NBYTES) if lane == H2D else Experts(0, (0,), (1,))
        yield from machine.wait_any((issue(machine, lane, op, buffer=0),))

    with pytest.raises(InvariantError, match="key 0 is used from host memory before it was read"):
        run(machine, script, at_last=device.release.set)


@pytest.mark.parametrize("lane", [H2D, CPU])
def test_work_on_an_expert_that_has_left_is_refused(lane: str, device: Device) -> None:
    memory = memory_of(2)
    machine = machine_on(device, memory)

    def script() -> Any:
        memory.read(0)
        read = issue(machine, DISK, Copy(0, NBYTES))
        yield from machine.wait_any((read,))
        op: Any = Copy(4, NBYTES) if lane == H2D else Experts(0, (4,), (1,))
        issue(machine, lane, op, buffer=0)

    with pytest.raises(InvariantError, match="key 4 is used from host memory, but 40 of its 40"):
        run(machine, script)


def test_a_read_of_an_emulated_disk_takes_its_latency_and_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "time", LateClock(late_ns=0))
    device = CpuDevice(disk=Disk(latency_ns=4_000_000, bytes_per_s=1_000_000, queue_depth=2))
    marks = [device.submit(DISK, lambda: None, nbytes=3000) for _ in range(3)]
    assert [mark.finish_ns for mark in marks] == [5_000_000, 10_000_000, 15_000_000]
