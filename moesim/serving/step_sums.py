"""Step sums: adding many folded steps to the ledger at once.

Layer events of one shape share one `EventTimes`, which is checked and measured once. A table holds
what each adds; sums over steps and layers are then lookups in NumPy.

Shapes: S steps, L trace layers, C columns of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.machine.step_times import FREE, EventTimes, StepTimes
from moesim.serving.totals import COUNTERS

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

# The columns of the table: what a layer event adds to the counters.
_HITS, _LOADS, _ROWS, _MISSED_ROWS, _WAVES, _BUSY, _STALL, _LINK = range(8)


class StepFacts(NamedTuple):
    """What is known of a step without its experts: numbers of tokens, requests and KV blocks."""

    prefill_tokens: int
    decode_tokens: int
    sequences: int
    blocks: int


class LoggedStep(NamedTuple):
    """A folded step that was not added to the ledger yet."""

    number: int
    times: StepTimes
    facts: StepFacts


class _StepSums:
    """The sums of some logged steps; each name ends with the axes of its array."""

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
        """Check that the clock never goes back, and that steps last as long as work and stalls.

        Raise `InvariantError` otherwise.
        """
        backwards = np.flatnonzero(self.start_S[1:] < self.finish_S[:-1])
        if backwards.size:
            at = int(self.start_S[backwards[0] + 1])
            raise InvariantError(15, f"the clock went back to {at} ns")
        accounted_S = self.fixed_S + self.by_step_SC[:, _BUSY] + self.stall_S
        wrong = np.flatnonzero(self.finish_S - self.start_S != accounted_S)
        if wrong.size:
            first = int(wrong[0])
            lasts_ns = int(self.finish_S[first] - self.start_S[first])
            raise InvariantError(
                9,
                f"step {self.log[first].number} lasts {lasts_ns} ns, "
                f"its work and stalls {int(accounted_S[first])} ns",
            )


def add_steps(ledger: Ledger, log: Sequence[LoggedStep]) -> None:
    """Add logged steps to the ledger's counters and rows.

    Raise `InvariantError` if their times are impossible.
    """
    sums = _StepSums(log)
    sums.check()
    by_layer_LC = sums.events_SLC.sum(axis=0)
    for counts, column in (
        (ledger.hits, _HITS),
        (ledger.demand_copies, _LOADS),
        (ledger.rows, _ROWS),
        (ledger.missed_rows, _MISSED_ROWS),
        (ledger.demand_stall_ns, _STALL),
    ):
        _add(counts, by_layer_LC[:, column])
    _add(ledger.readback_stall_ns, _readback_stalls(sums))
    waves_SL = sums.events_SLC[:, :, _WAVES]
    ledger.waves_events += int(np.count_nonzero(waves_SL))
    ledger.waves_sum += int(waves_SL.sum())
    ledger.waves_max = max(ledger.waves_max, int(waves_SL.max()))
    ledger.busy_ns["gpu"] += int(sums.fixed_S.sum() + sums.by_step_SC[:, _BUSY].sum())
    ledger.busy_ns["h2d"] += int(sums.by_step_SC[:, _LINK].sum())
    ledger.busy_ns["d2h"] += int(sums.readback_S.sum())
    ledger.stepping_ns += int((sums.finish_S - sums.start_S).sum())
    layers = ledger.num_layers
    for step, loads in zip(log, sums.by_step_SC[:, _LOADS].tolist(), strict=True):
        sizes = step.times.sizes
        ledger.moved_bytes["demand"] += loads * sizes.expert
        ledger.moved_bytes["readback"] += layers * sizes.ids + sizes.sampled
    ledger.steps += _rows(sums)
    if ledger.per_step is not None:
        ledger.per_step.extend(_counters(sums), waves_SL.max(axis=1).tolist())


def _counters(sums: _StepSums) -> npt.NDArray[np.int64]:
    """Return what each step adds to the counters of a ledger, of shape [steps, counters]."""
    sizes, by_step_SC = [step.times.sizes for step in sums.log], sums.by_step_SC
    loads_S, layers = by_step_SC[:, _LOADS], sums.events_SLC.shape[1]
    added = {
        "hits": by_step_SC[:, _HITS],
        "rows": by_step_SC[:, _ROWS],
        "missed_rows": by_step_SC[:, _MISSED_ROWS],
        "waves_sum": by_step_SC[:, _WAVES],
        "waves_events": np.count_nonzero(sums.events_SLC[:, :, _WAVES], axis=1),
        "stepping_ns": sums.finish_S - sums.start_S,
        "busy_gpu_ns": sums.fixed_S + by_step_SC[:, _BUSY],
        "busy_h2d_ns": by_step_SC[:, _LINK],
        "busy_d2h_ns": sums.readback_S,
        "stall_readback_ns": sums.readback_S,
        "stall_demand_ns": by_step_SC[:, _STALL],
        "demand_bytes": loads_S * _column([size.expert for size in sizes]),
        "readback_bytes": _column([layers * size.ids + size.sampled for size in sizes]),
    }
    nothing = np.zeros_like(loads_S)  # nothing is prefetched or written back
    return np.stack([added.get(name, nothing) for name in COUNTERS], axis=1)


def _rows(sums: _StepSums) -> list[tuple[int, ...]]:
    """Return the rows of `steps.parquet`, in the order of `STEP_COLUMNS`."""
    per_step = zip(sums.by_step_SC.tolist(), sums.stall_S.tolist(), strict=True)
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
            0,  # late hits: nothing is prefetched before a folded step
            columns[_LOADS],
            columns[_LOADS] * step_times.sizes.expert,
            stall,
            columns[_WAVES],
            facts.blocks,
        )
        for (number, step_times, facts), (columns, stall) in zip(sums.log, per_step, strict=True)
    ]


def _readback_stalls(sums: _StepSums) -> npt.NDArray[np.int64]:
    """Return the time in ns that the GPU waits for ids, by layer, of shape [layers + 1].

    The time counts for the layer of the next GPU work. That is the event's own layer, or the next
    layer where no expert is wanted. The last entry also has the wait for the sampled tokens.
    """
    ids_SL = np.repeat(sums.ids_S[:, None], sums.events_SLC.shape[1], axis=1)
    wanted_SL = (sums.events_SLC[:, :, _HITS] + sums.events_SLC[:, :, _LOADS]) > 0
    stalls = np.zeros(ids_SL.shape[1] + 1, np.int64)
    stalls[:-1] += np.where(wanted_SL, ids_SL, 0).sum(axis=0)
    stalls[1:] += np.where(wanted_SL, 0, ids_SL).sum(axis=0)
    stalls[-1] += sums.sampled_S.sum()
    return stalls


def _measure(events: Sequence[Sequence[EventTimes]]) -> npt.NDArray[np.int64]:
    """Return what each event adds, of shape [steps, layers, columns]."""
    every = list(chain.from_iterable(events))
    row_of = {times: row for row, times in enumerate(dict.fromkeys(every))}
    # Few events have distinct times, so each is measured once and looked up afterwards.
    table = np.array([_adds(times) for times in row_of], np.int64)
    rows = np.fromiter(map(row_of.__getitem__, every), np.int64, len(every))
    return table[rows].reshape(len(events), -1, table.shape[1])


def _adds(times: EventTimes) -> tuple[int, ...]:
    """Return what an event with these times adds, in the order of the columns."""
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
    """Return the number of rounds through the staging buffers.

    A copy into a used buffer waits for the computation that reads it. So the longest chain of such
    waits has one copy for each round.
    """
    rounds: list[int] = []
    for reader in after:
        rounds.append(rounds[reader - 1] + 1 if reader > 0 else 1)
    return max(rounds, default=1)


def check_event_times(times: EventTimes) -> None:
    """Raise `InvariantError` if work overlaps, or an expert is used or overwritten too early."""
    copies = {len(times.loads), len(times.departures), len(times.landings)}
    if copies | {len(times.starts) - 1, len(times.finishes) - 1} != {len(times.loads)}:
        raise InvariantError(6, f"{len(times.loads)} misses have not as many copies")
    for starts, finishes, what in (
        (times.starts, times.finishes, "GPU work"),
        (times.departures, times.landings, "demand copies"),
    ):
        # Sorted in the order start, finish, start, ...: then no two overlap, and none is negative.
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
        raise InvariantError(
            9, f"an event lasts {times.duration_ns} ns, but its work {times.finishes[-1]} ns"
        )


def _column(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _add(counts: list[int], amounts: npt.NDArray[np.int64]) -> None:
    for index, amount in enumerate(amounts.tolist()):
        counts[index] += amount
