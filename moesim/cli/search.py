"""`moesim search`: a threshold or an optimum over the keys of a scenario, from few runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moesim.cli.command_line import command_line
from moesim.cli.complete import of_metrics
from moesim.cli.options import AgainOption, JsonOption, SetOption
from moesim.cli.output import echo_json
from moesim.cli.outputs import Output, opened, path_or_url
from moesim.cli.points import OnOption, WorkersOption, backend_of
from moesim.cli.progress import progress
from moesim.cli.search_job import SearchJob
from moesim.errors import MoesimError, ThresholdError, UsageError

if TYPE_CHECKING:
    from moesim.search.metrics import Condition
    from moesim.search.optimum import Goal
    from moesim.search.page import Page

__all__ = ["register"]

_MOST_FAILURES: Final = 20


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(search)


def search(
    context: typer.Context,
    scenario: Annotated[
        Path, typer.Argument(help="A scenario, with a `sweep:` unless --over names all values.")
    ],
    until: Annotated[
        str | None,
        typer.Option(help='Find the threshold of a condition, like "output_tokens_per_s >= 20".'),
    ] = None,
    minimize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC",
            help="Find the least of this metric; may be repeated.",
            autocompletion=of_metrics,
        ),
    ] = None,
    maximize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC",
            help="Find the most of this metric; may be repeated.",
            autocompletion=of_metrics,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='The optimum must meet this, like "ttft_p99_ms <= 500"; may be repeated.',
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUES]",
            help="Search this key: A,B,C or A..B or A..B..STEP or A..B..2x; may be repeated. "
            "A key of the sweep needs no values. --until is about the first one.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="The most points that a search for an optimum tries.")
    ] = 24,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="End early on bad points: serve this share of the requests first, like 0.25.",
        ),
    ] = None,
    probes: Annotated[
        int, typer.Option(min=0, help="Values between both ends that check for a single threshold.")
    ] = 2,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="How far a metric may move against its trend, as a share of its range.",
        ),
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of the choice of points.")] = 0,
    overrides: SetOption = None,
    out: Annotated[
        Any,
        typer.Option(
            parser=path_or_url,
            metavar="PATH|URL",
            help="The folder or fsspec URL to write into (default: runs/NAME-search). That of a "
            "`moesim compare` shares its runs.",
        ),
    ] = None,
    on: OnOption = "local",
    workers: WorkersOption = None,
    force: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find a threshold or an optimum of a scenario's sweep from few of its runs.

    --until finds from which value of one key on a condition is met, by bisection. --minimize and
    --maximize find the best point, or the Pareto front of several metrics. Finished points are not
    run again, and an interrupted search continues. Results do not depend on where, or by how many
    workers, they are simulated. The last line printed is the folder with search.json, search.csv
    and search.md.
    """
    from moesim.search.grid import load_grid

    asked = _asked(until, minimize or (), maximize or (), where or (), runs, prefix, seed)
    backend = backend_of(on, workers)
    command = command_line(context)
    with nullcontext() if out is None else opened(out) as given:
        folder, copied = (given.folder, given.copied) if given else (None, False)
        changes = (overrides or (), over or ())
        with progress():
            grid, named = load_grid(scenario, *changes, folder, "search", copied=copied)
        output = given or Output(grid.folder)
        job = SearchJob(grid, output, backend, force)
        page = job.page(asked, named, probes, tolerance, command)
        if as_json:
            echo_json({"out": output.shown, "made": job.made, **page.as_plain()})
        else:
            _print(page, job.made, output.shown)
    _end(page)


def _asked(
    until: str | None,
    minimize: Sequence[str],
    maximize: Sequence[str],
    where: Sequence[str],
    runs: int,
    prefix: str | None,
    seed: int,
) -> Condition | Goal:
    """Return what is asked for: a condition of a threshold, or the goal of an optimum."""
    from moesim.search.metrics import parse_condition, parse_objective
    from moesim.search.optimum import Goal, parse_prefix

    objectives = [parse_objective("--minimize", text) for text in minimize]
    objectives += [parse_objective("--maximize", text) for text in maximize]
    if until is None and not objectives:
        raise UsageError(
            'say what to search for: --until "METRIC >= NUMBER" for a threshold, or --minimize '
            "METRIC or --maximize METRIC for an optimum"
        )
    if until is not None:
        if objectives or where:
            raise UsageError(
                "--until finds a threshold, the other options an optimum; to find the best point "
                f"that meets a condition, write --where {shlex.quote(until)}"
            )
        if prefix is not None:
            raise UsageError(
                "--prefix is of a search for an optimum: a prefix of the requests has another "
                "threshold; leave it out"
            )
        return parse_condition("--until", until)
    metrics = [objective.metric for objective in objectives]
    if twice := [metric for metric in metrics if metrics.count(metric) > 1]:
        raise UsageError(f"{twice[0]} is an objective twice; name it once")
    conditions = tuple(parse_condition("--where", text) for text in where)
    shares = () if prefix is None else parse_prefix(prefix)
    return Goal(tuple(objectives), conditions, runs, shares, seed)


def _print(page: Page, made: int, folder: str) -> None:
    """Print the page as text; the last line is its folder."""
    from moesim.report.tabular import write_tables

    finding, caption = page.finding, page.caption
    if caption:
        typer.echo(f"{caption}\n")
    write_tables(finding.tables)
    typer.echo()
    for sentence in finding.sentences:
        typer.echo(sentence)
    saved = finding.saved
    kept = saved.whole + saved.prefix - made - len(page.failures)
    typer.echo(f"runs: {saved}" + (f" ({kept} lay in the folder)" if kept > 0 else ""))
    for note in page.notes:
        typer.echo(f"- {note}")
    typer.echo(f"\n{folder}")


def _end(page: Page) -> None:
    """End with an error where points failed, or nothing was found."""
    finding = page.finding
    if page.failures:
        typer.echo(f"{len(page.failures)} of the tried points failed:", err=True)
        for line in page.failures[:_MOST_FAILURES]:
            typer.echo(f"  {line}", err=True)
        if len(page.failures) > _MOST_FAILURES:
            typer.echo(f"  and {len(page.failures) - _MOST_FAILURES} more", err=True)
    if finding.refused:
        raise MoesimError(finding.refused)
    if not finding.reached:
        raise ThresholdError(f"{finding.asked}: no tried point meets it")
    if any(each.error and not each.too_large for each in (*finding.prefixes, *finding.tried)):
        raise typer.Exit(1)
