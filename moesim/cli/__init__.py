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
    doctor,
    init,
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
from moesim.cli.debug import DebugOption, Root
from moesim.cli.ending import run_to_its_end
from moesim.cli.help_texts import complete_help
from moesim.cli.paths import App

__all__ = ["app", "main"]

app = App(
    name="moesim",
    help="Simulate mixture-of-experts inference on a GPU that cannot hold all experts.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or scenario error, 3 a stated threshold was not "
    "met, 130 interrupted, 143 terminated (docs/cli.md).\n\n"
    "`moesim COMMAND -h` has examples of each command.",
    no_args_is_help=True,
    # Errors are told by moesim.cli.ending, with a plain traceback where `--debug` asks for it.
    pretty_exceptions_enable=False,
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    debug: DebugOption = False,
) -> None:
    """Simulate mixture-of-experts inference on a GPU that cannot hold all experts."""


for group in (
    init,
    doctor,
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
complete_help(app)


def main() -> None:
    """Run the command line and exit with its code; the console script `moesim` calls this."""
    run_to_its_end(app)
