"""What `moesim compare` and `moesim report` print of a comparison, and the options of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.output import echo_json

if TYPE_CHECKING:
    from moesim.report import Comparison

__all__ = ["JsonOption", "PlotsOption", "out_option", "print_comparison"]

PlotsOption = Annotated[bool, typer.Option("--plots/--no-plots", help="Draw figures.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_comparison(
    comparison: Comparison,
    folder: str,
    failures: Sequence[str],
    *,
    as_json: bool,
    plots: bool = False,
) -> None:
    """Print a comparison and the folder that holds it (with its `plots`), as tables or as JSON."""
    from moesim.report.tables import SPEEDS, signs, tables
    from moesim.report.tables import as_json as plain_data
    from moesim.report.tabular import write_tables

    if as_json:
        echo_json({"out": folder, **plain_data(comparison), "failures": list(failures)})
        return
    typer.echo(f"{comparison.caption(hits=True)}\n")
    write_tables(tables(comparison))
    typer.echo()
    for note in (SPEEDS, signs(comparison), *comparison.notes):
        typer.echo(f"- {note}")
    typer.echo()
    if plots:
        typer.echo(f"plots are in {folder.rstrip('/')}/plots")
    typer.echo(folder)


def out_option(out: Path | str | None) -> list[str]:
    """Return `--out` for a command line that makes the same again; nothing without it."""
    return [] if out is None else ["--out", str(out)]
