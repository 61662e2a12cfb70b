"""`moesim report --html`: finished runs as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesim.cli.comparison import folder_of
from moesim.cli.drawing import this_command
from moesim.cli.output import echo_json
from moesim.cli.what_if import what_ifs_of

if TYPE_CHECKING:
    from moesim.report import Run

__all__ = ["page"]

_NAME = "report.html"


def page(paths: Sequence[Path], out: Path | None, *, what_if: bool, as_json: bool) -> None:
    """Write the page of runs, and print its file.

    Raises:
        UsageError: there are no runs, what-ifs of several are asked for, or the file has no name
            of a page.
        MissingExtra: the packages of the extra `html` are not installed.
        OutputError: the file cannot be written, or is none of moesim's.
    """
    from moesim.report import load_runs
    from moesim.report.page import check_page, write_page

    runs = load_runs(paths)
    file = out or _default(paths, runs)
    check_page(file)
    write_page(file, runs, this_command(), what_ifs_of(runs) if what_if else None)
    if as_json:
        echo_json({"out": str(file)})
        return
    typer.echo(str(file))


def _default(paths: Sequence[Path], runs: Sequence[Run]) -> Path:
    """Return the page of a run in its folder, and of a comparison in the folder that was read."""
    return (runs[0].path if len(runs) == 1 else folder_of(paths)) / _NAME
