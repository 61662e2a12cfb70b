"""Sums over folded steps: each step is logged as it is, and many are added up at a time.

Layer events of one shape share one `EventTimes`. Each is checked and measured once; the sums over
steps and layers then index a table. Shapes: S steps, L trace layers, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.machine.step_times import FREE, EventTimes, StepTimes

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

# What an event adds: the columns of the table of event times.
_HITS, _LOADS, _ROWS, _MISSED_ROWS, _WAVES, _BUSY, _STALL, _LINK = range(8)


class StepFacts(NamedTuple):
    """What a step is made of, beside its experts."""

    prefill_tokens: int
    decode_tokens: int
    sequences: int
    blocks: int


class LoggedStep(NamedTuple):
    """A folded step that is not booked yet."""

    number: int
    times: StepTimes
    facts: StepFacts


class _Books:
    """The sums of some logged steps, on their way into the ledger."""

    def __init__(self, log: Sequence[LoggedStep]) -> None:
        steps_times = [step.times for step in log]
        self.log = log
        self.events_SLC = _measure([step.events for step in steps_times])
        self.by_step_SC = self.events_SLC.sum(axis=1)
        self.start_S = _column([step.start_ns for step in steps_times])
        self.finish_S = _column([step.finish_ns for step in steps_times])
        self.fixed_S = _column([sum(step.layers_ns) + step.tail_ns for step in steps_times])
        self.ids_S = _column([step.ids_ns for step in steps_times])
        self.sampled_S = _column([step.sampled_ns for step in steps_times])
        self.readback_S = self.ids_S * self.events_SLC.shape[1] + self.sampled_S
        self.stall_S = self.by_step_SC[:, _STALL] + self.readback_S

    def check(self) -> None:
        """The clock never goes back, and the time of a step is its busy time and its stalls."""
        backwards = np.flatnonzero(self.start_S[1:] < self.finish_S[:-1])
        if backwards.size:
            at = int(self.start_S[backwards[0] + 1])
            raise InvariantError(15, f"the clock went back to {at} ns")
        accounted_S = self.fixed_S + self.by_step_SC[:, _BUSY] + self.stall_S
        wrong = np.flatnonzero(self.finish_S - self.start_S != accounted_S)
        if wrong.size:
            step = self.log[int(wrong[0])]
            raise InvariantError(9, f"step {step.number} takes longer or shorter than its work")


def book(ledger: Ledger, log: Sequence[LoggedStep]) -> None:
    """Add logged steps to the ledger's counters and rows."""
    books = _Books(log)
    books.check()
    by_layer_LC = books.events_SLC.sum(axis=0)
    for counts, column in (
        (ledger.hits, _HITS),
        (ledger.demand_copies, _LOADS),
        (ledger.rows, _ROWS),
        (ledger.missed_rows, _MISSED_ROWS),
        (ledger.demand_stall_ns, _STALL),
    ):
        _add(counts, by_layer_LC[:, column])
    _add(ledger.readback_stall_ns, _readback_stalls(books))
    waves_SL = books.events_SLC[:, :, _WAVES]
    ledger.waves_events += int(np.count_nonzero(waves_SL))
    ledger.waves_sum += int(waves_SL.sum())
    ledger.waves_max = max(ledger.waves_max, int(waves_SL.max()))
    ledger.busy_ns["gpu"] += int(books.fixed_S.sum() + books.by_step_SC[:, _BUSY].sum())
    ledger.busy_ns["h2d"] += int(books.by_step_SC[:, _LINK].sum())
    ledger.busy_ns["d2h"] += int(books.readback_S.sum())
    ledger.stepping_ns += int((books.finish_S - books.start_S).sum())
    layers = ledger.num_layers
    for step, loads in zip(log, books.by_step_SC[:, _LOADS].tolist(), strict=True):
        sizes = step.times.sizes
        ledger.moved_bytes["demand"] += loads * sizes.expert
        ledger.moved_bytes["readback"] += layers * sizes.ids + sizes.sampled
    ledger.steps += _rows(books)


