"""Charts of recovery along training: losses, supports, and the gates' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, grid, save_charts
from moesim.report.panels import shared_legend
from moesim.report.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]
Results = Mapping[tuple[Any, str], Sequence[Run]]

COLORS: Final = {
    "dselect_k": ("#0072B2", "o"),
    "top_k": ("#D55E00", "s"),
    "noisy_top_k": ("#E69F00", "^"),
    "softmax": ("#8C8C8C", "v"),
    "gumbel": ("#CC79A7", "D"),
}
MEASURES: Final = {
    "hard_loss": "loss, hardened (of target variance)",
    "hard_exact": "tasks exactly recovered, hardened (%)",
    "non_zeros": "experts a task, as trained",
}


def draw(folder: Path, results: Results) -> None:
    """Draw both charts into a folder; its earlier content is replaced."""
    save_charts(folder, [lambda: trajectories(results), lambda: gate_weights(results)])


def trajectories(results: Results) -> Chart:
    """Draw means over seeds along training, a row of panels a cell."""
    cells = list(dict.fromkeys(cell for cell, _ in results))
    seeds = len(next(iter(results.values())))
    chart = grid(
        "recovery_trajectories",
        "Recovery along training",
        "Synthetic tasks that mix k of n frozen experts (rows of panels: experts x k x tasks). "
        "Left: squared error on new inputs over the target's variance, with the k largest weights "
        "alone. Middle: tasks whose k experts are exactly the true ones. Right: weights that are "
        f"not zero, before the cut. Mean over n = {seeds} seeds, bands 95 %; measured.",
        ("cell", "gate", "step", "measure", "mean", "half"),
        shape=(len(cells), 3),
        height_in=1.5 * len(cells) + 0.4,
        sharex=True,
    )
    for row, cell in zip(chart.axes, cells, strict=True):
        for axes, key in zip(row, MEASURES, strict=True):
            for (own, gate), runs in results.items():
                if own == cell:
                    _mean_line(chart, axes, gate, str(cell), key, runs)
        row[0].set_ylabel(f"{cell}", fontsize=8)
        row[0].set_yscale("log")
        row[1].set_ylim(-4, 104)
        row[2].set_ylim(bottom=0)
    for axes, label in zip(chart.axes[0], MEASURES.values(), strict=True):
        axes.set_title(label, fontsize=7)
    for axes in chart.axes[-1]:
        axes.set_xlabel("step")
    shared_legend(chart, wide=True)
    return chart


def _mean_line(
    chart: Chart, axes: Axes, gate: str, cell: str, key: str, runs: Sequence[Run]
) -> None:
    steps = [snapshot["step"] for snapshot in runs[0]["snapshots"]]
    scale = 100 if key == "hard_exact" else 1
    spread = [
        estimate(scale * run["snapshots"][number][key] for run in runs)
        for number in range(len(steps))
    ]
    color, marker = COLORS[gate]
    means = [value.mean for value in spread]
    axes.plot(
        steps, means, color=color, marker=marker, markersize=2.5, linewidth=1, markevery=4,
        label=gate,
    )  # fmt: skip
    low = [max(value.low, 1e-6) for value in spread]  # the axis is logarithmic
    axes.fill_between(steps, low, [value.high for value in spread], color=color, alpha=0.15, lw=0)
    for step, value in zip(steps, spread, strict=True):
        chart.record(cell, gate, step, key, value.mean, value.half)


def gate_weights(results: Results) -> Chart:
    """Draw the weights of one task of the first seed, a line an expert."""
    gates = [
        gate for gate in ("dselect_k", "top_k", "noisy_top_k") if any(g == gate for _, g in results)
    ]
    cells = list(dict.fromkeys(cell for cell, _ in results))
    chart = grid(
        "gate_trajectories",
        "Weights of a gate along training",
        "Weight of every expert in the first task of seed 0, as trained, at 21 looks along "
        "training (rows of panels: experts x k x tasks); one task of one seed, so no more than an "
        "example. Measured.",
        ("cell", "gate", "step", "expert", "weight"),
        shape=(len(cells), len(gates)),
        height_in=1.4 * len(cells) + 0.3,
        sharex=True,
        sharey=True,
    )
    for row, cell in zip(chart.axes, cells, strict=True):
        for axes, gate in zip(row, gates, strict=True):
            snapshots = results[cell, gate][0]["snapshots"]
            steps = [snapshot["step"] for snapshot in snapshots]
            for expert, weights in enumerate(
                zip(*(snapshot["first_task"] for snapshot in snapshots), strict=True)
            ):
                axes.plot(steps, weights, linewidth=0.9)
                for step, weight in zip(steps, weights, strict=True):
                    chart.record(str(cell), gate, step, expert, weight)
        row[0].set_ylabel(f"{cell}: weight", fontsize=7)
        row[0].set_ylim(-0.03, 1.03)
    for axes, gate in zip(chart.axes[0], gates, strict=True):
        axes.set_title(gate)
    for axes in chart.axes[-1]:
        axes.set_xlabel("step")
    return chart
