"""The chart of unique experts over N / C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from closed_serving import clients_at

from moesim.report.chart import Chart, grid, save_charts
from moesim.report.panels import shared_legend
from moesim.report.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[str, Sequence[Sequence[float]]]

LOOKS: Final = {
    "decode_first": ("#0072B2", "o", 5.08),
    "prefill_first": ("#D55E00", "s", 5.21),
    "expert_aware": ("#009E73", "^", 3.51),
}
"""Colour, marker and the paper's figure of each policy."""
COLUMNS: Final = 3


def draw(folder: Path, found: Mapping[str, tuple[int, Curve]], ratios: Sequence[float]) -> None:
    """Draw the chart into a folder; the folder's earlier content is replaced.

    `found`: of each family the cap C, and unique experts by policy, ratio and seed.
    """
    save_charts(folder, [lambda: unique_over_clients(found, ratios)])


def unique_over_clients(found: Mapping[str, tuple[int, Curve]], ratios: Sequence[float]) -> Chart:
    """Draw a panel for each family: mean and interval of unique experts over N / C."""
    rows = -(-len(found) // COLUMNS)
    seeds = len(next(iter(next(iter(found.values()))[1].values()))[0])
    chart = grid(
        "unique_experts",
        "Unique experts per batch over N / C",
        "Mean number of distinct experts (of 7) that a step wants, over closed clients per batch "
        "cap, N / C; C (tokens a step) is fitted to the two baselines at N = 2 C. Dashed lines: "
        "the paper's figure of the policy in the same colour. Whole: prompts are not cut. Mean "
        f"over n = {seeds} seeds, bands 95 %; simulated.",
        ("family", "cap", "policy", "clients", "mean", "half"),
        shape=(rows, COLUMNS),
        height_in=1.35 * rows + 0.5,
        sharex=True,
        sharey=True,
    )
    panels = [axes for row in chart.axes for axes in row]
    for axes, (name, (cap, curve)) in zip(panels, found.items(), strict=False):
        axes.set_title(f"{name}; C = {cap}", fontsize=7)
        for policy, by_ratio in curve.items():
            _line(chart, axes, name, cap, policy, ratios, by_ratio)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(found) - COLUMNS) : len(found)]:
        axes.set_xlabel("clients N / batch cap C", fontsize=7)
        axes.tick_params(labelbottom=True)
    for row in chart.axes:
        row[0].set_ylabel("unique experts", fontsize=7)
    shared_legend(chart, wide=True)
    return chart


def _line(
    chart: Chart,
    axes: Axes,
    family: str,
    cap: int,
    policy: str,
    ratios: Sequence[float],
    by_ratio: Sequence[Sequence[float]],
) -> None:
    color, marker, paper = LOOKS[policy]
    clients = [clients_at(ratio, cap) for ratio in ratios]
    spread = [estimate(seeds) for seeds in by_ratio]
    places = [count / cap for count in clients]
    axes.axhline(paper, color=color, linewidth=0.8, linestyle=(0, (4, 2)))
    axes.plot(
        places, [value.mean for value in spread], color=color, marker=marker, markersize=2.5,
        linewidth=1, label=policy,
    )  # fmt: skip
    low, high = [value.low for value in spread], [value.high for value in spread]
    axes.fill_between(places, low, high, color=color, alpha=0.15, lw=0)
    for count, value in zip(clients, spread, strict=True):
        chart.record(family, cap, policy, count, value.mean, value.half)
