"""`moesim workload`: describe files of requests."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.drawing import draws
from moesim.cli.options import JsonOption, PlotsIntoOutOption, ReplaceOption
from moesim.cli.paths import App

if TYPE_CHECKING:
    from moesim.workload.formats import Columns

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the sub-commands of this file to the application."""
    group = App(no_args_is_help=True, help="Describe files of requests.")

    # With one command alone, typer would leave out its name.
    @group.callback()
    def workload() -> None:
        """Describe files of requests."""

    group.command()(draws(info))
    app.add_typer(group, name="workload")


def info(
    file: Annotated[
        Path, typer.Argument(help="Azure, BurstGPT, Mooncake, ShareGPT, Vidur or own requests.")
    ],
    kind: Annotated[
        str, typer.Option("--format", help="Format of FILE; auto: by its header.")
    ] = "auto",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Own column, as KEY=NAME; keys are arrival, unit, prompt, output and domain. "
            "May be repeated."
        ),
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(help="Repair lines: sort, drop_empty or drop_surplus. May be repeated."),
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block id (default: the format's).")
    ] = None,
    characters_per_token: Annotated[
        float | None, typer.Option(help="Turns texts into lengths, for ShareGPT.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Read the first requests only.")
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write workload.json and plots/ into.")
    ] = None,
    plots: PlotsIntoOutOption = True,
    force: ReplaceOption = False,
) -> None:
    """Show requests, lengths, rate, burstiness and shared prefixes of a file of requests.

    With --out, the last line printed is the folder.
    """
    from moesim.cli.output import echo_json
    from moesim.cli.progress import progress
    from moesim.errors import UsageError
    from moesim.files import may_replace, whole_folder
    from moesim.report.requests import FILES, remarks, tables, write_requests
    from moesim.report.tabular import write_tables
    from moesim.workload.description import describe
    from moesim.workload.request_file import Reading, read_requests

    if characters_per_token is not None and not 0 < characters_per_token < float("inf"):
        raise UsageError("--characters-per-token must be a number above 0")
    reading = Reading(
        kind,
        _columns(column or []),
        block_tokens,
        characters_per_token,
        frozenset(repair or []),
        requests,
    )
    if out is not None:  # before the requests are read, which may be many
        may_replace(out, force, FILES)
    with progress("reading the requests"):
        read = read_requests(file, reading)
        about = describe(read)
    if out is not None:
        with progress("writing"), whole_folder(out, force=force, ours=FILES) as folder:
            write_requests(folder, read, about, file.name, plots=plots)
    if as_json:
        echo_json(about if out is None else {**about, "out": str(out)})
        return
    write_tables(tables(about))
    for note in remarks(about):
        typer.echo(f"- {note}")
    if out is not None:
        typer.echo(f"\n{out}")


def _columns(pairs: list[str]) -> Columns:
    """Return the columns of the option --column. Raise `UsageError` for a pair that is none."""
    from moesim.errors import UsageError
    from moesim.workload.formats import Columns

    known = [field.name for field in fields(Columns)]
    named: dict[str, str] = {}
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not equals or not name or key not in known or key in named:
            raise UsageError(
                f"--column {pair!r} must be KEY=NAME, each key once; keys are {', '.join(known)}"
            )
        named[key] = name
    return Columns(**named)
