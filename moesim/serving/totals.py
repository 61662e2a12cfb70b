"""Totals: the sums of a run over its steps, or over some of its steps.

A ledger keeps the sums of the whole run. Where a scenario sets a window, `StepTotals` also records
what each step added. A copy counts for the step at whose end it has first landed.

Shapes: S steps, C counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

__all__ = ["COUNTERS", "StepTotals", "Totals", "totals_of"]


class Totals(NamedTuple):
    """Sums over steps, except for `waves_max`. Stalls and busy times are of all layers together."""

    steps: int
    events: int
    accesses: int
    waves_max: int
    hits: int
    late_hits: int
    rows: int
    missed_rows: int
    waves_sum: int
    waves_events: int
    stepping_ns: int
    busy_gpu_ns: int
    busy_h2d_ns: int
    busy_d2h_ns: int
    stall_readback_ns: int
    stall_demand_ns: int
    stall_late_ns: int
    stall_other_ns: int
    demand_bytes: int
    prefetch_bytes: int
    write_back_bytes: int
    readback_bytes: int
    prefetch_useful: int
    prefetch_late: int
    prefetch_wasted: int
    prefetch_refused: int


COUNTERS = Totals._fields[4:]
"""The sums that a ledger counts while it runs, in the order of `_counters`."""


def _counters(ledger: Ledger) -> tuple[int, ...]:
    """Return the sums over all steps so far, in the order of `COUNTERS`."""
    return (
        sum(ledger.hits),
        sum(ledger.late_hits),
        sum(ledger.rows),
        sum(ledger.missed_rows),
        ledger.waves_sum,
        ledger.waves_events,
        ledger.stepping_ns,
        *ledger.busy_ns.values(),
        *map(sum, ledger.stall_ns),
        *ledger.moved_bytes.values(),
        ledger.prefetch_useful,
        ledger.prefetch_late,
        ledger.prefetch_wasted,
        ledger.prefetch_refused,
    )


def totals_of(ledger: Ledger) -> Totals:
    """Return the sums of the whole run. Events and accesses are those of the log of unions."""
    events, accesses = (int(column.sum()) for column in ledger.accesses_by_layer())
    return Totals(len(ledger.steps), events, accesses, ledger.waves_max, *_counters(ledger))


class StepTotals:
    """What each step added to the counters of a ledger, with a last row for the end of the run."""

    def __init__(self) -> None:
        self.events: list[int] = []
        """Layer events of each step that wanted an expert, as the log of unions counts them."""
        self._added: list[npt.NDArray[np.int64]] = []  # each of shape [some steps, C]
        self._waves_max: list[int] = []
        self._seen: tuple[int, ...] = (0,) * len(COUNTERS)
        self._earlier_waves = 0

    def begin(self, ledger: Ledger) -> None:
        """Start a step that runs layer by layer."""
        # A maximum has no difference, so the ledger's own is set aside during the step.
        self._earlier_waves, ledger.waves_max = ledger.waves_max, 0

    def end(self, ledger: Ledger) -> None:
        """End a step that ran layer by layer."""
        self._waves_max.append(ledger.waves_max)
        ledger.waves_max = max(ledger.waves_max, self._earlier_waves)
        self._note(ledger)

    def extend(self, added_SC: npt.NDArray[np.int64], waves_max: Sequence[int]) -> None:
        """Add folded steps."""
        self._added.append(added_SC)
        self._waves_max += waves_max
        self._seen = tuple(map(sum, zip(self._seen, added_SC.sum(axis=0).tolist(), strict=True)))

    def close(self, ledger: Ledger) -> None:
        """End the run: what was added after the last step gets a row of its own."""
        self._waves_max.append(0)
        self.events.append(0)
        self._note(ledger)

    def of(self, ledger: Ledger, rows: range) -> Totals:
        """Return the totals of some consecutive rows."""
        some = slice(rows.start, rows.stop)
        steps = ledger.step_columns()
        return Totals(
            len(steps["step"][some]),
            sum(self.events[some]),
            int(steps["accesses"][some].sum()),
            max(self._waves_max[some], default=0),
            *np.concatenate(self._added)[some].sum(axis=0).tolist(),
        )

    def _note(self, ledger: Ledger) -> None:
        now = _counters(ledger)
        added = [value - before for value, before in zip(now, self._seen, strict=True)]
        self._added.append(np.array([added], np.int64))
        self._seen = now
