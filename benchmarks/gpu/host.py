"""The host: how fast its threads read memory, and experts on the CPU."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import torch
from torch.nn.functional import silu

from .bench import Bench

__all__ = ["host"]

_READ_BYTES: Final = 2 << 30
_SHAPES: Final = (("qwen3-30b-a3b", 2048, 768), ("mixtral-8x7b", 4096, 14336))
_TINY: Final = (("tiny", 64, 128),)


def host(bench: Bench) -> None:
    """Measure reading by threads, and experts on the CPU by shape, rows, threads and type."""
    threads = _thread_counts()
    before = torch.get_num_threads()
    try:
        numbers = torch.ones(_READ_BYTES // 4 if bench.on_gpu else 1 << 20)
        for count in bench.cases("host memory by threads", threads):
            torch.set_num_threads(count)
            seconds = _seconds(numbers.sum)
            bench.recorder.put(
                "reading of host memory",
                round(numbers.nbytes / seconds / 1e9, 2),
                "GB/s",
                threads=count,
                nbytes=numbers.nbytes,
            )
        del numbers
        cases = [
            (shape, dtype, rows, count)
            for count in dict.fromkeys((threads[0], 8, 1))
            for rows in (1, 16, 4)
            for shape in (_SHAPES if bench.on_gpu else _TINY)
            for dtype in (torch.bfloat16, torch.float32)
            if count <= threads[0]
        ]
        for shape, dtype, rows, count in bench.cases("experts on the CPU", cases):
            torch.set_num_threads(count)
            _expert(bench, *shape, dtype, rows, count)
    finally:
        torch.set_num_threads(before)


def _thread_counts() -> list[int]:
    """Return numbers of threads, the largest first: all cores, then halves."""
    counts = [os.cpu_count() or 1]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _expert(
    bench: Bench, name: str, hidden: int, ffn: int, dtype: torch.dtype, rows: int, threads: int
) -> None:
    # Several experts in turn, larger together than the caches of the processor.
    nbytes = 3 * hidden * ffn * dtype.itemsize
    count = max(2, min(64, (1 << 30) // nbytes)) if bench.on_gpu else 2
    up = [torch.randn(2 * ffn, hidden).to(dtype) for _ in range(2)]
    down = [torch.randn(hidden, ffn).to(dtype) for _ in range(2)]
    up += [up[0].clone() for _ in range(count - 2)]
    down += [down[0].clone() for _ in range(count - 2)]
    states = torch.randn(rows, hidden).to(dtype)
    turn = 0

    def call() -> Any:
        nonlocal turn
        turn = (turn + 1) % count
        gate, inner = (states @ up[turn].T).chunk(2, dim=-1)
        return (silu(gate) * inner) @ down[turn].T

    seconds = _seconds(call)
    bench.recorder.put(
        "expert on the CPU",
        round(seconds * 1e6, 2),
        "us",
        shape=name,
        rows=rows,
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        nbytes=nbytes,
        gbytes_per_s=round(nbytes / seconds / 1e9, 2),
    )


def _seconds(call: Any) -> float:
    """Return the median of five batches' seconds a call, after a warm-up."""
    call()
    began_s = time.perf_counter()
    call()
    count = max(1, min(100, int(0.02 / max(1e-7, time.perf_counter() - began_s))))
    batches = []
    for _ in range(5):
        began_s = time.perf_counter()
        for _ in range(count):
            call()
        batches.append((time.perf_counter() - began_s) / count)
    return sorted(batches)[2]
