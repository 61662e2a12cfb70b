"""How a long computation tells an observer how far it is. The library itself never prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

__all__ = ["Counter", "Progress", "counter"]

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: so much of one part of the work, named `what`, is done."""

Counter = Callable[[int, int], None]
"""`counter(done, total)`, of one part whose name is settled."""


def counter(progress: Progress | None, what: str) -> Counter | None:
    """Return the counter of one part; None where there is no observer."""
    return None if progress is None else partial(progress, what)
