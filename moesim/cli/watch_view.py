"""What `--watch` draws: bars, figures from the start of the run, and its last steps.

It fits into 80 columns and 24 lines, and says nothing by colour. It is plain text, because a table
of rich takes several times as long to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from moesim.cli.bars import Bars
from moesim.cli.watch import shares_of
from moesim.config.units import format_duration_ns
from moesim.serving.standing import Standing

__all__ = ["View", "lines_of"]

_WIDTHS: Final = {
    "step": 8, "starts at": 10, "takes": 10, "tokens": 7, "requests": 9,
    "hits": 6, "late": 6, "misses": 7, "GPU waits": 10,
}  # fmt: skip
"""The columns of the last steps, and their widths."""


class View:
    """The drawing of a run. A redraw may come from another thread: it sees one whole standing."""

    def __init__(self) -> None:
        self.bars = Bars("preparing")
        self._shown = Text()

    def stand(self, it: Standing) -> None:
        """Draw this standing from now on."""
        self._shown = Text("\n".join(lines_of(it)), no_wrap=True, overflow="ellipsis")

    def __rich__(self) -> RenderableType:
        return Group(self.bars, self._shown)


def lines_of(it: Standing) -> Iterator[str]:
    """Yield the lines below the bars: the figures of the run so far, then its last steps."""
    hits, late, misses = shares_of(it)
    used = it.kv_blocks / it.kv_blocks_total if it.kv_blocks_total else 0
    rows = {
        "simulated": f"{format_duration_ns(it.now_ns)} in {it.steps} steps",
        "decode": f"{it.decode_tokens_per_s:.4g} tokens/s, all requests together",
        "requests": f"{it.running} running   {it.queued} queued   {it.ended} of "
        f"{it.requests} ended",
        "experts": f"hits {hits}   late {late}   misses {misses}",
        "KV blocks": f"{it.kv_blocks} of {it.kv_blocks_total} in use ({used:.0%})",
        "lanes busy": "   ".join(f"{lane} {share:.0%}" for lane, share in it.busy_shares.items()),
    }
    yield ""
    yield from (f"{name:12}{text}" for name, text in rows.items())
    yield ""
    yield _row(_WIDTHS)
    yield from (_row(_cells(step)) for step in it.last_steps)


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS.values(), strict=True))


def _cells(step: Mapping[str, int]) -> tuple[str, ...]:
    duration_ns = step["finish_ns"] - step["start_ns"]
    waits = step["stall_ns"] / duration_ns if duration_ns else 0
    counts = (step[name] for name in ("tokens", "sequences", "hits", "late_hits", "misses"))
    return (
        str(step["step"]),
        format_duration_ns(step["start_ns"]),
        format_duration_ns(duration_ns),
        *map(str, counts),
        f"{waits:.0%}",
    )
