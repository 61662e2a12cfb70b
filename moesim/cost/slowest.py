"""The figures of a machine that make its operations the longest, for messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from moesim.config.units import format_bytes, format_duration_ns
from moesim.cost.cpu import cpu_rates
from moesim.cost.roofline import CostModel
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D

__all__ = ["slowest_figures"]

_CLOSE: Final = 10  # figures whose durations differ by less are named together


def slowest_figures(
    cost: CostModel, lanes: Collection[str] = (GPU, H2D, D2H)
) -> list[tuple[str, str]]:
    """Return the key and a description of each figure that causes the longest duration, or nearly.

    Compared are fixed times, and the times in which each rate handles one expert. Figures of the
    CPU and of the disk count if their lanes are among `lanes`.
    """
    figures = [*_durations(cost), *_host_durations(cost, lanes)]
    entries = sorted(figures, key=lambda entry: -entry[1])
    longest_ns = entries[0][1]
    return [(key, text) for key, ns, text in entries if ns * _CLOSE > longest_ns]


def _durations(cost: CostModel) -> Iterator[tuple[str, float, str]]:
    """Yield key, nanoseconds and description of each figure."""
    machine, nbytes = cost.hardware, cost.expert_bytes
    copied = "pinned_bandwidth" if cost.pinned else "pageable_bandwidth"
    for key, fixed_ns in (
        ("kernel_overhead", machine.kernel_overhead_ns),
        ("readback_latency", machine.readback_latency_ns),
        ("h2d.latency", machine.h2d.latency_ns),
        ("d2h.latency", machine.d2h.latency_ns),
    ):
        yield key, fixed_ns, f"hardware.{key} is {format_duration_ns(fixed_ns)}"
    for key, link in (("h2d", machine.h2d), ("d2h", machine.d2h)):
        rate = link.pinned_bytes_per_s if cost.pinned else link.pageable_bytes_per_s
        yield (f"{key}.{copied}", *_rate(f"{key}.{copied}", nbytes, rate, _bytes_per_s(rate)))
    peak, share = machine.memory_bytes_per_s, machine.memory_efficiency
    shown = f"{_bytes_per_s(peak)} at memory_efficiency {share:g}"
    yield ("memory_bandwidth", *_rate("memory_bandwidth", nbytes, peak * share, shown))
    peak, share = machine.flops_per_s, machine.compute_efficiency
    shown = f"{peak:g} FLOPS at compute_efficiency {share:g}"
    yield ("flops", *_rate("flops", 2 * cost.shape.expert_params, peak * share, shown))


def _host_durations(cost: CostModel, lanes: Collection[str]) -> Iterator[tuple[str, float, str]]:
    """Yield what `_durations` yields, of the figures of the lanes beside the GPU and its link."""
    machine, nbytes, disk = cost.hardware, cost.expert_bytes, cost.hardware.disk
    if CPU in lanes:
        rates, fixed_ns = cpu_rates(machine), machine.cpu_overhead_ns
        yield "cpu_overhead", fixed_ns, f"hardware.cpu_overhead is {format_duration_ns(fixed_ns)}"
        flops, key = rates.flops_per_s, "cpu_flops"
        shown = f"{flops:g} FLOPS, with efficiency and threads"
        yield (key, *_rate(key, 2 * cost.shape.expert_params, flops, shown))
        rate, key = rates.bytes_per_s, "host_memory_bandwidth"
        shown = f"{_bytes_per_s(rate)}, with efficiency and threads"
        yield (key, *_rate(key, nbytes, rate, shown))
    if DISK in lanes and disk is not None:
        fixed_ns, rate, key = disk.latency_ns, disk.bytes_per_s, "disk.bandwidth"
        yield "disk.latency", fixed_ns, f"hardware.disk.latency is {format_duration_ns(fixed_ns)}"
        yield (key, *_rate(key, nbytes, rate, _bytes_per_s(rate)))


def _rate(key: str, work: int, rate: float, shown: str) -> tuple[float, str]:
    """Return the nanoseconds in which a rate handles one expert, and the description."""
    duration_ns = work * 1e9 / max(1, rate)  # as in `CostModel`
    seconds = format_duration_ns(round(duration_ns))
    return duration_ns, f"hardware.{key} is {shown}, so one expert takes {seconds}"


def _bytes_per_s(rate: int) -> str:
    return f"{format_bytes(rate)}/s"
