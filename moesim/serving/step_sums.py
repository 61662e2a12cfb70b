"""Sums of steps that were timed at once, and how they enter the ledger.

Shapes: S steps, L trace layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError
from moesim.serving.ledger import Ledger
from moesim.serving.stalls import CAUSES, READBACK
from moesim.serving.totals import counter_names

__all__ = ["COUNTS", "StepSums"]

Column = npt.NDArray[np.int64]

COUNTS: Final = ("hits", "demand_copies", "elsewhere", "missed_rows", "demand_bytes", "rows")
"""Counters that the ledger keeps by layer."""
_AHEAD_COUNTS: Final = ("late_hits", "prefetch_copies", "prefetch_bytes")
_AHEAD_TOTALS: Final = (
    "prefetch_useful", "prefetch_late", "prefetch_wasted", "prefetch_refused",
    "prefetch_pollution",
)  # fmt: skip
"""What the ledger counts where experts are copied ahead, by layer and in all."""


@dataclass(frozen=True, slots=True)
class StepSums:
    """What some steps add to a ledger. Each starts and ends with an idle GPU.

    - `fixed`: the GPU's time outside of layer events; `ids`, `sampled`: the time until the
      ids of a layer, and the sampled tokens, are on the host, with their bytes.
    - `facts`: prefill tokens, decode tokens, sequences and KV blocks.
    - `by_step`, `by_layer`: sums over layers or steps, by name: `COUNTS`, `waves`, `stall CAUSE`,
      `busy LANE`, `moved KIND`, and the ledger's counters of copies ahead. A missing name is 0.
      `residents` are the experts with a slot at the end of each step.
    - `waves_events`, `waves_max`: layer events that copied experts, and the most rounds of one.
    - `ids_stall`, `late_stall`: the GPU's waits for ids in layers with GPU work and without.
    """

    number: Column
    start: Column
    finish: Column
    fixed: Column
    ids: Column
    sampled: Column
    ids_bytes: Column
    sampled_bytes: Column
    facts: Column
    by_step: Mapping[str, Column]
    by_layer: Mapping[str, Column]
    waves_events: Column
    waves_max: Column
    ids_stall: Column
    late_stall: Column

    def of(self, name: str) -> Column:
        """Return a column by step, [S]."""
        found = self.by_step.get(name)
        return np.zeros(len(self.number), np.int64) if found is None else found

    @property
    def readback(self) -> Column:
        """The time of all readbacks of a step."""
        return self.ids * len(self.ids_stall) + self.sampled

    @property
    def stall(self) -> Column:
        """The time in which the GPU is idle."""
        total = self.readback
        for cause in CAUSES:
            total = total + self.of(f"stall {cause}")
        return total

    def check(self, ended_ns: int) -> None:
        """Check that the clock never goes back, and that steps last as long as work and stalls.

        Raise `InvariantError` otherwise.
        """
        before = np.concatenate([[ended_ns], self.finish[:-1]])
        backwards = np.flatnonzero(self.start < before)
        if backwards.size:
            at = int(self.start[backwards[0]])
            raise InvariantError(15, f"the clock went back to {at} ns")
        accounted_S = self.fixed + self.of("busy gpu") + self.stall
        wrong = np.flatnonzero(self.finish - self.start != accounted_S)
        if wrong.size:
            first = int(wrong[0])
            lasts_ns = int(self.finish[first] - self.start[first])
            raise InvariantError(
                9,
                f"step {self.number[first]} lasts {lasts_ns} ns, "
                f"its work and stalls {int(accounted_S[first])} ns",
            )

    def add_to(self, ledger: Ledger) -> None:
        """Add everything to the ledger's counters and rows."""
        self.check(ledger.ended_ns)
        for name in (*COUNTS, *_AHEAD_COUNTS):
            _add(getattr(ledger, name), self._by_layer(name))
        for name in _AHEAD_TOTALS:
            setattr(ledger, name, getattr(ledger, name) + int(self.of(name).sum()))
        for cause, name in enumerate(CAUSES):
            _add(ledger.stall_ns[cause], self._by_layer(f"stall {name}"))
        _add(ledger.stall_ns[READBACK], self._readback_stalls())
        ledger.waves_events += int(self.waves_events.sum())
        ledger.waves_sum += int(self.of("waves").sum())
        ledger.waves_max = max(ledger.waves_max, int(self.waves_max.max()))
        added = self._added(ledger)
        for lane in ledger.busy_ns:
            ledger.busy_ns[lane] += int(added[f"busy {lane}"].sum())
        for kind in ledger.moved_bytes:
            ledger.moved_bytes[kind] += int(added[f"moved {kind}"].sum())
        ledger.stepping_ns += int((self.finish - self.start).sum())
        ledger.add_steps(self._rows())
        ledger.ended_ns = int(self.finish[-1])
        if ledger.per_step is not None:
            columns = [added[name] for name in counter_names(ledger)]
            ledger.per_step.extend(np.stack(columns, axis=1), self.waves_max.tolist())

    def _by_layer(self, name: str) -> Sequence[int]:
        found = self.by_layer.get(name)
        summed: list[int] = [] if found is None else found.tolist()
        return summed

    def _added(self, ledger: Ledger) -> dict[str, Column]:
        """Return what each step adds to each counter of a ledger, [S] by name."""
        added = {name: self.of(name) for name in counter_names(ledger)}
        added["waves_sum"] = self.of("waves")
        added["waves_events"] = self.waves_events
        added["stepping_ns"] = self.finish - self.start
        added["busy gpu"] = added["busy gpu"] + self.fixed
        added["busy d2h"] = added["busy d2h"] + self.readback
        added["stall readback"] = added["stall readback"] + self.readback
        readback_bytes_S = self.ids_bytes * len(self.ids_stall) + self.sampled_bytes
        added["moved readback"] = added["moved readback"] + readback_bytes_S
        return added

    def _rows(self) -> Column:
        """Return the rows of `steps.parquet`, [S, columns], in the order of `STEP_COLUMNS`."""
        prefill_S, decode_S, sequences_S, blocks_S = self.facts.T
        hits_S, late_S = self.of("hits"), self.of("late_hits")
        missed_S = self.of("demand_copies") + self.of("elsewhere")
        columns = (
            self.number,
            self.start,
            self.finish,
            prefill_S + decode_S,
            prefill_S,
            decode_S,
            sequences_S,
            hits_S + late_S + missed_S,
            hits_S,
            late_S,
            missed_S,
            self.of("demand_bytes") + self.of("prefetch_bytes"),
            self.stall,
            self.of("waves"),
            blocks_S,
            self.of("residents"),
        )
        return np.stack(columns, axis=1)

    def _readback_stalls(self) -> list[int]:
        """Return the time in ns that the GPU waits for ids, by layer, of shape [layers + 1].

        The time counts for the layer of the next GPU work. That is the event's own layer, or the
        next layer where no expert runs on the GPU. The last entry also has the wait for the sampled
        tokens.
        """
        stalls = np.zeros(len(self.ids_stall) + 1, np.int64)
        stalls[:-1] += self.ids_stall
        stalls[1:] += self.late_stall
        stalls[-1] += self.sampled.sum()
        result: list[int] = stalls.tolist()
        return result


def _add(counts: list[int], added: Sequence[int]) -> None:
    for index, number in enumerate(added):
        counts[index] += number
