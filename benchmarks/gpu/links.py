"""Copies between host and device: by size, direction and kind of memory, and both ways at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from moesim.executor.pinned import page_locked

from .bench import Bench

__all__ = ["links"]

# The sizes of ids, of states, of a chunk, and of experts: Qwen3-30B 9 MB, Mixtral 352 MB.
_SIZES: Final = (352 << 20, 1 << 20, 9 << 20, 17 << 20, 4 << 20, 64 << 20, 1 << 16, 1 << 12)
_LOCKED_BYTES: Final = 1 << 30
_SMALL_SIZES: Final = (1 << 20, 1 << 16)


def links(bench: Bench) -> None:
    """Measure copies alone, both directions at once, chunks, and how long memory takes to lock."""
    sizes = _SIZES if bench.on_gpu else _SMALL_SIZES
    memories, unlock = _memories(bench, max(sizes))
    try:
        _alone(bench, memories, sizes)
    finally:
        unlock()  # before the memory is freed
    if bench.on_gpu:
        _locking(bench)


def _alone(bench: Bench, memories: dict[str, torch.Tensor], sizes: Sequence[int]) -> None:
    there = torch.zeros(max(sizes), dtype=torch.uint8, device=bench.device)
    stream = bench.stream()
    for nbytes in bench.cases("links by size", sizes):
        for memory, here in memories.items():
            for direction in ("h2d", "d2h"):
                target, source = (there, here) if direction == "h2d" else (here, there)
                _copy(bench, target[:nbytes], source[:nbytes], stream, direction, memory)
    _both_ways(bench, memories["pinned" if bench.on_gpu else "pageable"], there)


def _memories(bench: Bench, nbytes: int) -> tuple[dict[str, torch.Tensor], Callable[[], None]]:
    """Return host memory of each kind, with pages that exist, and what unlocks the registered."""
    pageable = torch.zeros(nbytes, dtype=torch.uint8)
    if not bench.on_gpu:
        return {"pageable": pageable}, lambda: None
    pinned = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
    registered, unlock = page_locked((nbytes,), torch.uint8)
    return {"pinned": pinned, "registered": registered.zero_(), "pageable": pageable}, unlock


def _copy(bench: Bench, target: Any, source: Any, stream: Any, direction: str, memory: str) -> None:
    nbytes = target.numel()
    times = bench.timed(lambda: target.copy_(source, non_blocking=True), stream=stream)
    bench.put_times(
        "copy",
        times,
        direction=direction,
        memory=memory,
        nbytes=nbytes,
        gbytes_per_s=round(nbytes / times.device_us / 1e3, 3),
    )


def _both_ways(bench: Bench, here: torch.Tensor, there: torch.Tensor) -> None:
    """Time a copy in each direction at once, over halves that do not overlap."""
    half = len(here) // 2
    one, two = bench.stream(), bench.stream()

    def both() -> None:
        with bench.on(one):
            there[:half].copy_(here[:half], non_blocking=True)
        with bench.on(two):
            here[half:].copy_(there[half:], non_blocking=True)

    for _ in range(2):
        both()
    bench.synchronize()
    waits = []
    for _ in range(5):
        began_s = time.perf_counter()
        for _ in range(4):
            both()
        bench.synchronize()
        waits.append((time.perf_counter() - began_s) / 4 * 1e6)
    bench.put_spread("copies both ways at once", waits, nbytes_each_way=half)


def _locking(bench: Bench) -> None:
    """Time what it takes to lock memory, by each way: once a run, but gigabytes of it."""
    nbytes = _LOCKED_BYTES

    def by_torch() -> tuple[torch.Tensor, Callable[[], None]]:
        return torch.empty(nbytes + 1, dtype=torch.uint8, pin_memory=True), lambda: None

    ways: dict[str, Callable[[], tuple[torch.Tensor, Callable[[], None]]]] = {
        "torch, which rounds up to 2 GiB": by_torch,
        "registered": lambda: page_locked((nbytes,), torch.uint8),
    }
    for way, lock in ways.items():
        began_s = time.perf_counter()
        memory, unlock = lock()
        seconds = time.perf_counter() - began_s
        unlock()  # while `memory` is there
        del memory
        bench.recorder.put("locking of a gibibyte", round(seconds, 4), "s", way=way)
