"""Progress on stderr: bars if it is a terminal; of a sweep otherwise a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Show", "progress", "seconds_watched", "sweep_progress"]

Show = Callable[[str, int, int], None]
"""`show(what, done, total)`: draw one bar for each `what`, with the remaining time."""

# A simulation reports after each step, which is more often than a terminal can draw.
_REDRAW_S: Final = 0.1
_LINE_S: Final = 60.0
_began: list[float] = []


@contextmanager
def progress() -> Iterator[Show | None]:
    """Yield a function that shows progress, or None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    _began.append(time.monotonic())
    with Progress(console=Console(stderr=True), transient=True) as bars:
        yield _shower(bars)


@contextmanager
def sweep_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many of the parts of a sweep are done.

    A batch system keeps stderr in a file. A line a minute then says how long the sweep will take.
    """
    lines = _lines(what, total)
    with progress() as bars:
        yield lines if bars is None else lambda done: bars(what, done, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Return a function that prints a line with the remaining time, at most once a minute."""
    began_s = printed_s = time.monotonic()
    first: int | None = None

    def show(done: int) -> None:
        nonlocal first, printed_s
        now = time.monotonic()
        first = done if first is None else first
        if done > first and now > printed_s + _LINE_S:
            printed_s = now
            left_s = (total - done) * (now - began_s) / (done - first)
            typer.echo(
                f"{done} of {total} {what} are done; about {left_s / 60:.0f} min left", err=True
            )

    return show


def seconds_watched() -> float | None:
    """Return the seconds since this command first showed progress; None if it never did."""
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
