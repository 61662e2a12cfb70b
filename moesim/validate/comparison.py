"""Simulated against real, row by row: steps, layer events, requests and the whole.

Real times are medians over repeated runs, beside how far these runs lie apart: their *spread* is
(p90 - p10) ÷ median. An error is (simulated - real) ÷ real, so that a positive one is a simulator
that is too slow; it is reported with its sign (bias) and without. Where the executor itself
spreads by more than a tenth, no prediction can be judged, and the workload is *untestable*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.validate.decisions import differences
from moesim.validate.observation import Columns, Observation

__all__ = ["MOST_SPREAD_PCT", "Comparison", "compare", "spread_pct"]

MOST_SPREAD_PCT: Final = 10.0
"""Above this spread of the executor a configuration is untestable."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows and what they come to.

    `tables` holds `steps`, `events`, `requests` and `runs` as columns: what the row consisted of,
    `real_ns` (median over runs), `real_p10_ns`, `real_p90_ns`, `simulated_ns`, `error_ns` and
    `error_pct` (both signed), `absolute_error_pct`. `differences` says where decisions differ.
    """

    summary: dict[str, Any]
    tables: dict[str, Columns]
    differences: list[str]

    def __repr__(self) -> str:
        return f"<Comparison with real runs: {len(self.differences)} differences>"


def compare(real: Sequence[Observation], simulated: Observation) -> Comparison:
    """Compare repeated real runs with one simulation of the same workload, batched alike.

    Where decisions differ, rows are compared as far as both machines have them.
    """
    found: dict[str, None] = {}
    for run in real:
        found.update(dict.fromkeys(differences(run.decisions, simulated.decisions)))
    tables = {
        "steps": _steps(real, simulated),
        "events": _events(real, simulated),
        "requests": _requests(real, simulated),
        "runs": _runs(real, simulated),
    }
    return Comparison(_summary(real, simulated, tables, not found), tables, list(found))


def spread_pct(values: Sequence[float]) -> float:
    """(p90 - p10) ÷ median of repeated measurements, in percent."""
    low, middle, high = np.percentile(np.asarray(values, float), (10, 50, 90))
    return float(100 * (high - low) / middle) if middle else 0.0


def _steps(real: Sequence[Observation], simulated: Observation) -> Columns:
    made = _timed([run.steps for run in real], simulated.steps)
    late = [run.steps["late_hits"] for run in real]
    count = len(made["real_ns"])
    made["late_hits"] = np.median([column[:count] for column in late], axis=0)
    made["simulated_late_hits"] = simulated.steps["late_hits"][:count]
    return made


def _events(real: Sequence[Observation], simulated: Observation) -> Columns:
    return _timed([run.events for run in real], simulated.events)


def _requests(real: Sequence[Observation], simulated: Observation) -> Columns:
    """Two durations a request: to its first token, and to its last (end to end)."""
    parts = []
    for name, moment in (("ttft", "first_token_ns"), ("e2e", "finish_ns")):
        made = _timed([_until(run, moment) for run in real], _until(simulated, moment))
        made["duration"] = np.full(len(made["real_ns"]), name)
        parts.append({"duration": made.pop("duration"), **made})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _until(run: Observation, moment: str) -> Columns:
    """The requests that got so far, from arrival to `moment`."""
    served = run.requests[moment] >= 0
    names = ("request", "prompt_tokens", "output_tokens")
    columns = {name: run.requests[name][served] for name in names}
    columns["start_ns"] = run.requests["arrival_ns"][served]
    columns["finish_ns"] = run.requests[moment][served]
    return columns


def _timed(real: Sequence[Columns], simulated: Columns) -> Columns:
    """Rows with their durations on both machines; everything else is as simulated."""
    count = min(len(columns["start_ns"]) for columns in (*real, simulated))
    durations = np.array(
        [(run["finish_ns"] - run["start_ns"])[:count] for run in real], np.float64
    ).reshape(len(real), count)
    facts = {
        name: column[:count]
        for name, column in simulated.items()
        if name not in ("start_ns", "finish_ns")
    }
    predicted = (simulated["finish_ns"] - simulated["start_ns"])[:count].astype(np.float64)
    return {**facts, **_errors(durations, predicted)}


def _errors(durations_RN: Floats, simulated: Floats) -> Columns:
    """R runs of N durations, and what was predicted for them."""
    low, median, high = np.percentile(durations_RN, (10, 50, 90), axis=0)
    error = simulated - median
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = np.where(median > 0, 100 * error / median, np.nan)
    return {
        "real_ns": median,
        "real_p10_ns": low,
        "real_p90_ns": high,
        "simulated_ns": simulated,
        "error_ns": error,
        "error_pct": percent,
        "absolute_error_pct": np.abs(percent),
    }


def _runs(real: Sequence[Observation], simulated: Observation) -> Columns:
    total = np.array([run.makespan_ns for run in real], np.float64)
    return {
        "run": np.arange(len(real)),
        "real_ns": total,
        "simulated_ns": np.full(len(real), simulated.makespan_ns, np.float64),
        "busy_share": np.array([run.busy_share for run in real]),
        "stall_share": np.array([run.stall_share for run in real]),
        "late_hits": np.array([int(run.steps["late_hits"].sum()) for run in real]),
    }


def _summary(
    real: Sequence[Observation], simulated: Observation, tables: dict[str, Columns], equal: bool
) -> dict[str, Any]:
    totals = [float(run.makespan_ns) for run in real]
    median = float(np.median(totals))
    bias = 100 * (simulated.makespan_ns - median) / median
    spread = spread_pct(totals)
    durations = tables["requests"]["duration"]
    steps = tables["steps"]
    return {
        "decisions_equal": equal,
        "runs": len(real),
        **_errors_of("step_time", steps),
        **_errors_of("event_time", tables["events"]),
        **_errors_of("ttft", _rows(tables["requests"], durations == "ttft")),
        **_errors_of("e2e", _rows(tables["requests"], durations == "e2e")),
        "total_time_error_pct": abs(bias),
        "total_time_bias_pct": bias,
        "real_total_s": median / 1e9,
        "simulated_total_s": simulated.makespan_ns / 1e9,
        "executor_spread_pct": spread,
        "executor_step_spread_median_pct": _median(
            100 * (steps["real_p90_ns"] - steps["real_p10_ns"]) / steps["real_ns"]
        ),
        "testable": spread <= MOST_SPREAD_PCT,
        "compute_share": float(np.median([run.busy_share for run in real])),
        "stall_share": float(np.median([run.stall_share for run in real])),
        "simulated_stall_share": simulated.stall_share,
        "misses": int(simulated.steps["misses"].sum()),
        "late_hits": float(np.median(tables["runs"]["late_hits"])),
        "simulated_late_hits": int(simulated.steps["late_hits"].sum()),
    }


def _errors_of(name: str, table: Columns) -> dict[str, int | float | None]:
    absolute = table["absolute_error_pct"]
    real, simulated = (_median(table[key] / 1e6) for key in ("real_ns", "simulated_ns"))
    return {
        f"{name}_rows": len(absolute),
        f"{name}_real_median_ms": real,
        f"{name}_simulated_median_ms": simulated,
        f"{name}_error_median_pct": _median(absolute),
        f"{name}_error_p90_pct": _quantile(absolute, 90),
        f"{name}_bias_median_pct": _median(table["error_pct"]),
    }


def _rows(table: Columns, chosen: npt.NDArray[np.bool_]) -> Columns:
    return {name: column[chosen] for name, column in table.items()}


def _median(values: Floats) -> float | None:
    return _quantile(values, 50)


def _quantile(values: Floats, percent: float) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, percent)) if len(known) else None
