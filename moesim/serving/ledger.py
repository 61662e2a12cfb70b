"""The ledger: the counters and rows of a run, recorded in the same way on every machine.

The server issues work through an `Issuer`, which appends an `Entry` of each to `log`. At the end of
a step all works that the step waited for are done, so the ledger reads their times. It gives each
idle moment of the GPU a cause (`moesim/serving/stalls.py`). Copies that are still under way are
read at the end of a later step.

A `StepMemo` adds the steps that it timed at once itself, as sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add, sub
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.hardware.ops import Copy
from moesim.hardware.topology import Topology
from moesim.machine.work import Work
from moesim.policies.event_lists import EventLists
from moesim.policies.view import Key
from moesim.serving.experts.decision import Decision
from moesim.serving.layers import LayerPlan
from moesim.serving.stalls import CAUSES, DEMAND, LATE, READBACK, Entry, account
from moesim.serving.too_early import too_early
from moesim.serving.totals import StepTotals

__all__ = ["MOVES", "STEP_COLUMNS", "TIMELINE_COLUMNS", "Ledger", "StepFacts"]

MOVES: Final = ("demand", "prefetch", "write_back", "readback", "states", "read")
"""The kinds of work that move bytes."""
_LOG_CHUNK = 1 << 16  # keys held as Python integers before they are packed into an array

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
    "residents",
)
TIMELINE_COLUMNS = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")


class StepFacts(NamedTuple):
    """What is known of a step without its experts: numbers of tokens, requests and KV blocks."""

    prefill_tokens: int
    decode_tokens: int
    sequences: int
    blocks: int


class Ledger:
    """Counters and rows of one run. Per-layer lists are indexed by trace layer.

    The timeline has rows for `steps` steps from step `first_step` on. With `per_step`, it also
    records what each step added to the counters.
    """

    def __init__(
        self,
        plan: LayerPlan,
        num_experts: int,
        topology: Topology | None = None,
        *,
        first_step: int = 0,
        steps: int = 0,
        per_step: bool = False,
    ) -> None:
        num_layers = len(plan.model_layers)
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.layers = plan
        self.log: list[Entry] = []
        self._in_flight: list[Entry] = []
        self._union_keys: list[Key] = []
        self._union_sizes: list[int] = []
        self.hits = [0] * num_layers
        self.late_hits = [0] * num_layers
        self.elsewhere = [0] * num_layers
        self.rows = [0] * num_layers
        self.missed_rows = [0] * num_layers
        self.demand_copies = [0] * num_layers
        self.prefetch_copies = [0] * num_layers
        self.demand_bytes = [0] * num_layers
        self.prefetch_bytes = [0] * num_layers
        # The last entry of each list is the end of a step, after all layers.
        self.stall_ns = [[0] * (num_layers + 1) for _ in CAUSES]
        self.hindsight: set[str] = set()  # families whose policy learnt on the replayed trace
        self.prefetch_useful = 0
        self.prefetch_late = 0
        self.prefetch_wasted = 0
        self.prefetch_refused = 0
        self.prefetch_pollution = 0
        self.prefetch_cancelled = 0
        self.moved_bytes = dict.fromkeys(MOVES, 0)
        self.busy_ns = dict.fromkeys((topology or Topology.single_gpu()).names, 0)
        self.waves_max = 0
        self.waves_sum = 0
        self.waves_events = 0
        self.stepping_ns = 0
        self.num_steps = 0
        self._step_rows: list[tuple[int, ...]] = []
        self._step_tables: list[npt.NDArray[np.int64]] = []  # [steps, columns], before the rows
        self.timeline: list[tuple[str, str, int, int, int, int, int]] = []
        self.timeline_steps = range(first_step, first_step + steps)
        # Of some layer events each: the sizes of their unions, and the keys.
        self._packed: list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]] = []
        self._key_type = np.uint16 if num_layers * num_experts <= 1 << 16 else np.int32
        self._events = np.zeros(num_layers, np.int64)  # of what is packed
        self._accesses = np.zeros(num_layers, np.int64)
        self._last_demand_ns = 0
        self._step_start_ns = 0
        self.ended_ns = 0
        self._step_base: tuple[int, ...] = ()
        self.per_step = StepTotals() if per_step else None

    @property
    def copy_stalls_ns(self) -> tuple[list[int], list[int]]:
        """Waits for expert copies in ns, by layer: of demand copies, and of late copies ahead."""
        return self.stall_ns[DEMAND], self.stall_ns[LATE]

    # --- decisions ---

    def decided(self, it: Decision) -> None:
        """Count the outcomes of a layer event."""
        layer = it.layer
        self.hits[layer] += len(it.ready)
        if it.late:
            self.late_hits[layer] += len(it.late)
        if it.loads:
            self.demand_copies[layer] += len(it.loads)
            self.missed_rows[layer] += sum([rows for _, rows, _ in it.loads])
            self.waves(it.waves)
        if it.elsewhere:
            self.elsewhere[layer] += len(it.elsewhere)
            self.missed_rows[layer] += sum([rows for _, rows, _ in it.elsewhere])
        if it.later:
            self.prefetch_copies[layer] += len(it.later)

    def waves(self, number: int) -> None:
        """Record that a layer event needed `number` rounds through the staging buffers."""
        self.waves_events += 1
        self.waves_sum += number
        if number > self.waves_max:
            self.waves_max = number

    def cancelled(self, work: Work) -> None:
        """Forget a copy ahead that the machine removed before it started."""
        self.prefetch_cancelled += 1
        for entries in (self.log, self._in_flight):
            for place, (other, _, layer, *_) in enumerate(entries):
                if other is not work:
                    continue
                del entries[place]
                self.prefetch_copies[layer] -= 1
                if entries is self._in_flight:  # its bytes were counted in an earlier step
                    nbytes = work.op.nbytes  # type: ignore[union-attr]
                    self.prefetch_bytes[layer] -= nbytes
                    hits, late, copied, waves = self._step_base
                    self._step_base = hits, late, copied - nbytes, waves
                return

    # --- at the borders of a step, when all work that it waited for is done ---

    def begin_step(self, now_ns: int) -> None:
        """Start a step. Raise `InvariantError` if the clock went back."""
        if now_ns < self.ended_ns:
            raise InvariantError(15, f"the clock went back to {now_ns} ns")
        self._step_start_ns = now_ns
        self._step_base = self._step_sums()
        if self.per_step is not None:
            self.per_step.begin(self)

    def _step_sums(self) -> tuple[int, ...]:
        """Return the sums of which a step's rows are differences."""
        copied = sum(self.demand_bytes) + sum(self.prefetch_bytes)
        return sum(self.hits), sum(self.late_hits), copied, self.waves_sum

    def end_step(
        self,
        now_ns: int,
        facts: StepFacts,
        unions: Sequence[Sequence[Key]],
        rows: Sequence[Sequence[int]],
        waited: int = READBACK,
        residents: int = 0,
    ) -> None:
        """End a step: read the times of its work, and add it to counters and rows.

        `now_ns` is the time at which the host had the step's tokens, after a wait whose idle GPU
        has the cause `waited`. `unions` and `rows` hold, for each layer, the distinct keys and the
        number of rows that wanted each. `residents` is the number of experts with a slot.
        """
        self.rows = list(map(add, self.rows, map(sum, rows)))
        accesses = sum(map(len, unions))
        number = self.num_steps
        self.num_steps += 1
        self._count_bytes()
        clock, stalled = account(self.log, self._step_start_ns, self.stall_ns)
        if now_ns < clock:
            raise InvariantError(15, f"the clock is back at {now_ns} ns, before {clock} ns")
        self.stall_ns[waited][self.num_layers] += now_ns - clock
        stalled += now_ns - clock
        self._collect(now_ns, number)
        self.ended_ns = now_ns
        hits, late, copied, waves = map(sub, self._step_sums(), self._step_base)
        self.stepping_ns += now_ns - self._step_start_ns
        self._step_rows.append(
            (
                number,
                self._step_start_ns,
                now_ns,
                facts.prefill_tokens + facts.decode_tokens,
                facts.prefill_tokens,
                facts.decode_tokens,
                facts.sequences,
                accesses,
                hits,
                late,
                accesses - hits - late,
                copied,
                stalled,
                waves,
                facts.blocks,
                residents,
            )
        )
        if self.per_step is not None:
            self.per_step.end(self)

    def _count_bytes(self) -> None:
        """Count the bytes of the expert copies that the step issued, by layer."""
        counted = {"demand": self.demand_bytes, "prefetch": self.prefetch_bytes}
        for work, kind, layer, *_ in [entry for entry in self.log if entry[1] in counted]:
            counted[kind][layer] += work.op.nbytes  # type: ignore[union-attr]

    @property
    def steps(self) -> list[tuple[int, ...]]:
        """The rows of `steps.parquet`, in the order of `STEP_COLUMNS`."""
        return list(map(tuple, self._table_of_steps().tolist()))

    def add_steps(self, table: npt.NDArray[np.int64]) -> None:
        """Add rows of `steps.parquet` as an array, of shape [steps, columns]."""
        self._tabulate_steps()
        self._step_tables.append(table)

    def log_unions(self, unions: Sequence[Sequence[Key]]) -> None:
        """Record the unions of the next layer events."""
        # In one flat list: a list for each would slow down Python's garbage collector.
        self._union_keys += chain.from_iterable(unions)
        self._union_sizes += map(len, unions)
        if self.per_step is not None:
            self.per_step.events.append(sum(map(bool, unions)))
        if len(self._union_keys) >= _LOG_CHUNK:
            self._pack()

    def log_arrays(
        self,
        sizes: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int32],
        events: Sequence[int],
    ) -> None:
        """Record the unions of the layer events of some steps, as arrays.

        `sizes` are the numbers of keys of each event, and `keys` all of them in order. `events` are
        the events of each step that want any.
        """
        if self._union_sizes:
            self._pack()
        self._packed.append((sizes, keys.astype(self._key_type)))
        by_step = sizes.reshape(-1, self.num_layers)
        self._events += np.count_nonzero(by_step, axis=0)
        self._accesses += by_step.sum(axis=0)
        if self.per_step is not None:
            self.per_step.events += events

    def _collect(self, now_ns: int, step: int) -> None:
        """Add the work that is finished; the rest stays for a later step."""
        in_flight = []
        moved, busy = self.moved_bytes, self.busy_ns
        in_timeline = step in self.timeline_steps
        for entry in chain(self._in_flight, self.log):
            work, kind = entry[0], entry[1]
            if work.finish_ns > now_ns:
                in_flight.append(entry)
                continue
            start_ns = work.start_ns
            for other in work.after:
                if start_ns < other.finish_ns:
                    raise too_early(work, other)
            # Copies ahead are left out: demand copies may run between their chunks.
            if kind == "demand":
                if start_ns < self._last_demand_ns:
                    raise InvariantError(9, f"two demand copies overlap at {start_ns} ns")
                self._last_demand_ns = work.finish_ns
            if kind in moved:
                moved[kind] += work.op.nbytes  # type: ignore[union-attr]
            busy[work.lane] += work.busy_ns
            if in_timeline:
                self.show(entry, step)
        self._in_flight = in_flight
        self.log.clear()

    def leave_in_flight(self, entries: Iterable[Entry]) -> None:
        """Add work that was issued in steps that were timed at once, and is not counted yet."""
        self._in_flight += entries

    def finish(self, now_ns: int) -> int:
        """Add all that is left, and return the bytes of expert copies still in flight."""
        self._count_bytes()
        self._collect(now_ns, self.num_steps - 1)
        self._pack()
        if self.per_step is not None:
            self.per_step.close(self)
        flying = [work.op for work, kind, *_ in self._in_flight if kind in ("demand", "prefetch")]
        return sum(op.nbytes for op in flying if isinstance(op, Copy))

    def show(self, entry: Entry, step: int) -> None:
        """Add a work to the timeline."""
        work, kind, layer, *_ = entry
        key = work.op.key if isinstance(work.op, Copy) else -1
        self.show_at(work, kind, layer, step, 0, key)

    def show_at(
        self, work: Work, kind: str, layer: int, step: int, offset_ns: int, key: Key
    ) -> None:
        """Add a work, whose times count from `offset_ns` on, to the timeline; key -1: none."""
        expert = key % self.num_experts if key >= 0 else -1
        start, finish = work.start_ns + offset_ns, work.finish_ns + offset_ns
        self.timeline.append((work.lane, kind, start, finish, step, layer, expert))

    # --- read afterwards ---

    def _pack(self) -> None:
        """Move the log of unions from lists into arrays, which take much less memory."""
        if not self._union_sizes:
            return
        sizes = np.array(self._union_sizes, np.int32)
        keys = np.array(self._union_keys, self._key_type)
        self._union_sizes, self._union_keys = [], []
        self._packed.append((sizes, keys))
        layers = keys // self.num_experts
        self._accesses += np.bincount(layers, minlength=self.num_layers)
        # The layer of an event is that of its last key; an empty union has none.
        lasts = np.cumsum(sizes)[sizes > 0] - 1
        self._events += np.bincount(layers[lasts], minlength=self.num_layers)

    def logged(self) -> Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]:
        """Return the sizes of unions and their keys, in parts, in the order of the layer events."""
        self._pack()
        return self._packed

    def layer_events(self) -> EventLists:
        """Return the unions of all layer events in order. A key's layer is key // num_experts."""
        self._pack()
        if len(self._packed) != 1:
            nothing = np.zeros(0, np.int32), np.zeros(0, self._key_type)
            sizes, keys = map(np.concatenate, zip(nothing, *self._packed, strict=True))
            self._packed = [(sizes, keys)]
        sizes, keys = self._packed[0]
        return EventLists(keys, sizes)

    def used_keys(self) -> set[Key]:
        """Return the keys of all layer events."""
        total = self.num_layers * self.num_experts
        uses = sum(
            (np.bincount(keys, minlength=total) for _, keys in self.logged()), np.zeros(total)
        )
        return set(np.flatnonzero(uses).tolist())

    def accesses_by_layer(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the numbers of layer events and of accesses of each layer, each of shape [layers].

        Both are counted from the log of unions.
        """
        self._pack()
        return self._events.copy(), self._accesses.copy()

    def _tabulate_steps(self) -> None:
        """Move the rows of steps from a list into an array."""
        if self._step_rows:
            self._step_tables.append(np.array(self._step_rows, np.int64))
            self._step_rows = []

    def _table_of_steps(self) -> npt.NDArray[np.int64]:
        """Return the rows of all steps, [steps, columns]."""
        self._tabulate_steps()
        if len(self._step_tables) != 1:
            nothing = np.zeros((0, len(STEP_COLUMNS)), np.int64)
            self._step_tables = [np.concatenate([nothing, *self._step_tables])]
        return self._step_tables[0]

    def steps_from(self, number: int) -> npt.NDArray[np.int64]:
        """Return the rows of the steps from step `number` on, [steps, columns]."""
        self._tabulate_steps()
        later = [np.zeros((0, len(STEP_COLUMNS)), np.int64)]
        for table in reversed(self._step_tables):
            later.append(table[table[:, 0] >= number])
            if table[0, 0] <= number:
                break
        return np.concatenate(later[::-1])

    def step_columns(self) -> dict[str, Any]:
        """Return the columns of `steps.parquet`."""
        table = self._table_of_steps()
        return {name: table[:, i] for i, name in enumerate(STEP_COLUMNS)}

    def timeline_columns(self) -> dict[str, Any]:
        """Return the columns of `timeline.parquet`, in order of start."""
        rows = sorted(self.timeline, key=lambda row: (row[2], row[0], row[3]))
        return {name: [row[i] for row in rows] for i, name in enumerate(TIMELINE_COLUMNS)}
