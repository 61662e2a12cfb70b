"""Tables of predictions beside measured values, by machine, and of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from moesim.measured.answers import Answered, notes_of
from moesim.measured.fit import Fitted, machine_of
from moesim.measured.score import GROUPS
from moesim.report.chart import write_csv
from moesim.report.metrics import number
from moesim.report.tabular import Cell, Table

__all__ = ["note_table", "row_tables", "summary_tables", "write_rows"]

_ROW_COLUMNS: Final = (
    "row", "model", "quant", "setting", "metric", "depth", "measured tok/s", "predicted",
    "interval", "error %",
)  # fmt: skip
_SCORE_COLUMNS: Final = (
    "", "counted", "predicted", "compared", "median |error| %", "median error %", "within 25 %",
    "within 40 %", "in interval", "high / low",
)  # fmt: skip
_LONGEST: Final = 40  # characters of a cell
_MOST_INDICES: Final = 8


def row_tables(rows: Sequence[Answered], most: int | None = None) -> list[Table]:
    """Return a table for each machine, in the order of the file.

    With `most`, a longer table ends with a note of the rows that are left out.
    """
    parts: dict[str, list[Answered]] = {}
    for row in rows:
        parts.setdefault(machine_of(row.reading) or "unnamed machine", []).append(row)
    tables = []
    for machine, part in parts.items():
        table = Table(machine, list(_ROW_COLUMNS))
        for row in part[:most]:
            table.add(*_cells(row))
        if len(part) > len(table.rows):
            left = len(part) - len(table.rows)
            rest = f"… and {left} more rows (--json or --out shows all)"
            table.rows.append([Cell(rest), *(Cell("") for _ in _ROW_COLUMNS[1:])])
        tables.append(table)
    return tables


def note_table(rows: Sequence[Answered]) -> list[Table]:
    """Return a table of all reasons and notes with the indices of their rows, if there are any."""
    indices = notes_of(rows)
    if not indices:
        return []
    table = Table("Notes", ["note", "rows"])
    for text, numbers in indices.items():
        first = ", ".join(map(str, numbers[:_MOST_INDICES]))
        more = f", … ({len(numbers)})" if len(numbers) > _MOST_INDICES else ""
        table.add(text, first + more)
    return [table]


def summary_tables(summary: Mapping[str, Any], fits: Sequence[Fitted] = ()) -> list[Table]:
    """Return the scores of each group, and within it by engine, GPU, model, placement, depth."""
    overall = Table("Scores", list(_SCORE_COLUMNS))
    tables = [overall]
    for group in GROUPS:
        scores = summary["groups"][group]
        overall.add(group.replace("_", " "), *_scores(scores))
        for name, parts in scores["by"].items():
            if len(parts) > 1:
                table = Table(f"{group.replace('_', ' ')} by {name}", list(_SCORE_COLUMNS))
                for part, part_scores in parts.items():
                    table.add(_short(part or "not named"), *_scores(part_scores))
                tables.append(table)
    return [*tables, *_declined(summary), *_fits(fits)]


def write_rows(rows: Sequence[Answered], folder: Path) -> None:
    """Write `measured.csv`: each row with its answer. Raise `OutputError` if that fails."""
    columns = [
        "index", "source", "machine", "model", "quant", "engine", "backend", "setting", "placement",
        "group", "depth", "prompt", "batch", "measured", "predicted", "low", "high", "error_pct",
        "reason", "notes",
    ]  # fmt: skip
    write_csv(folder / "measured.csv", columns, (_csv(row) for row in rows))


def _csv(row: Answered) -> list[Any]:
    reading, it = row.reading, row.prediction
    return [
        reading.row.index, reading.row.source, machine_of(reading), reading.row.model,
        reading.row.quant, reading.row.engine, reading.engine.backend, reading.row.setting,
        reading.kind.name, reading.group, reading.row.depth, reading.row.prompt, reading.row.batch,
        row.value, *((it.value, it.low, it.high) if it is not None else (None, None, None)),
        row.error_pct, row.reason, "; ".join(row.notes),
    ]  # fmt: skip


def _cells(row: Answered) -> list[str]:
    reading, it = row.reading, row.prediction
    of = reading.row
    cells = [str(of.index), of.model, of.quant, of.setting, _metric(row), _number(of.depth)]
    cells.append(_number(row.value))
    if it is None:
        cells += ["", "", row.reason or ""]
    else:
        cells += [number(it.value), f"{number(it.low)}-{number(it.high)}", _signed(row.error_pct)]
    return [_short(cell) for cell in cells]


def _metric(row: Answered) -> str:
    of = row.reading.row
    name = of.metric.removesuffix("_tok_s")
    sizes = [f"{of.prompt} tokens"] if of.prompt else []
    sizes += [f"batch {of.batch}"] if of.batch > 1 else []
    return f"{name} ({', '.join(sizes)})" if sizes else name


def _scores(scores: Mapping[str, Any]) -> list[str]:
    return [
        *(str(scores[key]) for key in ("counted", "predicted", "compared")),
        _number(scores["median_abs_error_pct"]), _signed(scores["median_error_pct"]),
        *(_share(scores[key]) for key in ("within_25_pct", "within_40_pct", "inside")),
        _number(scores["width"]),
    ]  # fmt: skip


def _declined(summary: Mapping[str, Any]) -> list[Table]:
    """Return a table of the reasons of rows without a prediction, if there are any."""
    if not summary["declined"]:
        return []
    table = Table("Rows without a prediction", ["reason", "rows"])
    for reason, count in summary["declined"].items():
        table.add(reason, str(count))
    return [table]


def _fits(fits: Sequence[Fitted]) -> list[Table]:
    if not fits:
        return []
    table = Table("Fitted", ["machine and engine", "rows", "read GB/s", "layer us", "note"])
    for fit in fits:
        rows = ", ".join(map(str, fit.rows))
        speed, layer = number(fit.read_bandwidth / 1e9), number(fit.layer_ns / 1e3)
        table.add(f"{fit.machine}, {fit.engine}", rows, speed, layer, fit.note)
    return [table]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
