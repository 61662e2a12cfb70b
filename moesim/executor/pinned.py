"""Page-locked host memory of exactly the size that is needed.

Torch's own allocator of page-locked memory rounds every request up to a power of two: 90 GB of
experts would take 128 GB. So a large block is ordinary memory that is registered with CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["page_locked"]

_PAGE = 4096  # bytes; whole pages are registered, so no other memory shares them


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Callable[[], None]]:
    """Return a page-locked tensor with arbitrary content, and a function that unlocks it.

    After that function the tensor is ordinary memory. Call it before the memory is freed. Where
    CUDA registers no memory, the tensor comes from torch's allocator.
    """
    nbytes = prod(shape) * dtype.itemsize
    pages = -(-nbytes // _PAGE) * _PAGE
    block = torch.empty(pages + _PAGE, dtype=torch.uint8)
    start = -block.data_ptr() % _PAGE
    rows = block[start : start + nbytes].view(dtype).view(shape)
    address = block.data_ptr() + start
    cuda: Any = torch.cuda
    if not nbytes:
        return rows, _nothing
    if int(cuda.cudart().cudaHostRegister(address, pages, 0)) != 0:
        _clear_error()
        return torch.empty(shape, dtype=dtype, pin_memory=True), _nothing

    def unlock() -> None:
        cuda.synchronize()  # a copy that is under way needs the lock
        if int(cuda.cudart().cudaHostUnregister(address)) != 0:
            _clear_error()

    return rows, unlock


def _clear_error() -> None:
    """Take a failed call's error away, which torch would report at its next kernel."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def _nothing() -> None:
    pass
