"""Bars on a terminal: one for each part of a command, with the time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bars", "live"]

# A simulation reports after each step, which is more often than a terminal can draw.
_REDRAW_S: Final = 0.1


class _Time(TimeRemainingColumn):
    """The time left; where nothing tells it, the time since the part began."""

    def render(self, task: Task) -> Text:
        """Return the time of one part."""
        if task.finished or (task.total is not None and task.time_remaining is not None):
            return super().render(task)
        elapsed = timedelta(seconds=int(task.elapsed or 0))
        return Text(f"{elapsed} so far", style="progress.elapsed")


class Bars:
    """The bars of a command. Until its first part begins, one bar without an end says `first`."""

    def __init__(self, first: str) -> None:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Time(),
        ]  # fmt: skip
        self._progress = Progress(*columns)
        self._first: TaskID | None = self._progress.add_task(first, total=None)
        self._tasks: dict[str, TaskID] = {}
        self._drawn_s: dict[str, float] = {}

    def __rich__(self) -> RenderableType:
        return self._progress.get_renderable()

    def show(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of the part `what` are finished.

        A part of one unit that is not done has an unknown length, and so a bar without an end.
        """
        now = time.monotonic()
        if what not in self._tasks:
            if self._first is not None:
                self._progress.remove_task(self._first)
                self._first = None
            self._tasks[what] = self._progress.add_task(what, total=None)
        elif done < total and now - self._drawn_s[what] < _REDRAW_S:
            return
        self._drawn_s[what] = now
        known = None if done == 0 and total == 1 else total
        self._progress.update(self._tasks[what], completed=done, total=known)


def live(shown: RenderableType, redraws_per_s: float = 10) -> Live:
    """Return a context that draws `shown` on stderr until it ends, and then wipes it."""
    # What a command says meanwhile goes above the bars, but to stdout if that is a pipe.
    return Live(
        shown,
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=redraws_per_s,
        redirect_stdout=sys.stdout.isatty(),
    )
