"""Step memo: a whole step timed at once, when all its expert decisions are made.

If no copy is under way when a layer event begins, and none is left when it ends, every lane is idle
at both moments: the ids that the event waits for come back after all work that was issued before
them. Its times then depend on its *shape* alone. So each shape is issued once, as always, on an
idle twin of the machine. The times and sums that this gives are reused for every event of the
shape, and a step is the sum of its layers.

Shapes: S steps, L trace layers, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.hardware.ops import BatchShape, Readback, Tail
from moesim.hardware.topology import D2H, GPU, Topology
from moesim.machine.prices import Prices, alone_ns
from moesim.machine.protocol import Machine
from moesim.machine.work import FAR, Work
from moesim.policies.view import Key
from moesim.serving.experts.decision import Decision
from moesim.serving.experts.program import Hidden, Program
from moesim.serving.issue import HostTimes, Issuer
from moesim.serving.ledger import MOVES, Ledger, StepFacts
from moesim.serving.stalls import CAUSES, READBACK, Entry, account
from moesim.serving.step_sums import COUNTS, StepSums
from moesim.serving.step_timeline import show_step
from moesim.serving.too_early import too_early

__all__ = ["EventTimes", "StepBytes", "StepMemo", "Twinned"]

_MEMO_LIMIT = 1 << 12
_ADD_EVERY = 128  # steps: NumPy's fixed costs are shared, and memory stays small
_RESIDENTS, _FREE = -1, -2  # what a copy waits for, beside the numbers of earlier copies


@runtime_checkable
class Twinned(Protocol):
    """A machine in virtual time whose prices are known, and which can be copied while idle."""

    prices: Prices

    def twin(self) -> Machine:
        """Return an idle machine at time zero, with the same lanes and prices."""

    def settle(self) -> int:
        """Advance a twin until all its work is done; return that time."""


class StepBytes(NamedTuple):
    """Bytes of a step's readbacks: a layer's ids (0: none), the sampled tokens."""

    ids: int
    sampled: int


class EventTimes:
    """The work of an event of one shape, with times in ns from the instant its ids are known.

    `union` are the keys of the event that was issued; `sums` are what an event adds to the
    counters, in the order of the names in `_sums_of`.
    """

    __slots__ = ("duration_ns", "entries", "sums", "union")

    def __init__(
        self, union: Sequence[Key], entries: Sequence[Entry], duration_ns: int, sums: Sequence[int]
    ) -> None:
        self.union = union
        self.entries = entries
        self.duration_ns = duration_ns
        self.sums = sums


class _Logged(NamedTuple):
    """A timed step that was not added to the ledger yet."""

    number: int
    start_ns: int
    finish_ns: int
    fixed_ns: int
    """The GPU's time outside of layer events."""
    ids_ns: int
    sampled_ns: int
    sizes: StepBytes
    facts: StepFacts
    events: Sequence[EventTimes]
    residents: int


