"""Stretches whose layer events overlap: copies ahead, experts on the CPU, or the host's own time.

The kernel (`moesim/serving/compiled/overlap.py`) has the slots and the copies under way as arrays,
which last from stretch to stretch.

Shapes: S steps, B rows of a step, L trace layers, D depths, K experts per row, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyViolation, TraceError
from moesim.hardware.ops import Copy, Readback
from moesim.hardware.topology import D2H, H2D, HOST_BANDWIDTH
from moesim.machine.prices import Prices, alone_ns
from moesim.machine.work import FAR, PREFETCH, Work
from moesim.policies.blame import blamed
from moesim.policies.prefetch import Prefetch
from moesim.policies.prefetch.predicted import Predicted
from moesim.serving.compiled import records as r
from moesim.serving.compiled.elsewhere import OnCPU
from moesim.serving.compiled.guesses import guesses_of_steps
from moesim.serving.compiled.kernel import Steps
from moesim.serving.compiled.overlap import overlap_of
from moesim.serving.compiled.policies import Kernel
from moesim.serving.compiled.records import (
    COLUMNS,
    SHOWN_KINDS,
    Ahead,
    Elsewhere,
    Host,
    Layers,
    Places,
    Sums,
)
from moesim.serving.compiled.stretch import Stretches, later_batch, rows_of
from moesim.serving.compiled.sums import OverlapSums
from moesim.serving.experts.decision import Place
from moesim.serving.issue import Execution
from moesim.serving.knowledge import EVERYTHING, Knowledge
from moesim.serving.request import Request
from moesim.serving.scheduler import Scheduler
from moesim.serving.stalls import DEMAND, Entry
from moesim.serving.step import Step
from moesim.serving.step_memo import StepBytes
from moesim.serving.unions import Unions

__all__ = ["Issue", "Overlaps"]

_ADD_EVERY: Final = 4096  # steps: the fixed costs of NumPy are shared


@dataclass(frozen=True, slots=True)
class Issue:
    """What overlaps: copies ahead, experts on the CPU (None: none), and the host's own time.

    The trace has `predictions` [B, L, D, K], or None.
    """

    prefetch: Prefetch
    knowledge: Knowledge
    execution: Execution
    place: Place | None = None
    predictions: Any = None


class Overlaps(Stretches):
    """The compiled back end of one server whose layer events overlap.

    Set `issue` before the first step.
    """

    def __init__(self, *given: Any, issue: Issue, **options: Any) -> None:
        """Take over the caches, which no step has changed; see `Stretches`."""
        super().__init__(*given, **options)
        self._issue = issue
        layers, experts = self._trace.num_layers, self._trace.num_experts
        cost, plan = self._cost, self._ledger.layers
        groups = [
            [*plan.dense_before[layer], plan.model_layers[layer]] for layer in range(layers)
        ] + [list(plan.dense_before[layers])]
        self._order = np.array([cost.kind_of_layer[m] for each in groups for m in each], np.int64)
        self._ends = np.cumsum([0, *map(len, groups)])
        self._returns = np.array([issue.knowledge.comes_back(layer) for layer in range(layers)])
        pieces = self._prices.pieces(H2D, Copy(0, self._nbytes))
        shared = [(cost.nbytes, cost.rate) if cost.uses else (0, 0) for cost in pieces]
        flows = np.zeros((2, r.FLOW_WORDS), np.int64)
        flows[:, r.FLOW_ON], flows[:, r.FLOW_JOB] = FAR, -1
        self._mem = np.zeros(r.STATE_WORDS, np.int64)
        keys, caches = layers * experts, len(self._caches)
        width = max(1, *(cache.capacity for cache in self._caches))
        slots, buffers = self._slots()
        calls = (len(self._order) + experts + 4) * r.CALL_WORDS
        self._at = Places(
            slot_of=self._table(np.full(keys, -1)),
            by_victim=self._table(np.full(keys, -1)),
            by_taker=self._table(np.full(keys, -1)),
            free=self._table(np.zeros(caches * width)),
            width=width,
            num_free=self._table(np.array([cache.capacity for cache in self._caches])),
            buffers=buffers,
            calls=self._table(np.zeros(calls)),
            pieces=self._table(np.array([piece.fixed_ns for piece in pieces])),
            num_pieces=len(pieces),
            piece_bytes=self._table(np.array([nbytes for nbytes, _ in shared])),
            piece_rates=self._table(np.array([rate for _, rate in shared])),
            capacity=issue.execution.topology.resources.get(HOST_BANDWIDTH, 0),
            flows=self._table(flows.reshape(-1)),
            sums=self._table(np.zeros(len(COLUMNS))),
            by_layer=self._table(np.zeros((layers + 1) * len(COLUMNS))),
            **dict.fromkeys(
                ("idle_jobs", "idle_pairs", "waiting", "landed", "urgent", "ahead", "mask"), 0
            ),
        )
        mem, at = self._mem, self._at
        mem[r.CPU_READY], mem[r.UP] = FAR, -1
        for number, cache in enumerate(self._caches):
            free = at.free + number * width
            mem[free : free + cache.capacity] = slots[number]
            for key in cache.slots:
                mem[at.num_free + number] -= 1
                mem[at.slot_of + key] = mem[free + mem[at.num_free + number]]
        self._jobs = 0  # how many there is room for; there is room for as many pairs
        self._grow(1)
        times = issue.execution.host
        self._host = Host(times.launch_ns, times.copy_ns, times.event_ns)
        self._sums = OverlapSums(
            self._ledger, layers, self._nbytes, issue.execution.state_bytes, self._block_tokens
        )
        self._on_cpu = OnCPU(self._prices, issue.place, issue.execution.state_bytes, layers)

    def _table(self, values: npt.NDArray[Any]) -> int:
        """Add values to the memory; return where they begin."""
        begin = len(self._mem)
        self._mem = np.concatenate([self._mem, values.astype(np.int64)])
        return begin

    def _slots(self) -> tuple[list[npt.NDArray[np.int64]], int]:
        """Add the slots to the memory; return those of each cache, and the first staging buffer."""
        words = r.SLOT_WORDS
        empty = np.zeros(words, np.int64)
        empty[[r.SLOT_JOB, r.SLOT_READER]] = -1
        slots = [
            self._table(np.tile(empty, cache.capacity)) + words * np.arange(cache.capacity)
            for cache in self._caches
        ]
        return slots, self._table(np.tile(empty, self._books.staging))

    def _compile(self, kernel: Kernel) -> Any:
        return overlap_of(kernel)

    def _grow(self, needed: int) -> None:
        """Give room to `needed` more copies, and to some more."""
        mem, at = self._mem, self._at
        free = [int(mem[r.FREE_JOBS]), int(mem[r.FREE_PAIRS])]
        if min(free) >= needed:
            return
        more = max(64, self._jobs, needed)  # at least twice as many as before
        self._jobs += more
        words = r.JOB_WORDS, r.PAIR_WORDS
        idle = []
        for place, number in zip((at.idle_jobs, at.idle_pairs), range(2), strict=True):
            first = self._table(np.zeros(more * words[number]))
            added = first + words[number] * np.arange(more)
            known = self._mem[place : place + free[number]]
            unused = np.zeros(self._jobs - free[number] - more)
            idle.append(self._table(np.concatenate([known, added, unused])))
        size = 1 << (2 * self._jobs).bit_length()  # there are places that jobs left
        landed = np.zeros((self._jobs + 1) * r.LANDED_WORDS)
        old = int(mem[r.NUM_LANDED]) * r.LANDED_WORDS
        landed[:old] = mem[at.landed : at.landed + old]
        ends = (r.URGENT_HEAD, r.URGENT_TAIL), (r.AHEAD_HEAD, r.AHEAD_TAIL)
        queues = [
            self._table(self._queue(queue, size, *map(int, mem[list(pair)])))
            for queue, pair in zip((at.urgent, at.ahead), ends, strict=True)
        ]
        self._at = at._replace(
            idle_jobs=idle[0],
            idle_pairs=idle[1],
            waiting=self._table(np.zeros(self._jobs)),
            landed=self._table(landed),
            urgent=queues[0],
            ahead=queues[1],
            mask=size - 1,
        )
        self._mem[r.FREE_JOBS] += more
        self._mem[r.FREE_PAIRS] += more

    def _queue(self, queue: int, size: int, head: int, tail: int) -> npt.NDArray[np.int64]:
        """Return a larger queue with the same jobs at the same places."""
        places = np.arange(head, tail)
        moved = np.full(size, -1, np.int64)
        moved[places & (size - 1)] = self._mem[queue + (places & self._at.mask)]
        return moved

    def repeats(
        self, step: Step, scheduler: Scheduler, left_ns: int
    ) -> tuple[Sequence[Request], int]:
        if self._issue.knowledge.future_tokens and self._issue.prefetch.active:
            return (), 0  # what is known ahead differs from step to step
        return super().repeats(step, scheduler, left_ns)

    def run(
        self,
        step: Step,
        requests: Sequence[Request],
        more: int,
        start_ns: int,
        due_ns: int,
        sizes: StepBytes,
        later: StepBytes,
    ) -> npt.NDArray[np.int64]:
        ledger, number = self._ledger, self._ledger.num_steps
        rows, ends = rows_of(step, requests, more)
        unions = self._unions(rows, ends)
        if len(self._costs.expert_ns) <= step.batch.tokens:
            self._costs = self._costs_for(2 * step.batch.tokens)
        ahead = self._ahead(step, rows, ends, unions)
        self._grow(2 * int(ahead.needs.max()))
        elsewhere = self._on_cpu.of(step.batch.tokens, len(requests), more)
        shown, _ = self._shown(number, unions)
        steps = Steps(*unions, np.zeros(0, np.int64), shown, self._trace.num_experts)
        layers = self._layers(step, more, sizes, later)
        out = self._room(steps, ahead)
        ran, num_keys, num_works = self._call(
            steps, layers, ahead, elsewhere, start_ns, due_ns, out
        )
        finish = out.finish_ns[:ran]
        if finish[-1] >= FAR:
            ran -= 1  # its wait refuses it
        if ran:
            self._step_ns = int(finish[-1] - (finish[-2] if len(finish) > 1 else start_ns))
            logged = Unions(unions.keys[:num_keys], unions.tokens, unions.sizes)
            self._sums.add(step, ran, start_ns, (sizes, later), out, logged, self._returns)
            if self._sums.steps >= _ADD_EVERY:
                self._sums.flush(self._take_layers())
            for at, layer, kind, key, begin, end in out.works[:num_works].tolist():
                lane, name = SHOWN_KINDS[kind]
                expert = key % self._trace.num_experts if key >= 0 else -1
                ledger.timeline.append((lane, name, begin, end, number + at, layer, expert))
        return np.asarray(finish)

    def _call(
        self,
        steps: Steps,
        layers: Layers,
        ahead: Ahead,
        elsewhere: Elsewhere,
        start_ns: int,
        due_ns: int,
        out: Sums,
    ) -> tuple[int, int, int]:
        with blamed(self._kind, "kernel"):
            ran, num_keys, num_works = self._stretch(
                steps, layers, ahead, elsewhere, start_ns, min(due_ns, FAR), self._costs,
                self._host, self._books, self._mem, self._at, self._ints, self._floats,
                self._given, out,
            )  # fmt: skip
        if ran < 0:
            raise PolicyViolation(
                self._policies[-1 - ran].name,
                "kernel",
                f"keeps more than {self._books.capacity[-1 - ran]} keys; its list must have all "
                "residents",
            )
        return ran, num_keys, num_works

    def _ahead(
        self,
        step: Step,
        rows: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        unions: Unions,
    ) -> Ahead:
        """Return what the prefetch policy wants in some steps."""
        layers, prefetch = self._trace.num_layers, self._issue.prefetch
        # Of each expert, and of the hidden states that come back from the CPU.
        wanted = unions.sizes.reshape(-1, layers).sum(axis=1, dtype=np.int64) + layers
        if not prefetch.active:
            nothing = np.zeros(len(wanted) * (layers + 1), np.int64)
            return Ahead(unions.keys[:0], nothing, nothing, wanted)
        if isinstance(prefetch, Predicted):
            keys, begins, sizes = self._predicted(rows, ends)
        else:
            keys, begins, sizes = self._exact(step, unions, prefetch.options.depth)
        needs = wanted + sizes.reshape(-1, layers + 1).sum(axis=1)
        return Ahead(keys, begins, sizes, needs)

    def _predicted(
        self, rows: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the keys that the trace predicts, and where those of each call begin."""
        trace, options = self._trace, self._issue.prefetch.options
        layers, recorded = trace.num_layers, self._issue.predictions
        sizes = np.zeros((len(ends) - 1) * (layers + 1), np.int64)
        if recorded is None:
            return np.zeros(0, np.int32), sizes, sizes
        depth = min(options.depth, recorded.shape[2], layers)
        guesses = np.ascontiguousarray(np.asarray(recorded[rows])[:, :, :depth])
        keys = np.empty(guesses.size, np.int32)
        most = trace.num_experts if options.experts is None else options.experts
        number = guesses_of_steps(guesses, ends, self._unused, trace.num_experts, most, keys, sizes)
        if number < 0:
            where = f"row {int(rows[-1 - number])}"
            raise TraceError(trace.path or "trace", where, "a predicted expert is out of range")
        return keys[:number], np.cumsum(sizes) - sizes, sizes

    def _exact(
        self, step: Step, unions: Unions, depth: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the keys that the router reveals, and where those of each call begin.

        The keys of a step's layers follow one another, so each call has a part of them. Behind a
        step that ends inside a prompt, the known rows of the next step follow.
        """
        layers, issue = self._trace.num_layers, self._issue
        keys, sizes = unions.keys, unions.sizes.reshape(-1, layers)
        sees_next = issue.prefetch.clairvoyant or issue.knowledge.queued
        if sees_next and len(step.known_ahead):
            assert len(sizes) == 1, "a step that knows rows of the next one is not repeated"
            following = self._unions(step.known_ahead, np.array([0, len(step.known_ahead)]))
            keys = np.concatenate([keys, following.keys])
            sizes = np.concatenate([sizes, following.sizes.reshape(1, layers)], axis=1)
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        calls = np.arange(layers + 1)  # the first one comes before layer 0
        last = np.minimum(calls + depth, sizes.shape[1])
        base = np.arange(len(sizes))[:, None] * sizes.shape[1]
        begins, stops = starts[base + np.minimum(calls, last)], starts[base + last]
        if not issue.prefetch.clairvoyant and issue.knowledge.reach < EVERYTHING:
            stops[:, 0] = begins[:, 0]  # no router of this step has run
        return keys, begins.reshape(-1), (stops - begins).reshape(-1)

    def _layers(self, step: Step, more: int, sizes: StepBytes, later: StepBytes) -> Layers:
        """Return the durations of steps outside of their layer events."""
        cost, prices, batch = self._cost, self._prices, step.batch
        every = prices.layers_ns(batch)
        first = [every[cost.kind_of_layer.index(kind)] for kind in range(max(self._order) + 1)]
        kinds_ns = np.empty((more + 1, len(first)), np.int64)
        tail_ns = np.empty(more + 1, np.int64)
        kinds_ns[0], tail_ns[0] = first, cost.tail_ns(batch)
        if more:
            batches = later_batch(step, more)
            for kind, duration_ns in enumerate(cost.kinds_ns(batches)):
                kinds_ns[1:, kind] = duration_ns
            tail_ns[1:] = cost.tails_ns(batches)
        backs = [[_readback_ns(prices, each) for each in pair] for pair in (sizes, later)]
        ids_ns, sampled_ns = (np.full(more + 1, backs[1][place], np.int64) for place in range(2))
        ids_ns[0], sampled_ns[0] = backs[0]
        return Layers(kinds_ns, self._order, self._ends, tail_ns, ids_ns, sampled_ns, self._returns)

    def _room(self, steps: Steps, ahead: Ahead) -> Sums:
        number, layers = len(steps.shown), self._trace.num_layers
        shown = int(np.count_nonzero(steps.shown))
        works = 0
        if shown:
            works = shown * (len(self._order) + 6 * layers + 4) + self._jobs
            works += 2 * int(ahead.needs[steps.shown].sum())
        return Sums(
            np.zeros(number, np.int64),
            np.zeros((number, len(COLUMNS)), np.int64),
            np.zeros(number, np.int64),
            np.empty((works, 6), np.int64),
        )

    def flush(self, now_ns: int) -> None:
        self._sums.flush(self._take_layers())
        none, zeros = np.zeros(0, np.int32), np.zeros(0, np.int64)
        steps = Steps(none, none, none, zeros, np.zeros(0, np.bool_), self._trace.num_experts)
        table = Layers(
            np.zeros((0, 1), np.int64), self._order, self._ends, zeros, zeros, zeros, self._returns
        )
        nothing = Ahead(none, zeros, zeros, zeros)
        elsewhere = self._on_cpu.of(1, 1, 0)
        out = self._room(steps, nothing)
        self._call(steps, table, nothing, elsewhere, now_ns, FAR, out)
        mem, at = self._mem, self._at
        slots = mem[at.slot_of : at.slot_of + len(self._numbers) * self._trace.num_experts]
        held = np.flatnonzero(slots >= 0)
        fresh = held[mem[slots[held] + r.SLOT_FRESH] > 0]
        caches = self._numbers[fresh // self._trace.num_experts]
        for number, cache in enumerate(self._caches):
            cache.unused_by_kernel = int(np.count_nonzero(caches == number))
        self._ledger.leave_in_flight(self._left())
        super().flush(now_ns)

    @property
    def kept(self) -> Sequence[Steps] | None:
        return None  # copies under way make steps depend on one another

    def _take_layers(self) -> npt.NDArray[np.int64]:
        """Return the sums of each layer since the last time; a row more has the ends of steps."""
        begin, size = self._at.by_layer, (self._trace.num_layers + 1) * len(COLUMNS)
        taken = self._mem[begin : begin + size].reshape(-1, len(COLUMNS)).copy()
        self._mem[begin : begin + size] = 0
        return taken

    def _left(self) -> list[Entry]:
        """Return the copies ahead that no step has counted: those that landed, then the others."""
        mem, at = self._mem, self._at
        landed = mem[at.landed :][: mem[r.NUM_LANDED] * r.LANDED_WORDS]
        columns = [r.LANDED_KEY, r.LANDED_START, r.LANDED_FINISH, r.LANDED_BUSY]
        rows = landed.reshape(-1, r.LANDED_WORDS)[:, columns].tolist()
        jobs: dict[int, None] = {}  # a promoted one may stand in both queues
        for queue, first in ((at.urgent, r.URGENT_HEAD), (at.ahead, r.AHEAD_HEAD)):
            places = np.arange(mem[first], mem[first + 1])
            jobs |= dict.fromkeys(mem[queue + (places & at.mask)].tolist())
        jobs.pop(-1, None)
        for job in jobs:
            key, start = mem[job + r.JOB_KEY], mem[job + r.JOB_START]
            rows.append([int(key), int(start), FAR, 0])
        entries = []
        for key, start, finish, busy in rows:
            work = Work(H2D, Copy(key, self._nbytes), urgency=PREFETCH)
            work.start_ns, work.finish_ns = start, finish
            work.busy_ns = busy
            layer = key // self._trace.num_experts
            entries.append(Entry(work, "prefetch", layer, 0, DEMAND, ()))
        return entries


def _readback_ns(prices: Prices, nbytes: int) -> int:
    return alone_ns(prices, D2H, Readback(nbytes)) if nbytes else 0
