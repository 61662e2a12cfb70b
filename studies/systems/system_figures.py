"""Figures of the comparison: tokens/s of each system, and how far it stays behind the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from system_cells import Cell, Machine, Model
from system_findings import best_of, by_cell, offloading, standing
from system_rows import Row

from moesim.report.chart import Chart, drawn, grid, save_charts
from moesim.report.panels import shared_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "order_of"]

LOOKS: Final = (("#0072B2", "o"), ("#E69F00", "s"), ("#882255", "^"))
"""Colour and marker of each batch, in order."""
_MARKS: Final = {"hindsight": "knows the future", "other model": "needs another model"}


def draw(folder: Path, rows: Sequence[Row], seeds: int) -> None:
    """Draw both figures into a folder; the folder's earlier content is replaced."""
    save_charts(folder, [lambda: tokens(rows, seeds), lambda: shares(rows)])


def order_of(rows: Sequence[Row]) -> list[str]:
    """Return all systems: by their median share of the best, then those that are never ranked."""
    first = [each.system for each in standing(rows)]
    return [*first, *sorted({row.system for row in rows} - set(first))]


def _about(rows: Sequence[Row]) -> str:
    models = dict.fromkeys(row.cell.model for row in rows)
    routing = "; ".join(f"{model.label}: {model.routing}" for model in models)
    return f"Routing: {routing}. Costs are assumed; all times are simulated"


def tokens(rows: Sequence[Row], seeds: int) -> Chart:
    """Draw tokens/s of each system on a log axis: a panel for each model and machine."""
    cells = by_cell(rows)
    models = list(dict.fromkeys(cell.model for cell in cells))
    machines = list(dict.fromkeys(cell.machine for cell in cells))
    systems = order_of(rows)
    bars = f"bars: 95 % over seeds (n = {seeds})" if seeds > 1 else "one seed, so no intervals"
    chart = grid(
        "tokens",
        "Tokens a second of offloading systems",
        "Output tokens/s of each preset under the ideal engine, by batch, in steady state with as "
        f"many closed clients as the batch; {bars}. Hollow: knows the "
        "future, or needs a model whose router reveals its choices early; neither is ranked. "
        f"~: runs with a predictor that the trace allows, not with the preset's. {_about(rows)}.",
        ("model", "machine", "batch", "system", "status", "tokens_per_s", "half"),
        shape=(len(models), len(machines)),
        height_in=(0.135 * len(systems) + 0.55) * len(models) + 0.4,
        sharey=True,
        sharex="row",
    )
    for axes_row, model in zip(chart.axes, models, strict=True):
        for axes, machine in zip(axes_row, machines, strict=True):
            own = {
                cell: each for cell, each in cells.items() if cell.place == (model.key, machine.key)
            }
            _panel(chart, axes, own, systems)
            _entitle(axes, model, machine, any(r.fits for each in own.values() for r in each))
    for axes in chart.axes[-1]:
        axes.set_xlabel("output tokens/s")
    shared_legend(chart, wide=True)
    return chart


def _entitle(axes: Axes, model: Model, machine: Machine, fits: bool) -> None:
    text = f"{model.label}, {model.bits(machine)}, {machine.label}"
    axes.set_title(drawn(text), fontsize=7)
    if fits:
        axes.text(0.03, 0.03, "everything fits", transform=axes.transAxes, fontsize=6.5,
                  color="#666666", style="italic")  # fmt: skip


