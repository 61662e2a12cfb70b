"""The report of the comparison: `systems.md`, a CSV file of all rows, and the figures."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from system_cells import COMMON, FITTED, LENGTHS, OWN, Cell, own_engine
from system_figures import draw, order_of
from system_findings import (
    Standing,
    by_cell,
    cell_text,
    general,
    how,
    named,
    percent,
    ranked,
    standing,
    system_text,
)
from system_rows import QUANTITIES, Row
from system_runs import Grid

from moesim.report.chart import write_csv, write_whole
from moesim.report.tabular import Cell as Text
from moesim.report.tabular import Table, escaped, markdown

__all__ = ["report", "write_report"]

_STATUS: Final = {"hindsight": " (hindsight)", "other model": " (other model)"}


def write_report(rows: Sequence[Row], grid: Grid, folder: Path, left_out: Sequence[str]) -> None:
    """Write the report into a folder. `left_out` names models whose routing is not here."""
    write_whole(folder / "systems.md", report(rows, grid, left_out))
    write_csv(folder / "systems.csv", _COLUMNS, map(_fields, rows))
    draw(folder / "plots", rows, grid.seeds)


_COLUMNS: Final = (
    "model", "machine", "batch", "system", "engine", "status", "changed", "refusal",
    *(f"{name}{end}" for name in QUANTITIES for end in ("", "_half")),
    "verdict", "verdict_reason", "all_fits",
)  # fmt: skip


def _fields(row: Row) -> list[object]:
    values: list[object] = []
    for name in QUANTITIES:
        value = row.values.get(name)
        values += [math.nan, math.nan] if value is None else [value.mean, value.half]
    return [
        *row.cell.place, row.cell.batch, row.system, row.engine, row.status, row.changed,
        row.refusal, *values, row.facts.get("verdict", ""), row.facts.get("verdict_reason", ""),
        row.fits,
    ]  # fmt: skip


def report(rows: Sequence[Row], grid: Grid, left_out: Sequence[str]) -> str:
    """Return the report as Markdown."""
    found = standing(rows)
    parts = [
        "# Offloading systems side by side",
        f"```sh\n{shlex.join(['python', 'studies/systems/systems.py', *sys.argv[1:]])}\n```",
        *_setting(rows, grid, left_out),
        "## Where each wins and why",
        "\n".join(f"- {text}" for text in general(rows)),
        markdown(_standings(found)),
        "\n".join(f"- {system_text(each)}" for each in found),
        "![tokens/s](plots/tokens.png)",
        "![share of the best](plots/shares.png)",
    ]
    cells = by_cell(rows)
    for place in dict.fromkeys(cell.place for cell in cells):
        own = [row for row in rows if row.cell.place == place]
        parts += _place(own)
    return "\n\n".join([*parts, *_refusals(rows)]) + "\n"


def _setting(rows: Sequence[Row], grid: Grid, left_out: Sequence[str]) -> Iterator[str]:
    models = dict.fromkeys(row.cell.model for row in rows)
    machines = dict.fromkeys(row.cell.machine for row in rows)
    verdicts = "The verdict is of seed 0, warming included."
    if not grid.verdicts:
        verdicts = "This run has no verdicts."
    fitted = f", and all run once more under `{FITTED}`" if grid.fitted else ""
    yield (
        "Each preset of `system:` serves the same requests on the same machine, under the same "
        f"engine, `{COMMON}`. So differences are those of the policies. Presets that name an "
        f"engine run under it too{fitted}. Requests have {LENGTHS['prompt']} prompt tokens and "
        f"{LENGTHS['output']} output tokens. As many closed clients as the batch send them. The "
        f"first requests warm the caches and do not count. Each of {grid.seeds} seeds draws other "
        "requests of the second half of the trace, the same for all systems. Intervals are 95 % "
        f"over seeds, and gains are paired by "
        f"seed. {verdicts} All times are simulated, and all costs assumed."
    )
    lines = [f"- **{model.label}**: routing is {model.routing}." for model in models]
    lines += [f"- **{machine.label}**: {machine}." for machine in machines]
    lines += [f"- **{label}** is left out: its routing is not here." for label in left_out]
    yield "\n".join(lines)
    yield (
        "**~**: the trace refuses the preset as it is; it runs with the change that is listed at "
        "the end. **(hindsight)** knows the future, and **(other model)** needs a router that "
        "reveals its choices early: both are shown and not ranked."
    )


def _standings(found: Sequence[Standing]) -> Table:
    batches = sorted({cell.batch for each in found for cell in each.shares})
    table = Table(
        "Standing over the cells where not everything fits; shares of the best tokens/s, medians",
        ["system", "cells", "fastest or level", "within 10 %", "last", "share",
         *(f"at batch {batch}" for batch in batches), "worst"],
    )  # fmt: skip
    for each in found:
        counts = (len(each.shares), each.won, each.near, each.last)
        shares = (each.median, *map(each.median_at, batches), each.shares[each.worst.cell])
        table.add(each.system, *map(str, counts), *map(percent, shares))
    return table


def _place(rows: Sequence[Row]) -> Iterator[str]:
    cell = rows[0].cell
    yield f"## {cell.model.label} ({cell.model.bits(cell.machine)}), {cell.machine.label}"
    yield f"{cell.machine}. Routing: {cell.model.routing}."
    cells = by_cell(rows)
    if any(row.fits for row in rows):
        yield "\n".join(f"- {_all_fit(each, own)}" for each, own in cells.items())
        return
    yield "\n".join(f"- Batch {each.batch}: {cell_text(own)}" for each, own in cells.items())
    yield markdown(_results(rows))
    yield markdown(_engines(rows))


def _all_fit(cell: Cell, rows: Sequence[Row]) -> str:
    """Return the figures of a cell where a slot for each expert fits, and who differs."""
    order = ranked(rows)
    if not order:
        return f"{named(cell)}: no system runs."
    best, last = order[0], order[-1]
    text = (
        f"Batch {cell.batch}: every expert fits in GPU memory, so nothing needs to be copied "
        f"once the caches are warm. The {len(order)} systems reach {last.speed:,.3g} to "
        f"{best.speed:,.3g} tokens/s, TTFT {best.mean('ttft_ms'):.3g} ms."
    )
    apart = [
        f"{row.system} ({percent(row.speed / best.speed - 1, sign='+')}, it {how(row)})"
        for row in order
        if row.speed < 0.99 * best.speed
    ]
    return f"{text} Not equal: {', '.join(apart)}." if apart else f"{text} All are equal."


def _results(rows: Sequence[Row]) -> Table:
    cells = by_cell(rows)
    columns = ["system"]
    for cell in cells:
        at = f"batch {cell.batch}: "
        columns += [
            f"{at}tokens/s",
            "TTFT, ms",
            "MiB a token",
            "hits in time, %",
            "verdict; longest wait",
        ]
    table = Table("Under the ideal engine", columns)
    by_system = {(cell, row.system): row for cell, own in cells.items() for row in own}
    for system in order_of(rows):
        texts: list[Text | str] = []
        for cell, own in cells.items():
            texts += _cells(by_system[cell, system], own)
        table.add(_label(system, rows), *texts)
    return table


def _label(system: str, rows: Sequence[Row]) -> str:
    own = [row for row in rows if row.system == system and row.engine == COMMON]
    marks = {_STATUS.get(row.status, " ~" if row.refusal and row.values else "") for row in own}
    return system + "".join(sorted(marks))


def _cells(row: Row, own: Sequence[Row]) -> list[Text | str]:
    if not row.values:
        return ["not possible" if row.status == "refused" else "failed", "", "", "", ""]
    order = ranked(own)
    mark = "best" if row is order[0] else "worst" if row is order[-1] else ""
    value = row.values["tokens_per_s"]
    half = "" if value.half is None else f" ± {value.half:.2g}"
    cause, share = row.longest_wait()
    return [
        Text(f"{value.mean:.3g}{half}", mark),
        f"{row.mean('ttft_ms'):,.0f}",
        f"{row.mean('mib_per_token'):,.0f}",
        f"{row.mean('on_time_pct'):.0f}",
        f"{row.facts['verdict'] or '–'}; {cause} {share:.0f} %",
    ]


def _engines(rows: Sequence[Row]) -> Table:
    cells = list(by_cell(rows))
    columns = ["system"]
    for cell in cells:
        columns += [f"batch {cell.batch}: {COMMON}", FITTED, "its own"]
    table = Table("Tokens/s by engine", columns)
    found = {(row.cell, row.system, row.engine): row for row in rows if row.values}
    for system in order_of(rows):
        texts = []
        for cell in cells:
            for engine in (COMMON, FITTED, OWN):
                row = found.get((cell, system, engine))
                texts.append("" if row is None else f"{row.speed:.3g}")
        own = own_engine(system)
        table.add(f"{system} ({own})" if own else system, *texts)
    return table


def _refusals(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what could not run as the preset says: the change that was made, and the refusal."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for row in rows:
        if row.engine == COMMON and row.refusal:
            what = row.changed or {"refused": "not possible"}.get(row.status, row.status)
            found.setdefault((row.system, what, row.refusal), []).append(row.cell)
    if not found:
        return
    yield "## What could not run as its preset says"
    lines = []
    for (system, what, refusal), cells in found.items():
        models = ", ".join(dict.fromkeys(cell.model.label for cell in cells))
        lines.append(f"- **{system}**, {models}: {what}. Refusal: “{escaped(refusal)}”.")
    yield "\n".join(lines)
    changed = dict.fromkeys((r.system, r.changed) for r in rows if r.changed and not r.refusal)
    if changed:
        yield "\n".join(f"- **{system}**: {words}." for system, words in changed)
