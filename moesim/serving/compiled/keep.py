"""Compiled functions whose machine code is kept on disk, if possible.

It is kept beside the source or, where that folder cannot be written, in the user's cache folder
(`NUMBA_CACHE_DIR` names another). Where no folder can be written, each process compiles again.

numba compiles again when the file of a function changes, but not when one changes that it takes
functions or numbers from. So the names of functions have a hash of all files of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit

__all__ = ["kept"]


def kept(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function at its first call, from disk if possible. `options` are those of numba."""
    function.__qualname__ += f"_{_sources()}"
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the machine code can be written
        return njit(function, **options)


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
