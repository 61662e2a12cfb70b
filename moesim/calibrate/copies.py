"""Copies alone, and how much copies and computation slow each other down when they overlap.

Copies of several sizes run on the device's lanes, in both directions, from page-locked and from
ordinary memory if the device distinguishes them. A line through their times gives latency and
bandwidth. Then a product of an expert's size is timed alone, and during copies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.calibrate.fitting import Fit, fit, pool
from moesim.hardware.measurement import Overlap
from moesim.hardware.topology import D2H, GPU, H2D
from moesim.model.shapes import ModelShape

if TYPE_CHECKING:
    from moesim.executor.device import Device

__all__ = ["CopyPoint", "fit_copies", "measure_copies", "measure_overlap", "measure_rates"]

_SHARES: Final = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # sizes, in experts
_LEAST_BYTES: Final = 1 << 12
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class CopyPoint:
    """One copy while nothing else uses the link."""

    direction: str
    pinned: bool
    nbytes: int
    duration_ns: int


def measure_copies(device: Device, expert_bytes: int, *, budget_s: float) -> list[CopyPoint]:
    """Time copies around the size of an expert, round after round until the time is over."""
    sizes = sorted({_size(expert_bytes, share) for share in _SHARES})
    buffers = _Buffers(device, sizes[-1])
    kinds: list[tuple[str, bool]] = [
        (direction, pinned)
        for direction in (H2D, D2H)
        for pinned in ((True, False) if device.pins else (True,))
    ]
    points = []
    end_s = time.monotonic() + budget_s
    for number in range(10**6):
        for direction, pinned in kinds:
            for nbytes in sizes:
                move = buffers.move(direction, pinned, nbytes)
                duration = _timed(device, direction, move, nbytes)
                if number:  # the first round is slower, because it touches pages for the first time
                    points.append(CopyPoint(direction, pinned, nbytes, duration))
        if number >= 2 and time.monotonic() > end_s:
            break
    return points


def fit_copies(points: list[CopyPoint], direction: str, *, pinned: bool) -> Fit:
    """Fit latency in ns, and ns a byte, of one kind of copies."""
    chosen = [
        ((point.nbytes, number % 8), float(point.duration_ns))
        for number, point in enumerate(points)
        if (point.direction, point.pinned) == (direction, pinned)
    ]
    return fit(pool(chosen), lambda work: (1, work[0]))


def measure_overlap(device: Device, shape: ModelShape, *, budget_s: float) -> Overlap:
    """Time products and copies of an expert's size: alone, and at the same time."""
    product = _product(device, shape, rows=4)
    nbytes = _size(shape.expert_bytes, 1.0)
    move = _Buffers(device, nbytes).move(H2D, True, nbytes)
    share_s = budget_s / 3
    _repeat(device, GPU, product, 0, share_s / 4)  # a warm-up that does not count
    computing = _repeat(device, GPU, product, 0, share_s)
    copying = _repeat(device, H2D, move, nbytes, share_s)
    both: dict[str, float] = {}

    def copy() -> None:
        both[H2D] = _repeat(device, H2D, move, nbytes, share_s)

    copier = threading.Thread(target=copy, name="moesim-overlap", daemon=True)
    copier.start()
    both[GPU] = _repeat(device, GPU, product, 0, share_s)
    copier.join()
    return Overlap(compute=both[GPU] / computing, copies=both[H2D] / copying)


def measure_rates(device: Device, shape: ModelShape, *, budget_s: float) -> tuple[int, int]:
    """Return the machine's peak rates: operations a second, and bytes a second.

    The first is that of large products. The second counts bytes read and written by large copies
    within the device's memory.
    """
    import torch

    share_s = budget_s / 2
    wide = 1024 if device.torch_device == "cpu" else 8192
    with torch.inference_mode():
        left = torch.randn(wide, wide, device=device.torch_device).to(_dtype(shape))
        right = left.clone()
        flops = 2 * wide**3 * 1e9 / _repeat(device, GPU, lambda: left @ right, 0, share_s)
        # Much larger than the cache of either, so that memory is measured.
        nbytes = _MOST_BYTES // 4 if device.torch_device == "cpu" else 4 * _MOST_BYTES
        large = torch.zeros(nbytes, dtype=torch.uint8, device=device.torch_device)
        other = torch.zeros_like(large)
        moved = (
            2 * large.nbytes * 1e9 / _repeat(device, GPU, lambda: other.copy_(large), 0, share_s)
        )
    return round(flops), round(moved)


def _size(expert_bytes: int, share: float) -> int:
    return max(_LEAST_BYTES, min(_MOST_BYTES, int(expert_bytes * share) // 8 * 8))


def _dtype(shape: ModelShape) -> Any:
    import torch

    return {64: torch.float64, 32: torch.float32}.get(int(shape.expert_bits), torch.bfloat16)


class _Buffers:
    """Memory on the host and the device, filled so that its pages exist."""

    def __init__(self, device: Device, nbytes: int) -> None:
        import torch

        self._device = torch.zeros(nbytes, dtype=torch.uint8, device=device.torch_device)
        self._host = {False: torch.zeros(nbytes, dtype=torch.uint8)}
        self._host[True] = self._host[False].pin_memory() if device.pins else self._host[False]

    def move(self, direction: str, pinned: bool, nbytes: int) -> Callable[[], Any]:
        here, there = self._host[pinned][:nbytes], self._device[:nbytes]
        target, source = (there, here) if direction == H2D else (here, there)
        return lambda: target.copy_(source, non_blocking=True)


def _product(device: Device, shape: ModelShape, rows: int) -> Callable[[], Any]:
    """Return a product with as much reading and arithmetic as an expert with `rows` rows.

    On a GPU, repeats use different weights in turn, so that its cache does not hold them.
    """
    import torch

    on_cpu = device.torch_device == "cpu"
    sets = 1 if on_cpu else max(1, -(-_MOST_BYTES // shape.expert_bytes))
    with torch.inference_mode():
        weights = [
            torch.randn(3, shape.hidden, shape.expert_ffn, device=device.torch_device).to(
                _dtype(shape)
            )
            for _ in range(sets)
        ]
        x = torch.randn(rows, shape.hidden, device=device.torch_device).to(weights[0].dtype)
    turns = cycle(weights)

    def run() -> None:
        with torch.inference_mode():
            gate, up, down = next(turns)
            ((x @ gate) * (x @ up)) @ down.T

    return run


def _timed(device: Device, lane: str, work: Callable[[], Any], nbytes: int) -> int:
    """Return the time of one piece of work on a lane, by the device's own clock, in ns."""
    ready_ns = time.monotonic_ns()
    mark = device.submit(lane, work, nbytes=nbytes, ready_ns=ready_ns)
    mark.wait()
    return mark.finish_ns - mark.start_ns


def _repeat(
    device: Device, lane: str, work: Callable[[], Any], nbytes: int, budget_s: float
) -> float:
    """Return the median time of as many repeats as fit into the time, at least five."""
    taken: list[int] = []
    end_s = time.monotonic() + budget_s
    while len(taken) < 5 or time.monotonic() < end_s:
        taken.append(_timed(device, lane, work, nbytes))
    return float(np.median(taken))
