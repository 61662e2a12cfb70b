"""Progress on stderr: bars if it is a terminal; of a sweep otherwise a line a minute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import typer

__all__ = [
    "Show",
    "is_drawn",
    "note_watched",
    "progress",
    "say",
    "seconds_watched",
    "sweep_progress",
]

Show = Callable[[str, int, int], None]
"""`show(what, done, total)`: draw one bar for each `what`, with the remaining time."""

_LINE_S: Final = 60.0
_began: list[float] = []


def is_drawn() -> bool:
    """Return whether stderr is a terminal on which lines can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def say(text: str, *, err: bool = False) -> None:
    """Print a line while bars may be drawn: it goes above them, where typer would write on them."""
    # By name, because the bars have put a stream of their own there.
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


@contextmanager
def progress(first: str = "preparing") -> Iterator[Show | None]:
    """Yield a function that shows progress, or None if stderr is not a terminal.

    Until it is first called, `first` says what the command does, beside the seconds that it takes.
    So enter this context before slow imports.
    """
    if not is_drawn():
        yield None
        return
    from moesim.cli.bars import Bars, live

    note_watched()
    bars = Bars(first)
    with live(bars):
        yield bars.show


def note_watched() -> None:
    """Note that this command shows progress from now on."""
    _began.append(time.monotonic())


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
