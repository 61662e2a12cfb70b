"""The figures of a machine that make its operations the longest, for messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from moesim.config.units import format_bytes, format_duration_ns
from moesim.cost.choice import cpu_cost_of
from moesim.cost.cpu import cpu_rates
from moesim.cost.engine import EngineCost, EngineCpuCost, KernelTimes
from moesim.cost.parts import expert_family
from moesim.cost.roofline import CostModel
from moesim.engines.engine import BY_SCENARIO, Engine
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D

__all__ = ["slowest_figures"]

_CLOSE: Final = 10  # figures whose durations differ by less are named together


def slowest_figures(
    cost: CostModel, lanes: Collection[str] = (GPU, H2D, D2H)
) -> list[tuple[str, str]]:
    """Return the key and a description of each figure that causes the longest duration, or nearly.

    Keys are those of a scenario: `hardware.flops`, or `engine` for a figure of its profile.
    Compared are fixed times, and the times in which each rate handles one expert. Figures of the
    CPU and of the disk count if their lanes are among `lanes`.
    """
    figures = [*_engine_durations(cost, lanes)]
    figures += [
        (f"hardware.{key}", duration_ns, f"hardware.{text}")
        for key, duration_ns, text in (*_durations(cost), *_host_durations(cost, lanes))
    ]
    entries = sorted(figures, key=lambda entry: -entry[1])
    longest_ns = entries[0][1]
    return [(key, text) for key, ns, text in entries if ns * _CLOSE > longest_ns]


def _engine_durations(cost: CostModel, lanes: Collection[str]) -> Iterator[tuple[str, float, str]]:
    """Yield the fixed times of an engine: those of its host, of a switch, and of its kernels."""
    engine = cost.engine
    times = {
        "host.step": engine.step_ns,
        "host.layer_event": engine.event_ns,
        "host.launch": engine.launch_ns,
        "host.copy_launch": engine.copy_ns,
        "switch": engine.switch_ns if CPU in lanes else 0,
    }
    if isinstance(cost, EngineCost):
        chosen = cost.interface or next(iter(engine.gpu))
        times[f"gpu.{chosen}.kernel"] = cost.times.kernels.kernel_ns
    threads = 0
    if engine.cpu is not None and CPU in lanes:
        threads = cost.hardware.cpu_threads or cost.hardware.cpu_cores or 0
        times |= {"cpu.kernel": engine.cpu.kernel_ns, "cpu.thread": engine.cpu.thread_ns}
    for key, fixed_ns in times.items():
        if fixed_ns:
            shown = f"{key} of the engine {engine.name} is {format_duration_ns(fixed_ns)}"
            each = threads if key == "cpu.thread" else 1
            yield _scenario_key(engine, key), fixed_ns * each, shown


def _scenario_key(engine: Engine, key: str) -> str:
    """Return the key of a scenario that sets a figure of an engine, or names its profile."""
    origin = engine.figures.get(key)
    by_scenario = origin is not None and origin.source == BY_SCENARIO
    return f"engine.{key.rpartition('.')[2]}" if by_scenario else "engine"


def _reached(times: KernelTimes, cost: CostModel) -> tuple[float, float]:
    """Return the operations/s and the bytes/s that an engine's kernels reach with experts."""
    family = expert_family(cost.shape)
    kernels, peaks = times.kernels, times.peaks
    flops = peaks.ops_per_s(family) * kernels.compute_of(family)
    return flops, peaks.bytes_per_s * kernels.bandwidth_of(family)


