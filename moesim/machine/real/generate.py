"""The former place of `moesim.executor.generate`, for scripts that import it from here.

Nothing of moesim imports this module, and it imports its new place only when a name is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = ("Generation", "Serving", "generate")


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("moesim.executor.generate"), name)
