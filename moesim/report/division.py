"""The report of `moesim split`: a table and a figure of divisions of GPU memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from moesim.report.chart import Chart, drawn, grid, save_charts, write_csv
from moesim.report.metrics import (
    DECODE,
    E2E,
    HITS,
    LATE_HITS,
    MISSES,
    THROUGHPUT,
    TTFT,
    Metric,
    number,
    run_caption,
    run_note,
)
from moesim.report.runs import Run
from moesim.report.style import ORANGE
from moesim.report.tabular import Cell, Table

__all__ = ["Divided", "division_records", "division_table", "write_division"]

PREEMPTIONS: Final = Metric("preemptions", "preemptions", "count")
_METRICS: Final = (THROUGHPUT, DECODE, TTFT, E2E, HITS, LATE_HITS, MISSES, PREEMPTIONS)


@dataclass(frozen=True, slots=True)
class Divided:
    """One division: the KV blocks' share of the free memory, their tokens, slots, and its run.

    `own` says that it is the division that the scenario has.
    """

    share: float
    kv_tokens: int
    slots: int
    run: Run
    own: bool = False


def division_table(rows: Sequence[Divided], best: Divided, goal: str) -> Table:
    """Return a table with a row for each division; `goal` is the key whose best is marked."""
    metrics = _in_readable_units(rows)
    table = Table(
        "",
        ["KV share", "KV tokens", "slots", *(metric.title for metric in metrics)],
    )
    for row in rows:
        cells = [
            Cell(number(metric.of(row.run)), "best" if row is best and metric.key == goal else "")
            for metric in metrics
        ]
        share = f"{row.share:.1%}{' (as written)' if row.own else ''}"
        table.add(share, str(row.kv_tokens), str(row.slots), *cells)
    return table


def division_records(rows: Sequence[Divided]) -> list[dict[str, Any]]:
    """Return the divisions as plain data, with the units of `summary.json`."""
    return [
        {
            "kv_share": row.share,
            "kv_tokens": row.kv_tokens,
            "slots": row.slots,
            "as_written": row.own,
            **{metric.key: row.run.summary.get(metric.key) for metric in _METRICS},
            "on_time_hit_rate": row.run.summary.get("on_time_hit_rate"),
            "run": str(row.run.path),
        }
        for row in rows
    ]


def write_division(
    folder: Path, rows: Sequence[Divided], best: Divided, goal: str, *, name: str, plots: bool
) -> None:
    """Write `split.csv`, and with `plots` the figure in `plots/`, into a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    columns = ("kv_share", "kv_tokens", "slots", "as_written")
    metrics = [metric.key for metric in _METRICS]
    write_csv(
        folder / "split.csv",
        (*columns, *metrics),
        [[record[key] for key in (*columns, *metrics)] for record in division_records(rows)],
    )
    if plots:
        save_charts(folder / "plots", [partial(_chart, rows, best, goal, name)])


def _chart(rows: Sequence[Divided], best: Divided, goal: str, name: str) -> Chart:
    """Draw the metrics over the share of KV blocks, with the best division marked."""
    metrics = _in_readable_units(rows)
    chart = grid(
        "split",
        f"Division of GPU memory: {name}",
        "Share: part of the memory left by weights, activations and buffers that KV blocks get; "
        "expert slots have the rest. Each point is a simulated division; dashed: the best one by "
        f"{next(metric.label for metric in metrics if metric.key == goal)}; diamond: as the "
        f"scenario has it. Of the best: {run_caption(best.run)}",
        ("kv_share", "kv_tokens", "slots", "as_written", *(metric.key for metric in metrics)),
        shape=(2, 2),
        height_in=4.4,
        note=run_note(best.run),
        sharex=True,
    )
    searched = sorted((row for row in rows if not row.own), key=lambda row: row.share)
    for axes, metric in zip(chart.panels, (*metrics[:3], HITS), strict=True):
        shares = [100 * row.share for row in searched]
        axes.plot(shares, [metric.of(row.run) for row in searched], marker="o", markersize=3.5)
        for row in rows:
            if row.own:
                axes.plot(
                    100 * row.share, metric.of(row.run), marker="D", color=ORANGE, linestyle=""
                )
        axes.axvline(100 * best.share, color="#444444", linestyle="--", linewidth=0.8)
        axes.set_title(drawn(metric.label))
        axes.set_ylabel(metric.title)
        axes.set_ylim(bottom=0)
    for axes in chart.axes[1]:
        axes.set_xlabel("KV blocks' share of the free memory (%)")
    for row in rows:
        values = [metric.of(row.run) for metric in metrics]
        chart.record(row.share, row.kv_tokens, row.slots, row.own, *values)
    return chart


def _in_readable_units(rows: Sequence[Divided]) -> list[Metric]:
    """Return the metrics, in seconds where a value of any division is large."""
    return [
        metric.in_readable_unit(
            value for value in (metric.of(row.run) for row in rows) if not math.isnan(value)
        )
        for metric in _METRICS
    ]
