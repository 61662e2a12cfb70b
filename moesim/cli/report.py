"""`moesim report`: tables and figures of finished runs; nothing is simulated again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.comparison import JsonOption, PlotsOption, out_option, print_comparison
from moesim.cli.drawing import draws
from moesim.cli.output import echo_json
from moesim.cli.points import check_writable
from moesim.locks import exclusive

if TYPE_CHECKING:
    from moesim.report import Run

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(draws(report))


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", help="Run directories, or folders that `moesim compare` wrote."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write into (default: the folder read; runs/report if several)."
        ),
    ] = None,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make tables and figures from finished runs, without simulating.

    One run is summarised; several are compared. The figures of one run are drawn into its own
    folder, unless --out names another. The last line printed is the folder written to.
    """
    from moesim.report import load_runs

    paths = runs or []
    loaded = load_runs(paths)
    if len(loaded) == 1:
        _report_one(loaded[0], out, plots=plots, as_json=as_json)
    else:
        _report_several(loaded, paths, out, plots=plots, as_json=as_json)


def _report_one(run: Run, out: Path | None, *, plots: bool, as_json: bool) -> None:
    """Print the summary of one run, and draw its figures if `plots` is set."""
    from moesim.report import plots_for_run, print_summary

    folder = out or run.path
    if plots:
        plots_for_run(run.path, folder / "plots")
    if as_json:
        echo_json({"out": str(folder), "summary": dict(run.summary)})
        return
    print_summary(run.path)
    typer.echo(f"\n{folder}")


def _report_several(
    runs: Sequence[Run],
    paths: Sequence[Path],
    out: Path | None,
    *,
    plots: bool,
    as_json: bool,
) -> None:
    """Write the comparison of several runs, and print it."""
    from moesim.report import compare_runs, write_comparison

    comparison = compare_runs(runs)
    folder = out or (paths[0] if len(paths) == 1 else Path("runs") / "report")
    names = list(dict.fromkeys(run.text("name") for run in runs))
    check_writable(folder)
    with exclusive(folder, inside=True):
        write_comparison(
            comparison,
            folder,
            name=names[0] if len(names) == 1 else "report",
            command=shlex.join(["moesim", "report", *map(str, paths), *out_option(out)]),
            plots=plots,
        )
    print_comparison(comparison, str(folder), [], as_json=as_json)
