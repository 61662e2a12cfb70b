"""Rows of the comparison: what one system did in one cell under one engine, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from system_cells import COMMON, Cell, Entry
from system_runs import Run

from moesim.report.statistics import Estimate, estimate

__all__ = ["QUANTITIES", "WAITS", "Row", "rows_of"]

Summary = Mapping[str, Any]
_MIB: Final = 2**20

WAITS: Final = {
    "demand": "demand copies",
    "late": "late prefetches",
    "cpu": "CPU results",
    "readback": "router readback",
    "disk": "disk reads",
    "host": "the host",
    "other": "other",
}
"""Causes for which the GPU waits, by the name in `summary.json`."""


def _share(part: str, whole: str) -> Callable[[Summary], float]:
    return lambda summary: 100 * _ratio(summary[part], summary[whole])


def _ratio(part: float | None, whole: float | None) -> float:
    return part / whole if whole and part is not None else math.nan


def _waiting(cause: str) -> Callable[[Summary], float]:
    def share(summary: Summary) -> float:
        return 100 * _ratio(summary[f"stall_{cause}_s"], summary["busy_s"] + summary["stall_s"])

    return share


QUANTITIES: Final[Mapping[str, Callable[[Summary], float]]] = {
    "tokens_per_s": lambda summary: float(summary["output_tokens_per_s"]),
    "ttft_ms": lambda summary: float(summary["ttft_mean_ms"]),
    "tpot_ms": lambda summary: float(summary["tpot_mean_ms"]),
    "mib_per_token": lambda summary: _ratio(summary["h2d_bytes"] / _MIB, summary["output_tokens"]),
    "prefetched_pct": _share("prefetch_bytes", "h2d_bytes"),
    "wasted_pct": _share("prefetch_wasted_bytes", "h2d_bytes"),
    "on_time_pct": lambda summary: 100 * _defined(summary["on_time_hit_rate"]),
    "late_pct": lambda summary: 100 * _defined(summary["late_hit_rate"]),
    "cpu_pct": _share("elsewhere", "accesses"),
    **{f"wait_{cause}_pct": _waiting(cause) for cause in WAITS},
}
"""What a row holds of each seed. Waits are shares of the time in steps."""


_FACTS: Final = (
    "placement_policy", "cache_policy", "cache_scope", "prefetch_policy", "engine", "verdict",
    "verdict_reason", "knows_the_future",
)  # fmt: skip


def _defined(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Row:
    """One system in one cell under one engine.

    `status` is `ranked`, `hindsight`, `other model`, `refused` or `failed`. A row that was refused
    or failed has no values. `tokens` are tokens/s by seed.
    """

    cell: Cell
    system: str
    engine: str
    status: str
    changed: str = ""
    refusal: str = ""
    tokens: tuple[float, ...] = ()
    values: Mapping[str, Estimate] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    fits: bool = False

    @property
    def speed(self) -> float:
        """Mean tokens/s; NaN without a run."""
        return self.values["tokens_per_s"].mean if self.values else math.nan

    def mean(self, quantity: str) -> float:
        """Return the mean of a quantity; NaN without a run."""
        return self.values[quantity].mean if self.values else math.nan

    def longest_wait(self) -> tuple[str, float]:
        """Return the cause for which the GPU waits longest, in words, and its share in per cent."""
        cause = max(WAITS, key=lambda each: self.mean(f"wait_{each}_pct"))
        return WAITS[cause], self.mean(f"wait_{cause}_pct")


def rows_of(entries: Sequence[Entry], runs: Sequence[Run]) -> list[Row]:
    """Return a row for each entry that cannot run, and one for each run."""
    refused = [
        Row(e.cell, e.system, COMMON, "refused", e.changed, e.refusal)
        for e in entries
        if e.data is None
    ]
    return [*refused, *map(_row, runs)]


def _row(run: Run) -> Row:
    entry = run.entry
    if run.failure:
        refusal = run.failure
        return Row(entry.cell, entry.system, run.engine, "failed", entry.changed, refusal)
    first = run.summaries[0]
    return Row(
        entry.cell,
        entry.system,
        run.engine,
        _status(entry, first),
        entry.changed,
        entry.refusal,
        tuple(QUANTITIES["tokens_per_s"](each) for each in run.summaries),
        {name: estimate(map(of, run.summaries)) for name, of in QUANTITIES.items()},
        {key: str(first.get(key) or "") for key in _FACTS},
        entry.fits,
    )


def _status(entry: Entry, summary: Summary) -> str:
    if entry.other_model:
        return "other model"
    return "hindsight" if summary["knows_the_future"] else "ranked"
