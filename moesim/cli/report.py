"""`moesim report`: tables and figures of finished runs; nothing is simulated again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.comparison import folder_of, print_comparison
from moesim.cli.drawing import draws, this_command
from moesim.cli.gate import gate
from moesim.cli.options import JsonOption, PlotsOption
from moesim.cli.output import echo_json
from moesim.cli.page import page
from moesim.cli.points import check_writable
from moesim.cli.progress import progress
from moesim.cli.what_if import print_what_ifs
from moesim.errors import OutputError, UsageError
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
            help="The folder to write into (default: the folder read; runs/report if several); "
            "with --html the file, which ends in .html."
        ),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write one HTML page that needs no network.")
    ] = False,
    baselines: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline",
            metavar="RUN",
            help="Compare with this run, request by request; may be repeated, for further seeds.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THRESHOLD",
            help='Exit with 3 if this holds, like "ttft_p99_ms > +5%"; may be repeated.',
        ),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for a pull request.")
    ] = False,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if",
            help="Simulate one run again with a faster link, more slots, perfect prefetch and a "
            "faster CPU; with --html a part of the page.",
        ),
    ] = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json[.gz]",
            help="Write one run as a timeline that ui.perfetto.dev loads.",
        ),
    ] = None,
    plots: PlotsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make tables and figures from finished runs, without simulating.

    One run is summarised; several are compared. The figures of one run are drawn into its own
    folder, unless --out names another. The last line printed is the folder written to.

    With --html, one page is written instead, report.html in that folder. With --baseline or
    --fail-if, runs are judged instead, and nothing is written.
    """
    with progress("reading the runs"):
        from moesim.report import load_runs

    paths = runs or []
    judged = bool(baselines or fail_if or as_markdown)
    _refuse_together(out, html=html, judged=judged, what_if=what_if, perfetto=perfetto is not None)
    if html:
        page(paths, out, what_if=what_if, as_json=as_json)
        return
    if judged:
        gate(paths, baselines or [], fail_if or [], as_json=as_json, as_markdown=as_markdown)
        return
    with progress("reading the runs"):
        loaded = load_runs(paths)
    if perfetto is not None:
        _write_perfetto(loaded, perfetto, as_json=as_json)
    elif what_if:
        print_what_ifs(loaded, as_json=as_json)
    elif len(loaded) == 1:
        _report_one(loaded[0], out, plots=plots, as_json=as_json)
    else:
        _report_several(loaded, paths, out, plots=plots, as_json=as_json)


def _refuse_together(
    out: Path | None, *, html: bool, judged: bool, what_if: bool, perfetto: bool
) -> None:
    """Raise `UsageError` where options ask for two outputs, of which one would be left out."""
    if html and (judged or perfetto):
        raise UsageError(
            "--html writes a page and nothing else; leave out --baseline, --fail-if, --markdown "
            "and --perfetto"
        )
    if out is not None and not html and (judged or perfetto or what_if):
        raise UsageError(
            "--out names a folder of figures, or a page with --html; leave it out with --baseline, "
            "--fail-if, --markdown, --what-if and --perfetto, which write no figures"
        )
    if what_if and (judged or perfetto):
        raise UsageError(
            "--what-if prints what changes would do, and nothing else; leave out --baseline, "
            "--fail-if, --markdown and --perfetto"
        )
    if judged and perfetto:
        raise UsageError(
            "--perfetto writes a timeline and nothing else; leave out --baseline, --fail-if and "
            "--markdown"
        )


def _write_perfetto(runs: Sequence[Run], file: Path, *, as_json: bool) -> None:
    """Write the timeline of one run. Raise UsageError for several runs."""
    from moesim.report.perfetto import check_timeline, write_perfetto

    if len(runs) != 1:
        raise UsageError(f"--perfetto is about one run, and {len(runs)} are named")
    check_timeline(file)
    written = write_perfetto(runs[0], file)
    if as_json:
        echo_json({"out": str(file), "works": written.works, "lanes": written.steps})
        return
    typer.echo(f"lanes: {written.steps} ({written.works:,} works); requests and counters: all")
    typer.echo(str(file))


def _report_one(run: Run, out: Path | None, *, plots: bool, as_json: bool) -> None:
    """Print the summary of one run, and draw its figures if `plots` is set."""
    from moesim.report import plots_for_run, print_summary

    folder = out or run.path
    if plots:
        try:
            with progress("figures"):
                plots_for_run(run.path, folder / "plots")
        except OutputError as error:
            hint = "--out names another folder, and --no-plots prints the tables alone"
            raise OutputError(error.path, f"{error.reason}; {hint}") from error
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
    folder = out or folder_of(paths)
    names = list(dict.fromkeys(run.text("name") for run in runs))
    check_writable(folder)
    with exclusive(folder, inside=True), progress("tables and figures" if plots else "tables"):
        write_comparison(
            comparison,
            folder,
            name=names[0] if len(names) == 1 else "report",
            command=this_command(),
            plots=plots,
        )
    print_comparison(comparison, str(folder), [], as_json=as_json, plots=plots)
