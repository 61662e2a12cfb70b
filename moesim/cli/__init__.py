"""The command line: `moesim …`.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (a bad trace, a
broken invariant, a full disk), 2 usage or scenario error, 3 a stated threshold was not met, 130
interrupted by Ctrl-C, 143 terminated by SIGTERM.

Commands import heavy modules when they run, so that `moesim --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli import (
    advise,
    calibrate,
    compare,
    curve,
    dial,
    inspect,
    listing,
    measured,
    models,
    record,
    report,
    run,
    search,
    split,
    trace,
    twin,
    validate,
    workload,
)
from moesim.cli.ending import run_to_its_end
from moesim.cli.paths import App

__all__ = ["app", "main"]

app = App(
    name="moesim",
    help="Simulate mixture-of-experts inference on a GPU that cannot hold all experts.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or scenario error, 3 a stated threshold was not "
    "met, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    # A traceback of moesim's own mistakes must be complete and plain, for a report of the bug.
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from moesim import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def moesim(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Simulate mixture-of-experts inference on a GPU that cannot hold all experts."""


# The order of the commands in `moesim --help`.
for group in (
    advise,
    twin,
    run,
    compare,
    report,
    search,
    split,
    dial,
    calibrate,
    validate,
    measured,
    curve,
    inspect,
    listing,
    record,
    models,
    trace,
    workload,
):
    group.register(app)


def main() -> None:
    """Run the command line and exit with its code; the console script `moesim` calls this."""
    run_to_its_end(app)
