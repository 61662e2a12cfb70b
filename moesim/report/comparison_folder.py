"""The folder of a comparison: tables as CSV and Markdown, figures, and the command used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moesim.report.chart import write_whole
from moesim.report.comparison import Comparison
from moesim.report.drawing import commanded
from moesim.report.several import plots_for_comparison
from moesim.report.tables import as_markdown, write_csvs

__all__ = ["write_comparison"]


def write_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    name: str,
    command: str,
    failures: Sequence[str] = (),
    plots: bool = True,
) -> None:
    """Write `compare.csv`, `runs.csv`, `compare.md` and, with `plots`, `plots/` into `folder`.

    `command` reproduces the comparison. `failures` has one line for each point that is missing.

    Raises:
        OutputError: a file cannot be written.
    """
    write_csvs(comparison, folder)
    with commanded(command):
        charts = plots_for_comparison(comparison, folder / "plots") if plots else []
    write_whole(folder / "compare.md", as_markdown(name, comparison, charts, command, failures))
