"""What `--watch` draws: bars, figures from the start of the run, and its last steps.

It fits into 80 columns and 24 lines, and says nothing by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table

from moesim.cli.bars import Bars
from moesim.cli.watch import shares_of
from moesim.config.units import format_duration_ns
from moesim.serving.standing import Standing

__all__ = ["View", "figures", "last_steps"]

_COLUMNS: Final = (
    "step", "starts at", "takes", "tokens", "requests", "hits", "late", "misses", "GPU waits",
)  # fmt: skip


class View:
    """The drawing of a run. A redraw may come from another thread: it sees one whole standing."""

    def __init__(self) -> None:
        self.bars = Bars("preparing")
        self._shown: RenderableType = ""

    def stand(self, it: Standing) -> None:
        """Draw this standing from now on."""
        self._shown = Group("", figures(it), "", last_steps(it))

    def __rich__(self) -> RenderableType:
        return Group(self.bars, self._shown)


def figures(it: Standing) -> Table:
    """Return the figures of the run so far, one a line."""
    hits, late, misses = shares_of(it)
    lanes = "   ".join(f"{lane} {share:.0%}" for lane, share in it.busy_shares.items())
    used = it.kv_blocks / it.kv_blocks_total if it.kv_blocks_total else 0
    rows = {
        "simulated": f"{format_duration_ns(it.now_ns)} in {it.steps} steps",
        "decode": f"{it.decode_tokens_per_s:.4g} tokens/s, all requests together",
        "requests": f"{it.running} running   {it.queued} queued   {it.ended} of "
        f"{it.requests} ended",
        "experts": f"hits {hits}   late {late}   misses {misses}",
        "KV blocks": f"{it.kv_blocks} of {it.kv_blocks_total} in use ({used:.0%})",
        "lanes busy": lanes,
    }
    table = Table.grid(padding=(0, 2))
    for row in rows.items():
        table.add_row(*row)
    return table


def last_steps(it: Standing) -> Table:
    """Return the last steps as a table, the newest last."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for step in it.last_steps:
        table.add_row(*_cells(step))
    return table


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