class StepMemo:
    """Times steps for one server on a machine that has a twin.

    `program_on` returns the `Program` for a machine. `kind_of` is as in `Execution`.
    """

    def __init__(
        self,
        machine: Twinned,
        program_on: Callable[[Machine], Program],
        topology: Topology,
        ledger: Ledger,
        kind_of: Callable[[Key], Hashable] | None = None,
    ) -> None:
        self._machine = machine
        self._prices = machine.prices
        self._program_on = program_on
        self._topology = topology
        self._ledger = ledger
        self._events: dict[tuple[object, ...], EventTimes] = {}
        self._log: list[_Logged] = []
        self._last: _Logged | None = None
        self._lanes = topology.names
        self._kind_of = kind_of

    def event(
        self, it: Decision, union: Sequence[Key], rows: tuple[int, ...], total: int
    ) -> EventTimes:
        """Return the times of a decided event. `rows` want each key, `total` are in the step."""
        # Most events want resident experts alone; the rows that want each are then their shape.
        shape = _shape(it, union, rows, total) if it.loads or it.elsewhere else rows
        if self._kind_of is not None:
            shape = (*shape, tuple(map(self._kind_of, union)))
        times = self._events.get(shape)
        if times is None:
            if len(self._events) >= _MEMO_LIMIT:
                self._events.clear()  # large batches rarely repeat a shape
            times = self._events[shape] = self._issue(it, union, rows, total)
        return times

    def _issue(
        self, it: Decision, union: Sequence[Key], rows: Sequence[int], total: int
    ) -> EventTimes:
        """Issue an event on an idle twin, and measure it."""
        twin = self._machine.twin()
        assert isinstance(twin, Twinned)
        entries: list[Entry] = []
        issue = Issuer(twin.submit, entries, self._topology, HostTimes())
        results = self._program_on(twin).event(it, Hidden(GPU), total, issue)
        twin.settle()
        if any(entry.work.finish_ns >= FAR for entry in entries):
            return EventTimes(union, entries, FAR, ())  # the server's wait will refuse such a step
        stall_ns = [[0] * (it.layer + 1) for _ in CAUSES]
        end = self._end(it, entries, results, stall_ns)
        _check(entries, end)
        for slot in (*it.held, *(slot for *_, slot in it.loads)):
            slot.reader = slot.landing = None  # at the next event, all of this one is done
        return EventTimes(union, entries, end, self._sums(it, rows, entries, stall_ns))

    def _end(
        self,
        it: Decision,
        entries: Sequence[Entry],
        results: Hidden,
        stall_ns: Sequence[list[int]],
    ) -> int:
        """Return when the next layer can start, and add the stalls until then to `stall_ns`."""
        clock = max((work.finish_ns for work, *_ in entries if work.lane == GPU), default=0)
        returns = [work.finish_ns for work in results.after if work.lane != GPU]
        marker = Work(GPU, Readback(0), results.after)
        marker.start_ns = max(clock, *(ns + self._prices.landing_ns for ns in returns), 0)
        marker.finish_ns = marker.start_ns
        following = Entry(marker, "", it.layer, 0, READBACK, results.waits)
        return account([*entries, following], 0, stall_ns)[0]

    def _sums(
        self,
        it: Decision,
        rows: Sequence[int],
        entries: Sequence[Entry],
        stall_ns: Sequence[Sequence[int]],
    ) -> list[int]:
        busy = dict.fromkeys(self._lanes, 0)
        moved = dict.fromkeys(MOVES, 0)
        for work, kind, *_ in entries:
            busy[work.lane] += work.busy_ns
            if kind in moved:
                moved[kind] += work.op.nbytes  # type: ignore[union-attr]
        missed = sum(count for _, count, _ in (*it.loads, *it.elsewhere))
        counts = (len(it.ready), len(it.loads), len(it.elsewhere), missed, moved["demand"])
        stalls = [sum(by_layer) for by_layer in stall_ns]
        return [*counts, sum(rows), it.waves, *stalls, *busy.values(), *moved.values()]

    def step(
        self,
        number: int,
        start_ns: int,
        batch: BatchShape,
        events: Sequence[EventTimes],
        sizes: StepBytes,
        facts: StepFacts,
        residents: int = 0,
    ) -> int:
        """Time a step that starts on idle lanes, and log it.

        Return its finish, or FAR if that is later than can be counted; then nothing is logged.
        """
        prices = self._prices
        ids_ns = alone_ns(prices, D2H, Readback(sizes.ids)) if sizes.ids else 0
        sampled_ns = alone_ns(prices, D2H, Readback(sizes.sampled))
        fixed_ns = sum(prices.layers_ns(batch)) + alone_ns(prices, GPU, Tail(batch))
        finish = start_ns + fixed_ns + len(events) * ids_ns + sampled_ns
        finish += sum([event.duration_ns for event in events])
        if finish >= FAR:
            return FAR
        self._last = _Logged(
            number, start_ns, finish, fixed_ns, ids_ns, sampled_ns, sizes, facts, events,
            residents,
        )  # fmt: skip
        self._log.append(self._last)
        if len(self._log) >= _ADD_EVERY:
            self.flush()
        return finish

    def show(
        self, number: int, start_ns: int, batch: BatchShape, unions: Sequence[Sequence[Key]]
    ) -> None:
        """Add the rows of the last timed step to the timeline."""
        step, ledger = self._last, self._ledger
        assert step is not None

        def event(layer: int, clock: int) -> int:
            times = step.events[layer]
            own = dict(zip(times.union, unions[layer], strict=True))
            for work, kind, *_ in times.entries:
                key = own.get(getattr(work.op, "key", -1), -1)
                ledger.show_at(work, kind, layer, number, clock, key)
            return times.duration_ns

        ids_ns = step.ids_ns if step.sizes.ids else None
        show_step(ledger, self._prices, number, start_ns, batch, ids_ns, step.sampled_ns, event)

    def flush(self) -> None:
        """Add the logged steps to the ledger. Raise `InvariantError` for impossible times."""
        if self._log:
            _sums_of(self._log, self._lanes).add_to(self._ledger)
            self._log = []


