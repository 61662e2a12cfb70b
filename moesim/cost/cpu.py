"""The cost of operations on the CPU, and of what shares host memory with them.

The CPU does the work of `moesim.cost.loads` at its own rates. A call takes a fixed overhead,
and for each expert the longer of reading its stored weights and computing its rows. Weights and KV
entries are read from host memory, which copies and the disk use too.

Threads: the CPU's operations are in proportion to them. They read the bandwidth of host memory, and
at most what one core reads, times their number, or what the links between dies carry. Frequencies
that fall as more cores work, several sockets and caches are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from moesim.cost.loads import Load, Loads, Rates
from moesim.cost.roofline import remember
from moesim.engines.engine import IDEAL, Engine
from moesim.errors import UsageError
from moesim.hardware.hardware import Hardware
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.hardware.topology import CPU, DISK, HOST, HOST_BANDWIDTH, Lane, Topology
from moesim.model.shapes import ModelShape

__all__ = [
    "Call",
    "CpuCost",
    "cpu_rates",
    "host_read_bytes_per_s",
    "missing_figures",
    "topology_of",
]


class Call(NamedTuple):
    """One call on the CPU: a fixed time, and then the time in which it moves `nbytes`.

    The bytes are those of host memory. They take as long as the call's arithmetic if that is
    longer. Nothing else uses host memory at the same time.
    """

    fixed_ns: int
    moving_ns: int
    nbytes: int

    @property
    def duration_ns(self) -> int:
        """The duration of the call."""
        return self.fixed_ns + self.moving_ns


class CpuCost:
    """The calls of one model's operations on the CPU of one machine."""

    def __init__(self, hardware: Hardware, shape: ModelShape, engine: Engine = IDEAL) -> None:
        """Raise UsageError where the hardware lacks a figure of the CPU."""
        self.hardware = hardware
        self.engine = engine
        self.loads = Loads(shape)
        self.rates = cpu_rates(hardware)
        self.call_ns = hardware.cpu_overhead_ns
        self._experts_memo: dict[tuple[tuple[int, ...], tuple[int, ...] | None], Call] = {}

    def call(self, op: Op) -> Call:
        """Return the call of a computation whose experts are all of one size."""
        if isinstance(op, Experts):
            return self.experts(op.tokens)
        if isinstance(op, Front | Dense):
            return self._call([self.loads.layer(op.layer, op.batch)])
        assert isinstance(op, Tail), f"{op} is no computation"
        return self._tail(op.batch)

    def experts(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None = None) -> Call:
        """Return one grouped call, whose i-th expert computes `tokens[i]` rows.

        `nbytes[i]` is its stored size, where experts differ in it. A call without experts takes 0.
        """
        call = self._experts_memo.get((tokens, nbytes))
        if call is None:
            sizes = nbytes or (None,) * len(tokens)
            loads = [self.loads.expert(*expert) for expert in zip(tokens, sizes, strict=True)]
            call = self._call(loads) if tokens else Call(0, 0, 0)
            remember(self._experts_memo, (tokens, nbytes), call)
        return call

    def _tail(self, batch: BatchShape) -> Call:
        """Return the end of a step; a decoupled router is a call of its own, as on the GPU."""
        tail, router = self.loads.tail(batch), self.loads.router(batch)
        calls = [tail] if router is None else [tail, router]
        _, moving_ns, nbytes = self._call(calls)
        return Call(len(calls) * self.call_ns + self.engine.step_ns, moving_ns, nbytes)

    def _call(self, loads: list[Load]) -> Call:
        moving_ns = sum(map(self.rates.duration_ns, loads))
        return Call(self.call_ns, moving_ns, sum(load.nbytes for load in loads))


def host_read_bytes_per_s(hardware: Hardware) -> int:
    """Return the bandwidth at which host memory is read. Raise UsageError where it is unknown."""
    _require(hardware, cpu=False, disk=False, host=True)
    assert hardware.host_memory_bytes_per_s is not None
    return max(1, round(hardware.host_memory_bytes_per_s * hardware.host_memory_efficiency))


def cpu_rates(hardware: Hardware) -> Rates:
    """Return what the threads of the CPU reach. Raise UsageError where a figure is missing."""
    _require(hardware, cpu=True)
    assert hardware.cpu_flops_per_s is not None
    flops = round(hardware.cpu_flops_per_s * hardware.cpu_efficiency)
    nbytes = host_read_bytes_per_s(hardware)
    cores, threads = hardware.cpu_cores, hardware.cpu_threads or hardware.cpu_cores
    if cores is not None and threads is not None:
        flops = flops * threads // cores
        if hardware.core_memory_bytes_per_s is not None:
            nbytes = min(nbytes, hardware.core_memory_bytes_per_s * threads)
    if hardware.cpu_memory_bytes_per_s is not None:
        nbytes = min(nbytes, hardware.cpu_memory_bytes_per_s)
    return Rates(max(1, flops), max(1, nbytes))


def missing_figures(
    hardware: Hardware, *, cpu: bool = False, disk: bool = False, host: bool = False
) -> tuple[str, ...]:
    """Return the keys of the figures that a machine with these lanes needs and lacks.

    `host`: host memory is shared. A CPU lane and a disk share it too.
    """
    needed = {
        "host_memory_bandwidth": hardware.host_memory_bytes_per_s is None and (cpu or disk or host),
        "cpu_flops": hardware.cpu_flops_per_s is None and cpu,
        "disk": hardware.disk is None and disk,
    }
    return tuple(key for key, lacks in needed.items() if lacks)


def topology_of(hardware: Hardware, *, cpu: bool, disk: bool) -> Topology:
    """Return the lanes of a machine, and the bandwidth of host memory if they share it.

    Without a CPU lane and a disk nothing shares host memory, because both copy engines together
    seldom reach its bandwidth. In unified memory, the work of the GPU shares it too, and its own
    share of the bandwidth may be higher than that of the CPU. Raise UsageError where a figure is
    missing.
    """
    if not cpu and not disk:
        return Topology.single_gpu()
    _require(hardware, cpu=cpu, disk=disk)
    gpu, *links = Topology.single_gpu().lanes
    lanes = [gpu, *([Lane(CPU, HOST, HOST)] if cpu else ()), *links]
    lanes += [Lane(DISK, DISK, HOST)] if disk else []
    capacity = host_read_bytes_per_s(hardware)
    if hardware.unified:
        reached = round(hardware.memory_bytes_per_s * hardware.memory_efficiency)
        capacity = max(capacity, reached)
    return Topology(tuple(lanes), {HOST_BANDWIDTH: capacity})


def _require(
    hardware: Hardware, *, cpu: bool = False, disk: bool = False, host: bool = False
) -> None:
    missing = missing_figures(hardware, cpu=cpu, disk=disk, host=host)
    if missing:
        raise UsageError(
            f"the hardware {hardware.name} lacks {' and '.join(missing)}; give the figures in its "
            "profile, or in the section hardware of the scenario"
        )
