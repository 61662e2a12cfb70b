"""The command line: `moesim …`. Thin commands; whatever is heavy is imported inside them.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (a bad trace, a
broken invariant, a full disk), 2 usage or scenario error, 3 a stated threshold was not met, 130
interrupted by Ctrl-C, 143 terminated by SIGTERM.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli import calibrate, compare, inspect, listing, models, record, run, trace, validate
from moesim.cli.ending import run_to_its_end

__all__ = ["app", "main"]

app = typer.Typer(
    name="moesim",
    help="Simulate mixture-of-experts inference on a GPU that cannot hold all experts.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or scenario error, 3 a stated threshold was not "
    "met, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
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


for group in (run, compare, calibrate, validate, inspect, listing, record, models, trace):
    group.register(app)


def main() -> None:
    """The console script."""
    run_to_its_end(app)
