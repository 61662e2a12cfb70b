"""The simplest prediction of decode: bytes over bandwidth, and a time for each layer.

It is the bar that predictions are compared with, and no part of them. Each token reads the active
weights once, at 75 % of the datasheet's bandwidth of the memory that holds them. A layer takes 25
microseconds on a GPU, and 60 more where its experts are on the CPU.
"""

from __future__ import annotations

from typing import Final

__all__ = ["decode_tokens_per_s"]

SHARE: Final = 0.75
GPU_LAYER_S: Final = 25e-6
CPU_LAYER_S: Final = 60e-6


def decode_tokens_per_s(
    *,
    gpu_nbytes: float,
    cpu_nbytes: float,
    gpu_bytes_per_s: float,
    cpu_bytes_per_s: float,
    gpu_layers: int,
    cpu_layers: int,
) -> float:
    """Return tokens per second of one sequence.

    `gpu_nbytes` and `cpu_nbytes` are the bytes that one token reads from each memory: active
    weights and KV cache. Bandwidths are those of datasheets. `gpu_layers` layers have work on the
    GPU and `cpu_layers` on the CPU; a layer with its experts on the CPU counts in both. A memory
    that no byte is read from may have no bandwidth.
    """
    reads = ((gpu_nbytes, gpu_bytes_per_s), (cpu_nbytes, cpu_bytes_per_s))
    read_s = sum(nbytes / (SHARE * bandwidth) for nbytes, bandwidth in reads if nbytes)
    return 1 / (read_s + gpu_layers * GPU_LAYER_S + cpu_layers * CPU_LAYER_S)
