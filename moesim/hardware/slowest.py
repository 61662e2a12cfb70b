"""The figures of a machine that make its operations the longest, for messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moesim.config.units import format_bytes, format_duration_ns
from moesim.hardware.cost import CostModel

__all__ = ["slowest_figures"]

_CLOSE: Final = 10  # figures whose durations differ by less are named together


def slowest_figures(cost: CostModel) -> list[tuple[str, str]]:
    """Return the key and a description of each figure that causes the longest duration, or nearly.

    Compared are fixed times, and the times in which each rate handles one expert.
    """
    entries = sorted(_durations(cost), key=lambda entry: -entry[1])
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


def _rate(key: str, work: int, rate: float, shown: str) -> tuple[float, str]:
    """Return the nanoseconds in which a rate handles one expert, and the description."""
    duration_ns = work * 1e9 / max(1, rate)  # as in `CostModel`
    seconds = format_duration_ns(round(duration_ns))
    return duration_ns, f"hardware.{key} is {shown}, so one expert takes {seconds}"


def _bytes_per_s(rate: int) -> str:
    return f"{format_bytes(rate)}/s"
