"""Compiled functions whose machine code is kept on disk, if possible.

It is kept beside the source or, where that folder cannot be written, in the user's cache folder
(`NUMBA_CACHE_DIR` names another). Where no folder can be written, each process compiles again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["kept"]


def kept(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function at its first call, from disk if possible. `options` are those of numba."""
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the machine code can be written
        return njit(function, **options)
