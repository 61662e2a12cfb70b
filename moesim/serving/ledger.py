"""The ledger: what happened, written down once, on every machine alike.

The server notes each piece of work with its ticket; when a step ends all its tickets are done,
their times are read, and idle time of the GPU inside the step is attributed to a cause: before
the work was even issued the host was waiting for ids (*readback*); after that, the copy it
waited for (*demand* or *late* prefetch).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.machine.base import Ticket
from moesim.policies.view import Key

CAUSE_READBACK, CAUSE_DEMAND, CAUSE_LATE, CAUSE_OTHER = range(4)
CAUSES = ("readback", "demand", "late", "other")
FRONT, DENSE, TAIL = 4, 5, 6  # kinds of GPU work beside experts, whose kind is their cause
_KINDS = ("experts", "experts", "experts", "experts", "front", "dense", "tail")
_LOG_CHUNK = 1 << 16

STEP_COLUMNS = (
    "step",
    "start_ns",
    "finish_ns",
    "tokens",
    "prefill_tokens",
    "decode_tokens",
    "sequences",
    "accesses",
    "hits",
    "late_hits",
    "misses",
    "h2d_bytes",
    "stall_ns",
    "waves",
    "kv_blocks",
)
TIMELINE_COLUMNS = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")


# (ticket, kind, layer, key, bytes, what had to be done before its buffer was overwritten)
_Copy = tuple[Ticket, str, int, Key, int, Sequence[Ticket]]


class Ledger:
    """Counters and rows of one run. Per-layer lists are indexed by trace layer."""

    def __init__(
        self, num_layers: int, num_experts: int, *, first_step: int = 0, steps: int = 0
    ) -> None:
        layers = range(num_layers)
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.issued_ns = 0  # the instant of the server's last wait: when work is being issued
        self.events = [0 for _ in layers]
        self.accesses = [0 for _ in layers]
        self.hits = [0 for _ in layers]
        self.late_hits = [0 for _ in layers]
        self.tokens = [0 for _ in layers]
        self.token_hits = [0 for _ in layers]
        self.demand_copies = [0 for _ in layers]
        self.prefetch_copies = [0 for _ in layers]
        self.stall_ns = [[0 for _ in range(num_layers + 1)] for _ in CAUSES]
        self.prefetch_useful = 0
        self.prefetch_late = 0
        self.prefetch_wasted = 0
        self.prefetch_refused = 0
        self.demand_bytes = 0
        self.prefetch_bytes = 0
        self.write_back_bytes = 0
        self.readback_bytes = 0
        self.finished_bytes = 0
        self.waves_max = 0
        self.waves_sum = 0
        self.waves_events = 0
        self.gpu_busy_ns = 0
        self.h2d_busy_ns = 0
        self.d2h_busy_ns = 0
        self.stepping_ns = 0
        self.steps: list[tuple[int, ...]] = []
        self.timeline: list[tuple[str, str, int, int, int, int, int]] = []
        self._window = range(first_step, first_step + steps)
        self._work: list[tuple[Ticket, int, int, int, Ticket | None]] = []
        self._copies: list[_Copy] = []
        self._log: list[Sequence[Key]] = []
        self._packed: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        self._last_demand_ns = 0
        self._step_start_ns = 0
        self._step_base = (0, 0, 0, 0)
        self._step_waves = 0

    # --- noted by the server, as it issues work ---

    def computed(
        self, ticket: Ticket, kind: int, layer: int, landing: Ticket | None = None
    ) -> None:
        """GPU work; its kind is one of the causes (experts), FRONT, DENSE or TAIL. `landing` is
        the copy that brings its expert."""
        self._work.append((ticket, self.issued_ns, kind, layer, landing))

    def copied_on_demand(
        self, ticket: Ticket, layer: int, key: Key, nbytes: int, after: Sequence[Ticket]
    ) -> None:
        self.demand_copies[layer] += 1
        self.demand_bytes += nbytes
        self._copies.append((ticket, "demand", layer, key, nbytes, after))

    def prefetched(
        self, ticket: Ticket, layer: int, key: Key, nbytes: int, after: Sequence[Ticket]
    ) -> None:
        self.prefetch_copies[layer] += 1
        self.prefetch_bytes += nbytes
        self._copies.append((ticket, "prefetch", layer, key, nbytes, after))

    def written_back(self, ticket: Ticket, key: Key, nbytes: int, after: Sequence[Ticket]) -> None:
        self.write_back_bytes += nbytes
        layer = key // self.num_experts
        self._copies.append((ticket, "write_back", layer, key, nbytes, after))

    def read_back(self, ticket: Ticket, layer: int, nbytes: int) -> None:
        self.readback_bytes += nbytes
        self._copies.append((ticket, "readback", layer, -1, nbytes, ()))

    def event(
        self,
        layer: int,
        union: Sequence[Key],
        tokens: Sequence[int],
        hits: int,
        late: int,
        missed_tokens: int,
        waves: int,
        useful: int,
    ) -> None:
        """One layer event, classified."""
        rows = sum(tokens)
        self.events[layer] += 1
        self.accesses[layer] += len(union)
        self.hits[layer] += hits
        if late:
            self.late_hits[layer] += late
        self.tokens[layer] += rows
        self.token_hits[layer] += rows - missed_tokens
        if useful:
            self.prefetch_useful += useful
        if waves:
            self.waves_events += 1
            self.waves_sum += waves
            self._step_waves += waves
            if waves > self.waves_max:
                self.waves_max = waves
        self._log.append(union)

    # --- at the borders of a step, when all tickets of the step are done ---

    def begin_step(self, now_ns: int) -> None:
        if now_ns < self._step_start_ns:
            raise InvariantError(15, f"the clock went back to {now_ns} ns")
        self.issued_ns = self._step_start_ns = now_ns
        self._step_base = self._totals()
        self._step_waves = 0

    def _totals(self) -> tuple[int, int, int, int]:
        return (
            sum(self.accesses),
            sum(self.hits),
            sum(self.late_hits),
            self.demand_bytes + self.prefetch_bytes,
        )

    def end_step(
        self, now_ns: int, *, prefill_tokens: int, decode_tokens: int, sequences: int, blocks: int
    ) -> None:
        """Read the times of the step's work; `now_ns` is when its tokens were known to the host."""
        number = len(self.steps)
        stalled = self._attribute(now_ns)
        if number in self._window:
            self._show(number)
        self._work.clear()
        self._collect(now_ns, number)
        accesses, hits, late, moved = (
            now - before for now, before in zip(self._totals(), self._step_base, strict=True)
        )
        self.stepping_ns += now_ns - self._step_start_ns
        self.steps.append(
            (
                number,
                self._step_start_ns,
                now_ns,
                prefill_tokens + decode_tokens,
                prefill_tokens,
                decode_tokens,
                sequences,
                accesses,
                hits,
                late,
                accesses - hits - late,
                moved,
                stalled,
                self._step_waves,
                blocks,
            )
        )
        if len(self._log) >= _LOG_CHUNK:
            self._pack()

    def _attribute(self, now_ns: int) -> int:
        """GPU idle time of the step, booked by cause and layer; answers its sum."""
        clock = self._step_start_ns
        readback = self.stall_ns[CAUSE_READBACK]
        stalled = busy = 0
        for ticket, issued, kind, layer, landing in self._work:
            start = ticket.start_ns
            gap = start - clock
            if gap:
                if gap < 0:
                    raise InvariantError(9, f"GPU work overlaps by {-gap} ns at {start} ns")
                stalled += gap
                unissued = issued - clock
                if unissued > 0:
                    unissued = min(unissued, gap)
                    readback[layer] += unissued
                    gap -= unissued
                cause = kind if CAUSE_READBACK < kind < CAUSE_OTHER else CAUSE_OTHER
                self.stall_ns[cause][layer] += gap
            if landing is not None and start < landing.finish_ns:
                raise InvariantError(4, f"an expert is computed at {start} ns, before it landed")
            clock = ticket.finish_ns
            busy += clock - start
        self.gpu_busy_ns += busy
        readback[self.num_layers] += now_ns - clock
        return stalled + now_ns - clock

    def _collect(self, now_ns: int, step: int) -> None:
        """Book the copies that are finished; the others stay for a later step."""
        flying = []
        for entry in self._copies:
            ticket, kind, _, key, nbytes, after = entry
            if ticket.finish_ns > now_ns:
                flying.append(entry)
                continue
            for reader in after:
                if ticket.start_ns < reader.finish_ns:
                    raise InvariantError(5, f"the copy of key {key} overwrites a slot in use")
            if kind == "demand":
                if ticket.start_ns < self._last_demand_ns:
                    raise InvariantError(9, f"two demand copies overlap at {ticket.start_ns} ns")
                self._last_demand_ns = ticket.finish_ns
                self.h2d_busy_ns += ticket.busy_ns
                self.finished_bytes += nbytes
            elif kind == "prefetch":
                self.h2d_busy_ns += ticket.busy_ns
                self.finished_bytes += nbytes
            else:
                self.d2h_busy_ns += ticket.busy_ns
            if step in self._window:
                self._show_copy(entry, step)
        self._copies = flying

    def finish(self, now_ns: int) -> int:
        """Close the books; answers the bytes of copies still in flight."""
        self._collect(now_ns, len(self.steps) - 1)
        return sum(copy[4] for copy in self._copies if copy[1] in ("demand", "prefetch"))

    def _show(self, step: int) -> None:
        for ticket, _, kind, layer, _ in self._work:
            entry = ("gpu", _KINDS[kind], ticket.start_ns, ticket.finish_ns, step, layer, -1)
            self.timeline.append(entry)

    def _show_copy(self, copy: _Copy, step: int) -> None:
        ticket, kind, layer, key, *_ = copy
        lane = "h2d" if kind in ("demand", "prefetch") else "d2h"
        expert = key % self.num_experts if key >= 0 else -1
        entry = (lane, kind, ticket.start_ns, ticket.finish_ns, step, layer, expert)
        self.timeline.append(entry)

    # --- read afterwards ---

    def _pack(self) -> None:
        sizes = np.fromiter(map(len, self._log), np.int32, len(self._log))
        keys = np.fromiter(chain.from_iterable(self._log), np.int32, int(sizes.sum()))
        self._packed.append((sizes, keys))
        self._log = []

    def unions(self) -> list[list[Key]]:
        """All layer events in order, as their unions; the layer of a key is key ÷ experts."""
        self._pack()
        result: list[list[Key]] = []
        for sizes, keys in self._packed:
            ends = np.cumsum(sizes).tolist()
            flat = keys.tolist()
            result += [flat[s:e] for s, e in zip([0, *ends], ends, strict=False)]
        return result

    def step_columns(self) -> dict[str, Any]:
        """Columns of `steps.parquet`."""
        table = np.array(self.steps, np.int64).reshape(-1, len(STEP_COLUMNS))
        return {name: table[:, i] for i, name in enumerate(STEP_COLUMNS)}

    def timeline_columns(self) -> dict[str, Any]:
        """Columns of `timeline.parquet`, in order of start."""
        rows = sorted(self.timeline, key=lambda row: (row[2], row[0], row[3]))
        return {name: [row[i] for row in rows] for i, name in enumerate(TIMELINE_COLUMNS)}
