"""The ledger: the counters and rows of a run, recorded in the same way on every machine.

The server appends each piece of work with its ticket. At the end of a step all its tickets are
done, so the ledger reads their times. It attributes idle time of the GPU to a cause:

- *readback*: the work was not issued yet, because the host waited for ids;
- *demand*: the work was issued and waited for its expert's copy;
- *late*: as demand, but the copy was a prefetch that had not landed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import add, sub
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.machine.step_times import Event, StepTimes
from moesim.machine.work import Work
from moesim.policies.view import Key
from moesim.serving.layers import LayerPlan
from moesim.serving.step_sums import LoggedStep, StepFacts, add_steps
from moesim.serving.totals import StepTotals

CAUSE_READBACK, CAUSE_DEMAND, CAUSE_LATE, CAUSE_OTHER = range(4)
CAUSES = ("readback", "demand", "late", "other")
FRONT, DENSE, TAIL = 4, 5, 6  # kinds of GPU work beside experts, whose kind is their cause
_KINDS = ("experts", "experts", "experts", "experts", "front", "dense", "tail")
_LANE_OF = {"demand": "h2d", "prefetch": "h2d", "write_back": "d2h", "readback": "d2h"}
_LOG_CHUNK = 1 << 16  # keys held as Python integers before they are packed into an array
_ADD_EVERY = 128  # folded steps: NumPy's fixed costs are shared, and memory stays small

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


# (ticket, kind, layer, key, bytes, work that had to be done before its buffer was overwritten)
LoggedCopy = tuple[Work, str, int, Key, int, Sequence[Work]]


class Ledger:
    """Counters and rows of one run. Per-layer lists are indexed by trace layer.

    The server appends the work that it issues to two lists. `work` holds GPU operations as (ticket,
    time of issue, kind, layer, the copy that brings the expert or None). The kind is FRONT, DENSE,
    TAIL, or of experts the cause of a wait for them. `copies` holds `LoggedCopy` entries. Folded
    steps come as `StepTimes` through `log_folded` instead.

    The timeline has rows for `steps` steps from step `first_step` on. With `per_step`, it also
    records what each step added to the counters.
    """

    def __init__(
        self,
        plan: LayerPlan,
        num_experts: int,
        *,
        first_step: int = 0,
        steps: int = 0,
        per_step: bool = False,
    ) -> None:
        num_layers = len(plan.model_layers)
        layers = range(num_layers)
        self.num_layers = num_layers
        self._layers = plan
        self.num_experts = num_experts
        self.issued_ns = 0  # the time of the server's last wait, at which it issues work now
        self.work: list[tuple[Work, int, int, int, Work | None]] = []
        self.copies: list[LoggedCopy] = []
        self._union_keys: list[Key] = []
        self._union_sizes: list[int] = []
        self.hits = [0 for _ in layers]
        self.late_hits = [0 for _ in layers]
        self.rows = [0 for _ in layers]
        self.missed_rows = [0 for _ in layers]
        self.demand_copies = [0 for _ in layers]
        self.prefetch_copies = [0 for _ in layers]
        # The last entry of each list is the end of a step, after all layers.
        self.stall_ns = [[0 for _ in range(num_layers + 1)] for _ in CAUSES]
        self.demand_stall_ns = self.stall_ns[CAUSE_DEMAND]
        self.readback_stall_ns = self.stall_ns[CAUSE_READBACK]
        self.hindsight = False  # whether an eviction policy used counts of the replayed trace
        self.prefetch_useful = 0
        self.prefetch_late = 0
        self.prefetch_wasted = 0
        self.prefetch_refused = 0
        self.moved_bytes = {"demand": 0, "prefetch": 0, "write_back": 0, "readback": 0}
        self.busy_ns = {"gpu": 0, "h2d": 0, "d2h": 0}
        self.waves_max = 0
        self.waves_sum = 0
        self.waves_events = 0
        self.stepping_ns = 0
        self.num_steps = 0
        self.steps: list[tuple[int, ...]] = []
        self.timeline: list[tuple[str, str, int, int, int, int, int]] = []
        self._folded: list[LoggedStep] = []
        self._timeline_steps = range(first_step, first_step + steps)
        self._packed: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        self._last_demand_ns = 0
        self._step_start_ns = 0
        self._ended_ns = 0
        self._step_base = (0, 0, 0, 0)
        self.per_step = StepTotals() if per_step else None

    @property
    def copy_stalls_ns(self) -> tuple[list[int], list[int]]:
        """Waits for expert copies in ns, by layer: of demand copies, and of late prefetches."""
        return self.stall_ns[CAUSE_DEMAND], self.stall_ns[CAUSE_LATE]

    def waves(self, number: int) -> None:
        """Record that a layer event needed `number` rounds through the staging buffers."""
        self.waves_events += 1
        self.waves_sum += number
        if number > self.waves_max:
            self.waves_max = number

    # --- at the borders of a step, when all tickets of the step are done ---

    def begin_step(self, now_ns: int) -> None:
        """Start a step. Raise `InvariantError` if the clock went back."""
        if now_ns < self._ended_ns:
            raise InvariantError(15, f"the clock went back to {now_ns} ns")
        self.issued_ns = self._step_start_ns = now_ns
        self._step_base = self._step_sums()
        if self.per_step is not None:
            self.per_step.begin(self)

    def _step_sums(self) -> tuple[int, int, int, int]:
        """Return the sums of which a step's rows are differences."""
        copied = sum(self.demand_copies) + sum(self.prefetch_copies)
        return sum(self.hits), sum(self.late_hits), copied, self.waves_sum

    def end_step(
        self,
        now_ns: int,
        facts: StepFacts,
        expert_bytes: int,
        unions: Sequence[Sequence[Key]],
        rows: Sequence[Sequence[int]],
    ) -> None:
        """End a step: read the times of its work, and add it to counters and rows.

        `now_ns` is the time at which the host had the step's tokens. `unions` and `rows` hold, for
        each layer, the distinct keys and the number of rows that wanted each.
        """
        self.rows = list(map(add, self.rows, map(sum, rows)))
        accesses = sum(map(len, unions))
        number = self.num_steps
        self.num_steps += 1
        stalled = self._attribute(now_ns)
        if number in self._timeline_steps:
            self._show(number)
        self.work.clear()
        self._collect(now_ns, number)
        self._ended_ns = now_ns
        hits, late, copied, waves = map(sub, self._step_sums(), self._step_base)
        self.stepping_ns += now_ns - self._step_start_ns
        self.steps.append(
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
                copied * expert_bytes,
                stalled,
                waves,
                facts.blocks,
            )
        )
        if self.per_step is not None:
            self.per_step.end(self)

    def log_folded(
        self,
        step_times: StepTimes,
        events: Sequence[Event],
        unions: Sequence[Sequence[Key]],
        facts: StepFacts,
    ) -> None:
        """Record a folded step with its layer events."""
        if self.num_steps in self._timeline_steps:
            self._show_step(step_times, events)
        self._folded.append(LoggedStep(self.num_steps, step_times, facts))
        self.num_steps += 1
        self.log_unions(unions)
        if len(self._folded) >= _ADD_EVERY:
            self._add_folded()

    def log_unions(self, unions: Sequence[Sequence[Key]]) -> None:
        """Record the unions of the next layer events."""
        # In one flat list: a list for each would slow down Python's garbage collector.
        self._union_keys += chain.from_iterable(unions)
        self._union_sizes += map(len, unions)
        if self.per_step is not None:
            self.per_step.events.append(sum(map(bool, unions)))
        if len(self._union_keys) >= _LOG_CHUNK:
            self._pack()

    def _add_folded(self) -> None:
        if self._folded:
            add_steps(self, self._folded)
            self._folded = []

    def _attribute(self, now_ns: int) -> int:
        """Add the step's GPU idle time by cause and layer, and return its sum in ns.

        Raise `InvariantError` if work overlaps or an expert is computed before it landed.
        """
        clock = self._step_start_ns
        readback = self.stall_ns[CAUSE_READBACK]
        stalled = busy = 0
        for ticket, issued, kind, layer, landing in self.work:
            start = ticket.start_ns
            gap = start - clock
            if gap:
                if gap < 0:
                    raise InvariantError(9, f"GPU work overlaps by {-gap} ns at {start} ns")
                stalled += gap
                # One gap can have two causes: the part before the work was issued is readback.
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
        if now_ns < clock:
            raise InvariantError(15, f"the clock is back at {now_ns} ns, before {clock} ns")
        self.busy_ns["gpu"] += busy
        readback[self.num_layers] += now_ns - clock
        return stalled + now_ns - clock

    def _collect(self, now_ns: int, step: int) -> None:
        """Add the copies that are finished; the others stay for a later step."""
        in_flight = []
        moved, busy = self.moved_bytes, self.busy_ns
        in_timeline = step in self._timeline_steps
        for entry in self.copies:
            ticket, kind, _, key, nbytes, after = entry
            if ticket.finish_ns > now_ns:
                in_flight.append(entry)
                continue
            for reader in after:
                if ticket.start_ns < reader.finish_ns:
                    raise InvariantError(5, f"the copy of key {key} overwrites what is in use")
            # Prefetches are left out: demand copies may run between their chunks.
            if kind == "demand":
                if ticket.start_ns < self._last_demand_ns:
                    raise InvariantError(9, f"two demand copies overlap at {ticket.start_ns} ns")
                self._last_demand_ns = ticket.finish_ns
            moved[kind] += nbytes
            busy[_LANE_OF[kind]] += ticket.busy_ns
            if in_timeline:
                self._show_copy(entry, step)
        self.copies = in_flight

    def finish(self, now_ns: int) -> int:
        """Add all that is left, and return the number of expert copies still in flight."""
        self._add_folded()
        self._collect(now_ns, len(self.steps) - 1)
        self._pack()
        if self.per_step is not None:
            self.per_step.close(self)
        return sum(copy[1] in ("demand", "prefetch") for copy in self.copies)

    def _show(self, step: int) -> None:
        for ticket, _, kind, layer, _ in self.work:
            entry = ("gpu", _KINDS[kind], ticket.start_ns, ticket.finish_ns, step, layer, -1)
            self.timeline.append(entry)

    def _show_copy(self, copy: LoggedCopy, step: int) -> None:
        ticket, kind, layer, key, *_ = copy
        expert = key % self.num_experts if key >= 0 else -1
        entry = (_LANE_OF[kind], kind, ticket.start_ns, ticket.finish_ns, step, layer, expert)
        self.timeline.append(entry)

    def _show_step(self, step_times: StepTimes, events: Sequence[Event]) -> None:
        """Append the timeline rows of a folded step, as `_show` and `_show_copy` would."""
        step, clock = self.num_steps, step_times.start_ns

        def show(lane: str, kind: str, start: int, finish: int, layer: int, key: int = -1) -> int:
            expert = key % self.num_experts if key >= 0 else -1
            self.timeline.append((lane, kind, start, finish, step, layer, expert))
            return finish

        for layer, (times, event) in enumerate(zip(step_times.events, events, strict=True)):
            for dense in self._layers.dense_before[layer]:
                clock = show("gpu", "dense", clock, clock + step_times.layers_ns[dense], layer)
            front_ns = step_times.layers_ns[self._layers.model_layers[layer]]
            clock = show("gpu", "front", clock, clock + front_ns, layer)
            if step_times.sizes.ids:
                clock = show("d2h", "readback", clock, clock + step_times.ids_ns, layer)
            missing, _ = event
            first = 0 if times.residents else 1
            computed = zip(times.starts[first:], times.finishes[first:], strict=True)
            for start, finish in computed:
                show("gpu", "experts", clock + start, clock + finish, layer)
            copies = zip(missing, times.departures, times.landings, strict=True)
            for key, start, finish in copies:
                show("h2d", "demand", clock + start, clock + finish, layer, key)
            clock += times.duration_ns
        last = self.num_layers
        for dense in self._layers.dense_before[last]:
            clock = show("gpu", "dense", clock, clock + step_times.layers_ns[dense], last)
        clock = show("gpu", "tail", clock, clock + step_times.tail_ns, last)
        show("d2h", "readback", clock, clock + step_times.sampled_ns, last)

    # --- read afterwards ---

    def _pack(self) -> None:
        """Move the log of unions from lists into arrays, which take much less memory."""
        sizes, keys = (np.array(log, np.int32) for log in (self._union_sizes, self._union_keys))
        self._packed.append((sizes, keys))
        self._union_sizes, self._union_keys = [], []

    def layer_events(self) -> list[list[Key]]:
        """Return the unions of all layer events in order. A key's layer is key // num_experts."""
        self._pack()
        result: list[list[Key]] = []
        for sizes, keys in self._packed:
            ends = np.cumsum(sizes).tolist()
            flat = keys.tolist()
            result += [flat[s:e] for s, e in zip([0, *ends], ends, strict=False)]
        return result

    def accesses_by_layer(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the numbers of layer events and of accesses of each layer, each of shape [layers].

        Both are counted from the log of unions.
        """
        events = np.zeros(self.num_layers, np.int64)
        accesses = np.zeros(self.num_layers, np.int64)
        for sizes, keys in self._packed:
            layers = keys // self.num_experts
            accesses += np.bincount(layers, minlength=self.num_layers)
            # The layer of an event is that of its last key; an empty union has none.
            lasts = np.cumsum(sizes)[sizes > 0] - 1
            events += np.bincount(layers[lasts], minlength=self.num_layers)
        return events, accesses

    def step_columns(self) -> dict[str, Any]:
        """Return the columns of `steps.parquet`."""
        table = np.array(self.steps, np.int64).reshape(-1, len(STEP_COLUMNS))
        return {name: table[:, i] for i, name in enumerate(STEP_COLUMNS)}

    def timeline_columns(self) -> dict[str, Any]:
        """Return the columns of `timeline.parquet`, in order of start."""
        rows = sorted(self.timeline, key=lambda row: (row[2], row[0], row[3]))
        return {name: [row[i] for row in rows] for i, name in enumerate(TIMELINE_COLUMNS)}