def _durations(cost: CostModel) -> Iterator[tuple[str, float, str]]:
    """Yield key, nanoseconds and description of each figure of the GPU and its links."""
    machine, nbytes = cost.hardware, cost.expert_bytes
    copied = "pinned_bandwidth" if cost.pinned else "pageable_bandwidth"
    ideal = not isinstance(cost, EngineCost)
    for key, fixed_ns in (
        ("kernel_overhead", machine.kernel_overhead_ns if ideal else 0),
        ("readback_latency", machine.readback_latency_ns),
        ("h2d.latency", machine.h2d.latency_ns),
        ("d2h.latency", machine.d2h.latency_ns),
    ):
        yield key, fixed_ns, f"{key} is {format_duration_ns(fixed_ns)}"
    for key, link in (("h2d", machine.h2d), ("d2h", machine.d2h)):
        rate = link.pinned_bytes_per_s if cost.pinned else link.pageable_bytes_per_s
        yield (f"{key}.{copied}", *_rate(f"{key}.{copied}", nbytes, rate, _bytes_per_s(rate)))
    peak, flops_peak = machine.memory_bytes_per_s, f"{machine.flops_per_s:g} FLOPS"
    key = "flops"
    if isinstance(cost, EngineCost):
        if machine.int8_ops_per_s and expert_family(cost.shape) != "float":
            key, flops_peak = "int8_ops", f"{machine.int8_ops_per_s:g} operations/s"
        flops, nbytes_per_s = _reached(cost.times, cost)
        shares = [f", with the share that {cost.engine.name} reaches"] * 2
    else:
        flops = machine.flops_per_s * machine.compute_efficiency
        nbytes_per_s = peak * machine.memory_efficiency
        shares = [
            f" at memory_efficiency {machine.memory_efficiency:g}",
            f" at compute_efficiency {machine.compute_efficiency:g}",
        ]
    shown = f"{_bytes_per_s(peak)}{shares[0]}"
    yield ("memory_bandwidth", *_rate("memory_bandwidth", nbytes, nbytes_per_s, shown))
    shown = f"{flops_peak}{shares[1]}"
    yield (key, *_rate(key, 2 * cost.shape.expert_params, flops, shown))


def _host_durations(cost: CostModel, lanes: Collection[str]) -> Iterator[tuple[str, float, str]]:
    """Yield what `_durations` yields, of the figures of the lanes beside the GPU and its link."""
    machine, nbytes, disk = cost.hardware, cost.expert_bytes, cost.hardware.disk
    if CPU in lanes:
        rates: tuple[float, float] = cpu_rates(machine)
        cpu = cpu_cost_of(cost)
        if isinstance(cpu, EngineCpuCost):
            rates = _reached(cpu.times, cost)
        else:
            fixed_ns = machine.cpu_overhead_ns
            yield "cpu_overhead", fixed_ns, f"cpu_overhead is {format_duration_ns(fixed_ns)}"
        flops, nbytes_per_s = rates
        key, shown = "cpu_flops", f"{flops:g} FLOPS, with efficiency and threads"
        quantised = isinstance(cpu, EngineCpuCost) and expert_family(cost.shape) != "float"
        if quantised and machine.cpu_int8_ops_per_s:
            key, shown = "cpu_int8_ops", f"{flops:g} operations/s, with efficiency and threads"
        yield (key, *_rate(key, 2 * cost.shape.expert_params, flops, shown))
        key = "host_memory_bandwidth"
        shown = f"{_bytes_per_s(nbytes_per_s)}, with efficiency and threads"
        yield (key, *_rate(key, nbytes, nbytes_per_s, shown))
    if DISK in lanes and disk is not None:
        fixed_ns, rate, key = disk.latency_ns, disk.bytes_per_s, "disk.bandwidth"
        yield "disk.latency", fixed_ns, f"disk.latency is {format_duration_ns(fixed_ns)}"
        yield (key, *_rate(key, nbytes, rate, _bytes_per_s(rate)))


def _rate(key: str, work: int, rate: float, shown: str) -> tuple[float, str]:
    """Return the nanoseconds in which a rate handles one expert, and the description."""
    duration_ns = work * 1e9 / max(1, rate)  # as in `CostModel`
    seconds = format_duration_ns(round(duration_ns))
    return duration_ns, f"{key} is {shown}, so one expert takes {seconds}"


def _bytes_per_s(rate: float) -> str:
    return f"{format_bytes(int(rate))}/s"
