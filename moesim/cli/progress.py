"""Progress on a terminal, nothing elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Show", "progress", "seconds_watched"]

Show = Callable[[str, int, int], None]
"""`show(what, done, total)`: a bar for each `what`, with the time that is left."""

# A simulation reports after each step: more often than a terminal can show.
_REDRAW_S: Final = 0.1
_began: list[float] = []


@contextmanager
def progress() -> Iterator[Show | None]:
    """Yield a function that shows progress, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    _began.append(time.monotonic())
    with Progress(console=Console(stderr=True), transient=True) as bars:
        yield _shower(bars)


def seconds_watched() -> float | None:
    """Return the time since this command first showed progress; None if it never did."""
    return time.monotonic() - _began[0] if _began else None


def _shower(bars: Progress) -> Show:
    tasks: dict[str, TaskID] = {}
    drawn_s: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        elif done < total and now - drawn_s[what] < _REDRAW_S:
            return
        drawn_s[what] = now
        bars.update(tasks[what], completed=done, total=total)

    return show
