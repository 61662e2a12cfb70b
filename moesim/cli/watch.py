"""The view of `--watch`: how a run stands, redrawn a few times a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from moesim.cli.progress import Show, is_drawn, note_watched

if TYPE_CHECKING:
    from moesim.serving.server import Server
    from moesim.serving.standing import Readings, Standing, Watch

__all__ = ["Watching", "standing_line", "watching"]

_READ_S: Final = 0.25
_LINE_S: Final = 60.0
_NO_TERMINAL: Final = "stderr is not a terminal that can be redrawn: --watch prints a line a minute"


class Watching(NamedTuple):
    """What a simulation is given to be watched: its callbacks `progress` and `watch`."""

    show: Show
    watch: Watch


@contextmanager
def watching() -> Iterator[Watching]:
    """Yield the callbacks of a view of one run; on no terminal they print a line a minute."""
    if not is_drawn():
        typer.echo(_NO_TERMINAL, err=True)
        line = _Reader(_LINE_S, lambda standing: typer.echo(standing_line(standing), err=True))
        # A line says how the run stands; its bounds are short beside it, and have no standing.
        yield Watching(line.show, line.watch)
        return
    from moesim.cli.bars import live
    from moesim.cli.watch_view import View

    note_watched()
    view = View()
    reader = _Reader(_READ_S, view.stand, at_once=True)

    def show(what: str, done: int, total: int) -> None:
        reader.show(what, done, total)
        view.bars.show(what, done, total)

    with live(view, redraws_per_s=1 / _READ_S):
        yield Watching(show, reader.watch)


class _Reader:
    """Reads the standing of a run, at most once in `every_s` seconds, and at its end."""

    def __init__(
        self, every_s: float, tell: Callable[[Standing], None], *, at_once: bool = False
    ) -> None:
        self._every_s, self._tell, self._at_once = every_s, tell, at_once
        self._read_s = 0.0 if at_once else time.monotonic()
        self._readings: Readings | None = None

    def watch(self, server: Server) -> None:
        from moesim.serving.standing import Readings

        self._readings = Readings(server)

    def show(self, _what: str, done: int, total: int) -> None:
        if self._readings is None:
            return
        now_s = time.monotonic()
        if now_s - self._read_s >= self._every_s or (done >= total and self._at_once):
            self._read_s = now_s
            self._tell(self._readings.read())


def standing_line(it: Standing) -> str:
    """Return how a run stands in one line."""
    from moesim.config.units import format_duration_ns

    hits, late, misses = shares_of(it)
    return (
        f"{it.ended} of {it.requests} requests have ended, {it.running} run, {it.queued} wait; "
        f"simulated {format_duration_ns(it.now_ns)} in {it.steps} steps; "
        f"{it.decode_tokens_per_s:.4g} decode tokens/s; "
        f"hits {hits}, late {late}, misses {misses}; "
        f"KV blocks {it.kv_blocks} of {it.kv_blocks_total}"
    )


def shares_of(it: Standing) -> tuple[str, str, str]:
    """Return the shares of hits, late hits and misses in all accesses, in per cent."""
    hits, late, misses = (
        f"{count / it.accesses:.1%}" if it.accesses else "-"
        for count in (it.hits, it.late_hits, it.misses)
    )
    return hits, late, misses
