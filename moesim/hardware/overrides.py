"""The figures of a machine that a scenario may change, and how they are spelled."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from moesim.config.fields import Bandwidth, Bytes, Duration, Flops, PositiveCount, PositiveShare
from moesim.config.units import (
    exact_bandwidth,
    exact_bytes,
    exact_duration_ns,
    exact_flops,
    format_share,
)
from moesim.config.validation import Strict

if TYPE_CHECKING:
    from moesim.hardware.hardware import Hardware

__all__ = ["DiskOverrides", "HardwareOverrides", "LinkOverrides", "faster_link"]
__all__ += ["spelled_figure", "spelled_figures"]


class LinkOverrides(Strict):
    """Figures of one copy direction that replace those of the profile."""

    latency: Duration | None = Field(None, description="Fixed time of one copy, like 20us.")
    bandwidth: Bandwidth | None = Field(
        None,
        description="Bandwidth of copies, like 12GB/s, whether the host memory is page-locked or "
        "not.",
    )
    pinned_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to page-locked host memory."
    )
    pageable_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of copies from or to ordinary host memory."
    )
    chunk: Bytes | None = Field(
        None,
        description="Cut longer copies into pieces of this size, so that an urgent copy waits for "
        "one piece only.",
    )


class DiskOverrides(Strict):
    """Figures of the disk that replace those of the profile, or describe a disk it lacks."""

    latency: Duration | None = Field(None, description="Time of one read of few bytes, like 100us.")
    bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth of reads at `queue_depth`, like 5GB/s."
    )
    queue_depth: PositiveCount | None = Field(
        None,
        description="Number of reads under way at once, over which the latency spreads; 1 without "
        "a profile that says otherwise.",
        examples=[8],
    )


class HardwareOverrides(Strict):
    """Figures of a scenario that replace those of its profile."""

    vram: Bytes | None = Field(None, description="GPU memory, like 24GiB.")
    flops: Flops | None = Field(
        None, description="Peak rate of dense 16-bit matrix products, like 165.2TFLOPS."
    )
    int8_ops: Flops | None = Field(
        None,
        description="Peak rate of dense products of 8-bit integers, like 660TFLOPS; engines with "
        "kernels of their own use it for quantised weights.",
    )
    memory_bandwidth: Bandwidth | None = Field(
        None, description="Peak bandwidth of GPU memory, like 1TB/s."
    )
    compute_efficiency: PositiveShare | None = Field(
        None, description="Share of the peak compute rate that is reached, like 60%."
    )
    memory_efficiency: PositiveShare | None = Field(
        None, description="Share of the peak memory bandwidth that is reached, like 80%."
    )
    kernel_overhead: Duration | None = Field(
        None, description="Fixed time of one operation, like 20us."
    )
    h2d: LinkOverrides | None = Field(None, description="Copies from the host to the GPU.")
    d2h: LinkOverrides | None = Field(None, description="Copies from the GPU to the host.")
    readback_latency: Duration | None = Field(
        None, description="Time until the router's choice is on the host, like 20us."
    )
    host_memory: Bytes | None = Field(
        None, description="Capacity of host memory; it limits nothing by itself."
    )
    host_memory_bandwidth: Bandwidth | None = Field(
        None,
        description="Bandwidth of host memory, which the CPU, the copies and the disk share.",
    )
    host_memory_efficiency: PositiveShare | None = Field(
        None, description="Share of this bandwidth that reads reach, like 80%."
    )
    cpu_flops: Flops | None = Field(
        None, description="Rate of matrix products on all cores of the CPU, like 1500GFLOPS."
    )
    cpu_int8_ops: Flops | None = Field(
        None,
        description="Peak rate of products of 8-bit integers on all cores, like 2000GFLOPS; "
        "engines with kernels of their own use it for quantised weights.",
    )
    cpu_efficiency: PositiveShare | None = Field(
        None, description="Share of this rate that the CPU reaches, like 60%."
    )
    cpu_overhead: Duration | None = Field(
        None, description="Fixed time of one call on the CPU, like 20us."
    )
    cpu_cores: PositiveCount | None = Field(
        None, description="Number of cores of the CPU.", examples=[32]
    )
    core_memory_bandwidth: Bandwidth | None = Field(
        None, description="Bandwidth that one core reaches when it reads host memory, like 12GB/s."
    )
    cpu_memory_bandwidth: Bandwidth | None = Field(
        None,
        description="The most that all cores together read, where the links between the dies of a "
        "processor carry less than host memory, like 50GB/s.",
    )
    cpu_threads: PositiveCount | None = Field(
        None,
        description="Number of cores that compute; the default is all. Fewer reach their share of "
        "`cpu_flops`, and at most `core_memory_bandwidth` each.",
        examples=[16],
    )
    disk: DiskOverrides | None = Field(
        None, description="The disk from which experts are read into host memory."
    )


def faster_link(hardware: Hardware, factor: float) -> dict[str, dict[str, int]]:
    """Return the figures of a machine whose link is faster by a factor, in both directions."""
    return {
        way: {
            "pinned_bandwidth": round(factor * link.pinned_bytes_per_s),
            "pageable_bandwidth": round(factor * link.pageable_bytes_per_s),
        }
        for way, link in (("h2d", hardware.h2d), ("d2h", hardware.d2h))
    }


def spelled_figures(figures: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """Return figures of `HardwareOverrides` in base units as text: `vram 10GiB, h2d.latency 20us`.

    The text has the order of the names, and leaves out those in `without`.
    """
    flat = {
        ".".join(filter(None, (section, key))): value
        for section, inner in figures.items()
        for key, value in (inner.items() if isinstance(inner, Mapping) else [("", inner)])
    }
    return ", ".join(
        f"{key} {spelled_figure(key, flat[key])}" for key in sorted(flat.keys() - set(without))
    )


def spelled_figure(key: str, value: Any) -> str:
    """Return one figure in base units as text, by its dotted key: `20us` for `h2d.latency`."""
    return _spelling(key)(value)


def _spelling(key: str) -> Callable[[Any], str]:
    """Return the function that spells a figure, by the last word of its key."""
    words: dict[str, Callable[[Any], str]] = {
        "bandwidth": exact_bandwidth,
        "efficiency": format_share,
        "flops": exact_flops,
        "ops": exact_flops,
        "vram": exact_bytes,
        "chunk": exact_bytes,
        "memory": exact_bytes,
        "cores": str,
        "threads": str,
        "depth": str,
    }
    return words.get(re.split(r"[._]", key)[-1], exact_duration_ns)
