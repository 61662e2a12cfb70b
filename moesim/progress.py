"""Progress of a long computation, reported to a callback. The library itself never prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

__all__ = ["Counter", "Progress", "counter"]

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: `done` of `total` units of the part `what` are finished."""

Counter = Callable[[int, int], None]
"""`counter(done, total)`: the same for a part whose name is fixed."""


def counter(progress: Progress | None, what: str) -> Counter | None:
    """Return the counter of the part `what`; None where there is no callback."""
    return None if progress is None else partial(progress, what)
