"""Copies of hidden states, outputs and small numbers between the memories, as tensors of their own.

A copy of a GPU's stream lands later, and its target is read by another stream or by the CPU. On the
CPU both memories are host memory; the copies are still real, so that the order of works matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["at_once", "landing", "staged", "to_device", "to_host"]


def to_host(source: Tensor) -> Tensor:
    """Return a copy in host memory; from a GPU it may land later."""
    if not source.is_cuda:
        return source.clone()  # memory of its own, as on a GPU, so that order matters here too
    source.record_stream(torch.cuda.current_stream())
    target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return target.copy_(source, non_blocking=True)


def to_device(source: Tensor, device: torch.device) -> Tensor:
    """Return a copy in the device's memory; on a GPU it may land later."""
    return source.to(device, non_blocking=True, copy=True)


def staged(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers of ordinary host memory on the device; on a GPU they may land later.

    A copy from ordinary memory may wait for all earlier work of its stream. So the numbers go
    through page-locked memory, which torch reuses only once the copy is done.
    """
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def landing(device: torch.device) -> Callable[[], bool]:
    """Return a function that tells whether the copies of this thread's stream are done."""
    if device.type != "cuda":
        return at_once
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return lambda: bool(event.query())


def at_once() -> bool:
    return True
