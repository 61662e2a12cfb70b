"""Booking of passages: folded steps are logged as they are, and added up many at a time.

Events share their courses, so a course is checked and measured once, and the sums over steps
and layers are those of an index into a table. Shapes: S steps, L trace layers, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.machine.passage import FREE, Course, Passage

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

# What an event adds: the columns of the table of courses.
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
    passage: Passage
    facts: StepFacts


class _Books:
    """The sums of some logged steps, on their way into the ledger."""

    def __init__(self, log: Sequence[LoggedStep]) -> None:
        passages = [step.passage for step in log]
        self.log = log
        self.events_SLC = _measure([passage.courses for passage in passages])
        self.by_step_SC = self.events_SLC.sum(axis=1)
        self.start_S = _column([passage.start_ns for passage in passages])
        self.finish_S = _column([passage.finish_ns for passage in passages])
        self.fixed_S = _column([sum(passage.layers_ns) + passage.tail_ns for passage in passages])
        self.ids_S = _column([passage.ids_ns for passage in passages])
        self.sampled_S = _column([passage.sampled_ns for passage in passages])
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
        sizes = step.passage.sizes
        ledger.moved_bytes["demand"] += loads * sizes.expert
        ledger.moved_bytes["readback"] += layers * sizes.ids + sizes.sampled
    ledger.steps += _rows(books)


def _rows(books: _Books) -> list[tuple[int, ...]]:
    """Rows of `steps.parquet`."""
    sums = zip(books.by_step_SC.tolist(), books.stall_S.tolist(), strict=True)
    return [
        (
            number,
            passage.start_ns,
            passage.finish_ns,
            facts.prefill_tokens + facts.decode_tokens,
            facts.prefill_tokens,
            facts.decode_tokens,
            facts.sequences,
            columns[_HITS] + columns[_LOADS],
            columns[_HITS],
            0,
            columns[_LOADS],
            columns[_LOADS] * passage.sizes.expert,
            stall,
            columns[_WAVES],
            facts.blocks,
        )
        for (number, passage, facts), (columns, stall) in zip(books.log, sums, strict=True)
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


def _measure(courses: Sequence[Sequence[Course]]) -> npt.NDArray[np.int64]:
    """[steps, layers, columns] from the course of each event."""
    every = list(chain.from_iterable(courses))
    row_of = {course: row for row, course in enumerate(dict.fromkeys(every))}
    table = np.array([_adds(course) for course in row_of], np.int64)
    rows = np.fromiter(map(row_of.__getitem__, every), np.int64, len(every))
    return table[rows].reshape(len(courses), -1, table.shape[1])


def _adds(course: Course) -> tuple[int, ...]:
    """What an event of this course adds to the columns above."""
    check_course(course)
    residents, loads = course.residents, course.loads
    busy = sum(course.finishes) - sum(course.starts)
    return (
        len(residents),
        len(loads),
        sum(residents) + sum(loads),
        sum(loads),
        _waves(course.after) if loads else 0,
        busy,
        course.duration_ns - busy,
        sum(course.landings) - sum(course.departures),
    )


def _waves(after: Sequence[int]) -> int:
    """Rounds through the staging buffers: the longest chain of copies, each of which waits for
    the computation that reads its buffer before."""
    rounds: list[int] = []
    for reader in after:
        rounds.append(rounds[reader - 1] + 1 if reader > 0 else 1)
    return max(rounds, default=1)


def check_course(course: Course) -> None:
    """Raises `InvariantError` if work overlaps, or an expert is used or overwritten too soon."""
    copies = {len(course.loads), len(course.departures), len(course.landings)}
    if copies | {len(course.starts) - 1, len(course.finishes) - 1} != {len(course.loads)}:
        raise InvariantError(6, f"{len(course.loads)} misses do not make as many copies")
    for starts, finishes, what in (
        (course.starts, course.finishes, "GPU work"),
        (course.departures, course.landings, "demand copies"),
    ):
        moments = [0, *chain.from_iterable(zip(starts, finishes, strict=True))]
        if moments != sorted(moments):
            raise InvariantError(9, f"{what} of one layer event overlap: {moments}")
    for start, landing in zip(course.starts[1:], course.landings, strict=True):
        if start < landing:
            raise InvariantError(4, f"an expert is computed at {start} ns, before it landed")
    for reader, departure in zip(course.after, course.departures, strict=False):
        if reader != FREE and departure < course.finishes[reader]:
            raise InvariantError(5, f"a copy at {departure} ns overwrites what is in use")
    if course.duration_ns != course.finishes[-1]:
        raise InvariantError(9, f"an event of {course.duration_ns} ns is over before its work is")


def _column(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _add(counts: list[int], amounts: npt.NDArray[np.int64]) -> None:
    for index, amount in enumerate(amounts.tolist()):
        counts[index] += amount