def _sums_of(log: Sequence[_Logged], lanes: Sequence[str]) -> StepSums:
    """Return the sums of some logged steps."""
    names = [*COUNTS, "waves", *(f"stall {cause}" for cause in CAUSES)]
    names += [*(f"busy {lane}" for lane in lanes), *(f"moved {kind}" for kind in MOVES)]
    events_SLC = _measure([step.events for step in log])
    by_step_CS = events_SLC.sum(axis=1).T
    by_layer_CL = events_SLC.sum(axis=0).T
    place = {name: place for place, name in enumerate(names)}
    waves_SL = events_SLC[:, :, place["waves"]]
    on_gpu_SL = events_SLC[:, :, place["busy gpu"]] > 0
    counted = ("hits", "demand_copies")
    on_gpu_SL |= sum(events_SLC[:, :, place[name]] for name in counted) > 0
    ids_SL = np.repeat(_column([step.ids_ns for step in log])[:, None], events_SLC.shape[1], axis=1)
    return StepSums(
        number=_column([step.number for step in log]),
        start=_column([step.start_ns for step in log]),
        finish=_column([step.finish_ns for step in log]),
        fixed=_column([step.fixed_ns for step in log]),
        ids=_column([step.ids_ns for step in log]),
        sampled=_column([step.sampled_ns for step in log]),
        ids_bytes=_column([step.sizes.ids for step in log]),
        sampled_bytes=_column([step.sizes.sampled for step in log]),
        facts=_column([step.facts for step in log]),
        by_step={
            **dict(zip(names, by_step_CS, strict=True)),
            "residents": _column([step.residents for step in log]),
        },
        by_layer=dict(zip(names, by_layer_CL, strict=True)),
        waves_events=np.count_nonzero(waves_SL, axis=1),
        waves_max=waves_SL.max(axis=1),
        ids_stall=np.where(on_gpu_SL, ids_SL, 0).sum(axis=0),
        late_stall=np.where(on_gpu_SL, 0, ids_SL).sum(axis=0),
    )


def _shape(
    it: Decision, union: Sequence[Key], rows: Sequence[int], total: int
) -> tuple[object, ...]:
    """Return what decides an event's times: all but the identity of its experts."""
    if len(it.loads) == 1 and not (it.elsewhere or it.reads):  # the most frequent case
        key, _, slot = it.loads[0]
        return rows, union.index(key), slot in it.held
    position = {key: place for place, key in enumerate(union)}
    places = tuple([position[key] for key, *_ in it.loads])  # in the order of their copies
    lanes = tuple([(position[key], lane) for key, _, lane in it.elsewhere])
    waits: tuple[int, ...] = ()
    if it.waves > 1 or not set(it.held).isdisjoint([slot for *_, slot in it.loads]):
        seen = dict.fromkeys(it.held, _RESIDENTS)
        after = []
        for place, (*_, slot) in enumerate(it.loads):
            after.append(seen.get(slot, _FREE))
            seen[slot] = place
        waits = tuple(after)
    reads = tuple([it.reads.get(key, 0) for key in union]) if it.reads else ()
    # Only experts elsewhere need the hidden states moved, which are those of all rows.
    return rows, places, lanes, waits, reads, total if lanes else 0


def _check(entries: Sequence[Entry], end_ns: int) -> None:
    """Raise `InvariantError` if a lane does two things at once, or work starts too early."""
    free: dict[str, int] = {}
    for work, *_ in sorted(entries, key=lambda entry: entry[0].start_ns):
        if work.start_ns < free.get(work.lane, 0) or work.finish_ns < work.start_ns:
            raise InvariantError(9, f"work on {work.lane} overlaps at {work.start_ns} ns")
        free[work.lane] = work.finish_ns
        for other in work.after:
            if work.start_ns < other.finish_ns:
                raise too_early(work, other)
        if work.finish_ns > end_ns:
            raise InvariantError(
                9, f"an event ends at {end_ns} ns, its work at {work.finish_ns} ns"
            )


def _measure(events: Sequence[Sequence[EventTimes]]) -> npt.NDArray[np.int64]:
    """Return what each event adds, of shape [steps, layers, columns]."""
    every = list(chain.from_iterable(events))
    row_of = {times: row for row, times in enumerate(dict.fromkeys(every))}
    # Few events have distinct times, so each is measured once and looked up afterwards.
    table = np.array([times.sums for times in row_of], np.int64)
    rows = np.fromiter(map(row_of.__getitem__, every), np.int64, len(every))
    return table[rows].reshape(len(events), -1, table.shape[1])


def _column(values: Sequence[int] | Sequence[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)
