"""What `moesim compare` and `moesim report` print of a comparison, and where reports write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesim.cli.output import echo_json

if TYPE_CHECKING:
    from moesim.report import Comparison

__all__ = ["folder_of", "print_comparison"]


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


def folder_of(paths: Sequence[Path]) -> Path:
    """Return the default folder of a comparison of finished runs: the only one that was read."""
    return paths[0] if len(paths) == 1 else Path("runs") / "report"
