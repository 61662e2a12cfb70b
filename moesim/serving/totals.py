"""Totals: the sums of a run over its steps, or over some of its steps.

A ledger keeps the sums of the whole run. Where a scenario sets a window, `StepTotals` also records
what each step added. A copy counts for the step at whose end it has first landed.

Shapes: S steps, C counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from moesim.serving.stalls import CAUSES

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger

__all__ = ["StepTotals", "Totals", "counter_names", "totals_of"]

_PLAIN: Final = (
    "hits",
    "late_hits",
    "elsewhere",
    "rows",
    "missed_rows",
    "waves_sum",
    "waves_events",
    "stepping_ns",
    "prefetch_useful",
    "prefetch_late",
    "prefetch_wasted",
    "prefetch_refused",
    "prefetch_pollution",
    "prefetch_cancelled",
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over steps, except for `waves_max`. Stalls and busy times are of all layers together.

    `elsewhere` counts experts that were computed on another lane than the GPU. `busy_ns` is by
    lane, `stall_ns` by cause, `moved_bytes` by kind of copy.
    """

    steps: int
    events: int
    accesses: int
    waves_max: int
    hits: int
    late_hits: int
    elsewhere: int
    rows: int
    missed_rows: int
    waves_sum: int
    waves_events: int
    stepping_ns: int
    prefetch_useful: int
    prefetch_late: int
    prefetch_wasted: int
    prefetch_refused: int
    prefetch_pollution: int
    prefetch_cancelled: int
    busy_ns: dict[str, int]
    stall_ns: dict[str, int]
    moved_bytes: dict[str, int]


def counter_names(ledger: Ledger) -> list[str]:
    """Return the names of the sums that a ledger counts while it runs, in their fixed order."""
    return [
        *_PLAIN,
        *(f"busy {lane}" for lane in ledger.busy_ns),
        *(f"stall {cause}" for cause in CAUSES),
        *(f"moved {kind}" for kind in ledger.moved_bytes),
    ]


def _counters(ledger: Ledger) -> tuple[int, ...]:
    """Return the sums over all steps so far, in the order of `counter_names`."""
    plain = (getattr(ledger, name) for name in _PLAIN)
    return (
        *(sum(value) if isinstance(value, list) else value for value in plain),
        *ledger.busy_ns.values(),
        *map(sum, ledger.stall_ns),
        *ledger.moved_bytes.values(),
    )


def _totals(
    ledger: Ledger, counts: Sequence[int], steps: int, events: int, accesses: int, waves_max: int
) -> Totals:
    plain = dict(zip(_PLAIN, counts, strict=False))
    rest = iter(counts[len(_PLAIN) :])
    groups = [
        dict(zip(names, rest, strict=False))
        for names in (ledger.busy_ns, CAUSES, ledger.moved_bytes)
    ]
    return Totals(
        steps=steps,
        events=events,
        accesses=accesses,
        waves_max=waves_max,
        **plain,
        busy_ns=groups[0],
        stall_ns=groups[1],
        moved_bytes=groups[2],
    )


def totals_of(ledger: Ledger) -> Totals:
    """Return the sums of the whole run. Events and accesses are those of the log of unions."""
    events, accesses = (int(column.sum()) for column in ledger.accesses_by_layer())
    counts = _counters(ledger)
    return _totals(ledger, counts, ledger.num_steps, events, accesses, ledger.waves_max)


class StepTotals:
    """What each step added to the counters of a ledger, with a last row for the end of the run."""

    def __init__(self) -> None:
        self.events: list[int] = []
        """Layer events of each step that wanted an expert, as the log of unions counts them."""
        self._added: list[npt.NDArray[np.int64]] = []  # each of shape [some steps, C]
        self._waves_max: list[int] = []
        self._seen: tuple[int, ...] | None = None
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
        """Add steps that were timed at once."""
        self._added.append(added_SC)
        self._waves_max += waves_max
        before = self._seen or (0,) * added_SC.shape[1]
        self._seen = tuple(map(sum, zip(before, added_SC.sum(axis=0).tolist(), strict=True)))

    def close(self, ledger: Ledger) -> None:
        """End the run: what was added after the last step gets a row of its own."""
        self._waves_max.append(0)
        self.events.append(0)
        self._note(ledger)

    def of(self, ledger: Ledger, rows: range) -> Totals:
        """Return the totals of some consecutive rows."""
        some = slice(rows.start, rows.stop)
        steps = ledger.step_columns()
        counts = np.concatenate(self._added)[some].sum(axis=0).tolist()
        return _totals(
            ledger,
            counts,
            len(steps["step"][some]),
            sum(self.events[some]),
            int(steps["accesses"][some].sum()),
            max(self._waves_max[some], default=0),
        )

    def _note(self, ledger: Ledger) -> None:
        now = _counters(ledger)
        before = self._seen or (0,) * len(now)
        added = [value - earlier for value, earlier in zip(now, before, strict=True)]
        self._added.append(np.array([added], np.int64))
        self._seen = now
