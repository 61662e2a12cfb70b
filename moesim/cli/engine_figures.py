"""The figures of an engine as tables with numbered sources, for `moesim list engines`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from moesim.report.tabular import Table

__all__ = ["show_figures"]

_HOST: Final = "host"
Figures = Mapping[str, Mapping[str, Any]]
"""Value, kind and source of each figure, by its dotted key in the profile."""


def show_figures(figures: Figures) -> None:
    """Print the figures of an engine, with a column for each processor, and each source once.

    A number in brackets stands behind a figure, and in front of its source.
    """
    from moesim.report.tabular import write_tables

    origins = {key: f"{figure['kind']}: {figure['source']}" for key, figure in figures.items()}
    places = {origin: place for place, origin in enumerate(dict.fromkeys(origins.values()), 1)}
    numbers = {key: f"[{places[origin]}]" for key, origin in origins.items()}
    processors = dict.fromkeys(_placed(key)[0] for key in figures)
    on_devices = [name for name in processors if name != _HOST]
    # The host has figures of its own, so they are a table of their own.
    tables = [_table(figures, numbers, columns) for columns in ([_HOST], on_devices) if columns]
    write_tables(tables)
    typer.echo("\nsources")
    for origin, place in places.items():
        typer.echo(f"  [{place}] {origin}")


def _placed(key: str) -> tuple[str, str]:
    """Return the processor of a figure, and its name: `gpu.cuda.kernel` is `kernel` of `cuda`."""
    processor, _, name = key.removeprefix("gpu.").rpartition(".")
    return processor or _HOST, name


def _table(figures: Figures, numbers: Mapping[str, str], columns: Sequence[str]) -> Table:
    from moesim.report.tabular import Table

    table = Table("", ["figure", *columns])
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for key, figure in figures.items():
        processor, name = _placed(key)
        for part, text in _cells(figure["value"], numbers[key]):
            rows.setdefault((name, part), {})[processor] = text
    # A part that only a later processor has stands behind the other parts of its figure.
    names = list(dict.fromkeys(name for name, _ in rows))
    for name, part in sorted(rows, key=lambda row: names.index(row[0])):
        cells = [rows[name, part].get(column, "") for column in columns]
        if any(cells):
            table.add(f"  {part}" if part else name, *cells)
    return table


def _cells(value: Any, number: str) -> Iterator[tuple[str, str]]:
    """Yield each part of a value and its text; the part "" has the number of the source."""
    if isinstance(value, Mapping):
        yield "", number
        yield from ((str(part), str(share)) for part, share in value.items())
    else:
        yield "", f"{str(value).lower() if isinstance(value, bool) else value} {number}"
