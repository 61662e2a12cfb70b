"""Timings on a machine that others use too: what is right is right in one of a few tries."""

from __future__ import annotations

from collections.abc import Callable


def in_a_quiet_moment(attempt: Callable[[], None], tries: int = 4) -> None:
    """Run `attempt` until its assertions hold once; what is wrong fails every time."""
    for _ in range(tries - 1):
        try:
            attempt()
        except AssertionError:
            continue
        return
    attempt()
