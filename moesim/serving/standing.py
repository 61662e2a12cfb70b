"""The standing of a run while it is served, for a live view.

A view gets the server before its run, and reads it whenever progress is reported: then no step is
being decided. A reading changes nothing, so the run is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.serving.ledger import STEP_COLUMNS

if TYPE_CHECKING:
    from moesim.serving.server import Server

__all__ = ["Readings", "Standing", "Watch"]

Watch = Callable[["Server"], None]
"""`watch(server)`: gets the server of a run before it serves."""

_LAST: Final = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """Counts from the start of a run to the last step that its ledger has.

    The ledger gets steps that were timed at once in groups, so it may be some steps behind the
    requests and KV blocks. `ended` requests are finished or rejected. `busy_shares` are the busy
    time of each lane ÷ `now_ns`. `last_steps` have the columns of `steps.parquet`, oldest first.
    """

    now_ns: int
    steps: int
    requests: int
    ended: int
    running: int
    queued: int
    hits: int
    late_hits: int
    misses: int
    decode_tokens: int
    kv_blocks: int
    kv_blocks_total: int
    busy_shares: Mapping[str, float]
    last_steps: tuple[Mapping[str, int], ...]

    @property
    def accesses(self) -> int:
        """Hits, late hits and misses together."""
        return self.hits + self.late_hits + self.misses

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens that decode steps computed ÷ the simulated time, of all requests together."""
        return self.decode_tokens * 1e9 / self.now_ns if self.now_ns else 0.0


class Readings:
    """Reads the standing of one server. Each step is summed once, however often it is asked."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._steps = 0
        self._sums = np.zeros(len(STEP_COLUMNS), np.int64)
        self._last = np.zeros((0, len(STEP_COLUMNS)), np.int64)

    def read(self) -> Standing:
        """Return how the run stands now."""
        server, ledger = self._server, self._server.ledger
        rows = ledger.steps_from(self._steps)
        self._steps += len(rows)
        self._sums += rows.sum(axis=0)
        self._last = np.concatenate([self._last, rows])[-_LAST:]
        sums = dict(zip(STEP_COLUMNS, self._sums.tolist(), strict=True))
        running, queued = len(server.scheduler.running), len(server.scheduler.waiting)
        pool, clock = server.scheduler.pool, max(1, ledger.ended_ns)
        return Standing(
            now_ns=ledger.ended_ns,
            steps=self._steps,
            requests=len(server.requests),
            ended=server.arrivals.sent - running - queued,
            running=running,
            queued=queued,
            hits=sums["hits"],
            late_hits=sums["late_hits"],
            misses=sums["misses"],
            decode_tokens=sums["decode_tokens"],
            kv_blocks=pool.total - pool.free,
            kv_blocks_total=pool.total,
            busy_shares={lane: busy / clock for lane, busy in ledger.busy_ns.items()},
            last_steps=tuple(
                dict(zip(STEP_COLUMNS, row, strict=True)) for row in self._last.tolist()
            ),
        )
