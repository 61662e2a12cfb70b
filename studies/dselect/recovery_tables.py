"""Tables of recovery with frozen experts, and how studies write differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table

Run = dict[str, Any]
Results = Mapping[tuple[Any, str], list[Run]]  # by cell and gate
COLUMNS: Mapping[str, tuple[str, int]] = {  # a snapshot's key: its header, and digits
    "hard_loss": ("loss hardened", 3),
    "loss": ("as trained", 3),
    "hard_exact": ("exact support hardened", 2),
    "exact": ("as trained", 2),
    "non_zeros": ("non-zeros", 2),
    "most_non_zeros": ("most", 1),
}


def by_gate(results: Results) -> Table:
    """Return the results of every gate at the end of training."""
    headers = [header for header, _ in COLUMNS.values()]
    table = Table(
        "At the end of training", ["n x k x tasks", "gate", *headers, "active in training"]
    )
    for (cell, gate), runs in results.items():
        ends = [spread(_ends(runs, key), digits) for key, (_, digits) in COLUMNS.items()]
        active = [_mean(s["active_share"] for s in run["snapshots"]) for run in runs]
        table.add(str(cell), gate, *ends, spread(active, 2))
    return table


def by_difference(results: Results) -> Table:
    """Return DSelect-k less every other gate, seed by seed."""
    table = Table(
        "DSelect-k less the other gate (hardened)",
        ["n x k x tasks", "other gate", "loss", "reading", "exact support", "reading"],
    )
    for (cell, gate), runs in results.items():
        ours = results.get((cell, "dselect_k"))
        if ours is None or gate == "dselect_k":
            continue
        cells = []
        for key, digits, good in (("hard_loss", 3, -1), ("hard_exact", 2, 1)):
            less = difference(_ends(ours, key), _ends(runs, key), relative=False)
            cells += [written(less, digits, sign=True), reading(less, good)]
        table.add(str(cell), gate, *cells)
    return table


def by_step(results: Results) -> Table:
    """Return exact support hardened and non-zeros as trained, along training."""
    parts = (0, 0.1, 0.25, 0.5, 1)
    table = Table(
        "Along training: exact support hardened / non-zeros as trained",
        ["n x k x tasks", "gate", *(f"{part:.0%} of steps" for part in parts)],
    )
    for (cell, gate), runs in results.items():
        last = len(runs[0]["snapshots"]) - 1
        cells = []
        for part in parts:
            at = [run["snapshots"][round(part * last)] for run in runs]
            exact, non_zeros = (_mean(s[key] for s in at) for key in ("hard_exact", "non_zeros"))
            cells.append(f"{exact:.2f} / {non_zeros:.1f}")
        table.add(str(cell), gate, *cells)
    return table


def by_setting(results: Results) -> Table:
    """Return the settings that tuning chose."""
    table = Table("Chosen settings", ["n x k x tasks", "gate", "setting"])
    for (cell, gate), runs in results.items():
        setting = {k: f"{v:.3g}" if k == "lr" else str(v) for k, v in runs[0]["setting"].items()}
        table.add(str(cell), gate, ", ".join(f"{key} {value}" for key, value in setting.items()))
    return table


def reading(less: Estimate, good: int) -> str:
    """Return ahead or behind if the interval excludes zero; `good` is the better sign."""
    if less.half is None:
        return "one seed"
    if less.low <= 0 <= less.high:
        return "not seen"
    return "ahead" if less.mean * good > 0 else "behind"


def spread(values: Sequence[float], digits: int) -> str:
    """Return a mean and half its 95 % interval over seeds, as text."""
    return written(estimate(values), digits)


def written(value: Estimate, digits: int, *, sign: bool = False) -> str:
    """Return a mean and half its interval, if it has one, as text."""
    text = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {value.half:.{digits}f}"


def _ends(runs: Sequence[Run], key: str) -> list[float]:
    return [run["snapshots"][-1][key] for run in runs]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


TABLES: Sequence[Callable[[Results], Table]] = (by_gate, by_difference, by_step, by_setting)