def _panel(chart: Chart, axes: Axes, cells: dict[Cell, list[Row]], systems: Sequence[str]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    places = {system: place for place, system in enumerate(systems)}
    for number, (cell, rows) in enumerate(sorted(cells.items(), key=lambda item: item[0].batch)):
        color, marker = LOOKS[number % len(LOOKS)]
        label: str | None = f"batch {cell.batch}"
        for row in rows:
            place = places[row.system] + 0.22 * (number - (len(cells) - 1) / 2)
            estimate = row.values.get("tokens_per_s")
            half = math.nan if estimate is None or estimate.half is None else estimate.half
            chart.record(*cell.place, cell.batch, row.system, row.status, row.speed, half)
            if estimate is None:
                continue
            axes.errorbar(
                row.speed, place, xerr=_bar(row.speed, half), color=color,
                marker=marker, markersize=3.2, linewidth=0.8, linestyle="none",
                markerfacecolor=color if row.status == "ranked" else "white", label=label,
            )  # fmt: skip
            label = None
    _notes(axes, cells, places)
    axes.set_yticks(range(len(systems)), [drawn(system) for system in systems], fontsize=6.5)
    axes.set_ylim(len(systems) - 0.5, -0.5)


def _bar(value: float, half: float) -> list[list[float]] | None:
    """Return the lengths of an interval's bars; the lower end stays positive, for a log axis."""
    return None if math.isnan(half) else [[min(half, 0.9 * value)], [half]]


def _notes(axes: Axes, cells: dict[Cell, list[Row]], places: dict[str, int]) -> None:
    """Mark the systems of a panel that cannot run, and those with another predictor."""
    rows = [row for each in cells.values() for row in each]
    edge = axes.get_yaxis_transform()  # across in shares of the panel, down in systems
    for system, place in places.items():
        own = [row for row in rows if row.system == system]
        if own and all(not row.values for row in own):
            axes.text(0.5, place, "not possible", transform=edge, fontsize=6, ha="center",
                      va="center", color="#666666", style="italic")  # fmt: skip
        elif any(row.refusal and row.status == "ranked" for row in own):
            axes.text(0.02, place, "~", transform=edge, fontsize=8, ha="left", va="center")


def shares(rows: Sequence[Row]) -> Chart:
    """Draw each system's share of the best system's tokens/s, in all cells that offload."""
    cells = offloading(rows)
    systems = order_of(rows)
    chart = grid(
        "shares",
        "How far each system stays behind the best",
        "Tokens/s as a percentage of the best ranked system of the cell (column), under the ideal "
        f"engine. In italics: knows the future or needs another model, not ranked. {_about(rows)}. "
        "Cells in which everything fits in GPU memory are left out.",
        ("model", "machine", "batch", "system", "status", "share_pct"),
        height_in=0.2 * len(systems) + 1.2,
    )
    axes = chart.axes[0][0]
    grid_of = [[math.nan] * len(cells) for _ in systems]
    for column, (cell, own) in enumerate(cells.items()):
        best = best_of(own)
        for row in own:
            share = 100 * row.speed / best.speed if best else math.nan
            place = systems.index(row.system)
            grid_of[place][column] = share
            chart.record(*cell.place, cell.batch, row.system, row.status, share)
            text = "–" if math.isnan(share) else f"{share:.0f}"
            axes.text(column, place, text, ha="center", va="center", fontsize=6,
                      color="white" if share < 45 else "black",
                      style="normal" if row.status == "ranked" else "italic")  # fmt: skip
    image = axes.imshow(grid_of, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    chart.figure.colorbar(image, ax=axes, label="% of the best ranked tokens/s", pad=0.01)
    axes.set_yticks(range(len(systems)), [drawn(system) for system in systems])
    axes.set_xticks(range(len(cells)), [str(cell.batch) for cell in cells])
    axes.set_xlabel("batch")
    axes.grid(False)
    _groups(axes, list(cells))
    return chart


def _groups(axes: Axes, cells: Sequence[Cell]) -> None:
    """Write model and machine above their columns, with a line between groups."""
    places = list(dict.fromkeys(cell.place for cell in cells))
    for place in places:
        columns = [number for number, cell in enumerate(cells) if cell.place == place]
        cell = cells[columns[0]]
        text = f"{cell.model.label}\n{cell.machine.label}, {cell.model.bits(cell.machine)}"
        middle = (columns[0] + columns[-1]) / 2
        axes.text(middle, -0.7, drawn(text), ha="center", va="bottom", fontsize=5.8)
        if columns[0]:
            axes.axvline(columns[0] - 0.5, color="white", linewidth=2)
