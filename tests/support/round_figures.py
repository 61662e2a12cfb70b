"""A machine whose figures give round durations, and rows that all want the same experts."""

from __future__ import annotations

from typing import Any

import numpy as np

LAYERS = 4

FIGURES: dict[str, Any] = {
    "profile": "rtx-4090",
    "memory_bandwidth": 10**12,
    "memory_efficiency": "100%",
    "flops": 10**18,
    "kernel_overhead": "5us",
    "h2d": {"bandwidth": 49_152_000_000, "latency": "10us"},
    "d2h": {"bandwidth": 49_152_000_000, "latency": "10us"},
    "readback_latency": "1us",
    "host_memory_bandwidth": 98_304_000_000,  # enough for the CPU and the link together
    "host_memory_efficiency": "100%",
    "core_memory_bandwidth": 12_288_000_000,
    "cpu_cores": 4,
    "cpu_flops": 10**18,
    "cpu_efficiency": "100%",
    "cpu_overhead": "3us",
}


def same_experts(rows: int) -> Any:
    """Return rows that all want experts 2 and 5 of every layer."""
    return np.tile([2, 5], (rows, LAYERS, 1))