def _rows(books: _Books) -> list[tuple[int, ...]]:
    """Rows of `steps.parquet`."""
    sums = zip(books.by_step_SC.tolist(), books.stall_S.tolist(), strict=True)
    return [
        (
            number,
            step_times.start_ns,
            step_times.finish_ns,
            facts.prefill_tokens + facts.decode_tokens,
            facts.prefill_tokens,
            facts.decode_tokens,
            facts.sequences,
            columns[_HITS] + columns[_LOADS],
            columns[_HITS],
            0,
            columns[_LOADS],
            columns[_LOADS] * step_times.sizes.expert,
            stall,
            columns[_WAVES],
            facts.blocks,
        )
        for (number, step_times, facts), (columns, stall) in zip(books.log, sums, strict=True)
    ]


def _readback_stalls(books: _Books) -> npt.NDArray[np.int64]:
    """Time in which the GPU waits for ids, by the layer of the work that follows: the event's
    own, or that of the next layer where no expert is wanted at all; at last for the tokens."""
    ids_SL = np.repeat(books.ids_S[:, None], books.events_SLC.shape[1], axis=1)
    wanted_SL = (books.events_SLC[:, :, _HITS] + books.events_SLC[:, :, _LOADS]) > 0
    stalls = np.zeros(ids_SL.shape[1] + 1, np.int64)
    stalls[:-1] += np.where(wanted_SL, ids_SL, 0).sum(axis=0)
    stalls[1:] += np.where(wanted_SL, 0, ids_SL).sum(axis=0)
    stalls[-1] += books.sampled_S.sum()
    return stalls


def _measure(events: Sequence[Sequence[EventTimes]]) -> npt.NDArray[np.int64]:
    """[steps, layers, columns] from the times of each event."""
    every = list(chain.from_iterable(events))
    row_of = {times: row for row, times in enumerate(dict.fromkeys(every))}
    table = np.array([_adds(times) for times in row_of], np.int64)
    rows = np.fromiter(map(row_of.__getitem__, every), np.int64, len(every))
    return table[rows].reshape(len(events), -1, table.shape[1])


def _adds(times: EventTimes) -> tuple[int, ...]:
    """What an event with these times adds to the columns above."""
    check_event_times(times)
    residents, loads = times.residents, times.loads
    busy = sum(times.finishes) - sum(times.starts)
    return (
        len(residents),
        len(loads),
        sum(residents) + sum(loads),
        sum(loads),
        _waves(times.after) if loads else 0,
        busy,
        times.duration_ns - busy,
        sum(times.landings) - sum(times.departures),
    )


def _waves(after: Sequence[int]) -> int:
    """Rounds through the staging buffers: the longest chain of copies, each of which waits for
    the computation that reads its buffer before."""
    rounds: list[int] = []
    for reader in after:
        rounds.append(rounds[reader - 1] + 1 if reader > 0 else 1)
    return max(rounds, default=1)


def check_event_times(times: EventTimes) -> None:
    """Raises `InvariantError` if work overlaps, or an expert is used or overwritten too soon."""
    copies = {len(times.loads), len(times.departures), len(times.landings)}
    if copies | {len(times.starts) - 1, len(times.finishes) - 1} != {len(times.loads)}:
        raise InvariantError(6, f"{len(times.loads)} misses do not make as many copies")
    for starts, finishes, what in (
        (times.starts, times.finishes, "GPU work"),
        (times.departures, times.landings, "demand copies"),
    ):
        moments = [0, *chain.from_iterable(zip(starts, finishes, strict=True))]
        if moments != sorted(moments):
            raise InvariantError(9, f"{what} of one layer event overlap: {moments}")
    for start, landing in zip(times.starts[1:], times.landings, strict=True):
        if start < landing:
            raise InvariantError(4, f"an expert is computed at {start} ns, before it landed")
    for reader, departure in zip(times.after, times.departures, strict=False):
        if reader != FREE and departure < times.finishes[reader]:
            raise InvariantError(5, f"a copy at {departure} ns overwrites what is in use")
    if times.duration_ns != times.finishes[-1]:
        raise InvariantError(9, f"an event of {times.duration_ns} ns is over before its work is")


def _column(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _add(counts: list[int], amounts: npt.NDArray[np.int64]) -> None:
    for index, amount in enumerate(amounts.tolist()):
        counts[index] += amount
