"""Tables of the studies of multi-task mixtures.

Intervals are 95 % over seeds. Operations are those of the experts' forward passes in training,
counted where they ran. A backward pass takes about twice as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from recovery import reading, spread, written

from moesim.report.statistics import difference
from moesim.report.tabular import Table
from moesim.training.multitask import Task

Run = dict[str, Any]
Results = Mapping[str, Sequence[Run]]  # of each gate, seed by seed


def tables(tasks: Sequence[Task], epochs: int, results: Results, trials: Results) -> list[Table]:
    """Return all tables of a study, from the runs of its seeds and of its tuning."""
    return [
        by_gate(tasks, results),
        by_difference(tasks, results),
        by_work(results),
        by_epoch(epochs, results),
        by_rate(trials),
        by_setting(results),
    ]


def by_gate(tasks: Sequence[Task], results: Results) -> Table:
    """Return the tasks' losses and accuracies on test rows."""
    headers = []
    for task in tasks:
        headers += [f"{task.name} loss", "as trained"]
        headers += [f"{task.name} accuracy"] if task.right else []
    headers += ["weighted sum"]
    table = Table("On test rows; hardened, if not marked as trained", ["gate", *headers])
    for gate, runs in results.items():
        cells = []
        for task in tasks:
            cells += [spread(_scores(runs, task, "loss", how), 3) for how in _HOW]
            cells += [spread(_scores(runs, task, "accuracy"), 3)] if task.right else []
        table.add(gate, *cells, spread(_sums(runs, tasks), 3))
    return table


def by_work(results: Results) -> Table:
    """Return the experts' work."""
    table = Table(
        "Work of the experts",
        [
            "gate",
            "active in training",
            "TFLOP in training",
            "non-zeros a task",
            "run a row, served",
        ],
    )
    for gate, runs in results.items():
        shares = [_mean(epoch["share"] for epoch in run["history"]) for run in runs]
        work = [
            sum(epoch["pairs"] for epoch in run["history"]) * run["expert_flops"] / 1e12
            for run in runs
        ]
        table.add(
            gate,
            spread(shares, 2),
            spread(work, 3),
            spread([run["non_zeros"] for run in runs], 2),
            spread([run["served_experts"] for run in runs], 2),
        )
    return table


def by_epoch(epochs: int, results: Results) -> Table:
    """Return the share of (row, expert) pairs that were run, along training."""
    shown = sorted({round(part * (epochs - 1)) for part in (0, 0.25, 0.5, 0.75, 1)})
    table = Table(
        "Experts active along training", ["gate", *(f"epoch {epoch + 1}" for epoch in shown)]
    )
    for gate, runs in results.items():
        shares = [[run["history"][epoch]["share"] for run in runs] for epoch in shown]
        table.add(gate, *(spread(values, 2) for values in shares))
    return table


def by_difference(tasks: Sequence[Task], results: Results) -> Table:
    """Return DSelect-k less every other gate, seed by seed."""
    columns = {
        f"{task.name} {key}": (partial(_scores, task=task, key=key), good)
        for task in tasks
        for key, good in (("loss", -1), ("accuracy", 1))
        if key == "loss" or task.right
    }
    columns["weighted sum of losses"] = partial(_sums, tasks=tasks), -1
    headers = [header for name in columns for header in (name, "reading")]
    table = Table("DSelect-k less the other gate (test, hardened)", ["other gate", *headers])
    ours = results.get("dselect_k")
    for gate, runs in results.items():
        if ours is None or gate == "dselect_k":
            continue
        cells = []
        for scores, good in columns.values():
            less = difference(scores(ours), scores(runs), relative=False)
            cells += [written(less, 3, sign=True), reading(less, good)]
        table.add(gate, *cells)
    return table


def by_rate(trials: Results) -> Table:
    """Return the least validation loss at each learning rate, on the problem of tuning."""
    rates = sorted({run["setting"]["lr"] for runs in trials.values() for run in runs})
    table = Table(
        "Tuning: least validation loss at each learning rate (hardened)",
        ["gate", *(f"{rate:.3g}" for rate in rates), "chosen rate"],
    )
    for gate, runs in trials.items():
        losses = [
            min(run["validation"] for run in runs if run["setting"]["lr"] == rate) for rate in rates
        ]
        place = f"{losses.index(min(losses)) + 1} of {len(rates)}"
        table.add(gate, *(f"{loss:.3f}" for loss in losses), place)
    return table


def by_control(ours: Sequence[Run], control: Sequence[Run]) -> Table:
    """Return the validation losses of DSelect-k and of Top-k with its rates, seed by seed."""
    losses = [[run["validation"] for run in runs] for runs in (ours, control)]
    less = difference(*losses, relative=False)
    table = Table(
        "Static gates at equal rates: weighted sum of validation losses",
        ["dselect_k", "top_k, rates of dselect_k", "difference", "reading"],
    )
    cells = [spread(values, 3) for values in losses]
    table.add(*cells, written(less, 3, sign=True), reading(less, -1))
    return table


def by_setting(results: Results) -> Table:
    """Return the settings that tuning chose."""
    table = Table("Chosen settings", ["gate", "setting"])
    for gate, runs in results.items():
        setting = {k: f"{v:.3g}" if k == "lr" else str(v) for k, v in runs[0]["setting"].items()}
        table.add(gate, ", ".join(f"{key} {value}" for key, value in setting.items()))
    return table


_HOW = ("hardened", "as trained")


def _scores(runs: Sequence[Run], task: Task, key: str, how: str = "hardened") -> list[float]:
    return [run["scores"]["test"][how][task.name][key] for run in runs]


def _sums(runs: Sequence[Run], tasks: Sequence[Task]) -> list[float]:
    """Return what training minimises: the weighted sum of the tasks' losses."""
    losses = [[task.weight * loss for loss in _scores(runs, task, "loss")] for task in tasks]
    return [sum(of_seed) for of_seed in zip(*losses, strict=True)]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
