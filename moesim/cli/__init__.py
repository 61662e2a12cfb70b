"""The command line: `moesim …`. Thin commands; whatever is heavy is imported inside them.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (a bad trace, a
broken invariant, a full disk), 2 usage or scenario error, 3 a stated threshold was not met, 130
interrupted.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from moesim.cli import calibrate, compare, inspect, models, record, run, trace, validate
from moesim.cli.paths import App
from moesim.errors import MoesimError

__all__ = ["app", "main"]

app = App(
    name="moesim",
    help="Simulate mixture-of-experts inference on a GPU that cannot hold all experts.",
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


for group in (run, compare, calibrate, validate, inspect, record, models, trace):
    group.register(app)


def main() -> None:
    """The console script: errors that moesim foresees are one message and an exit code."""
    interrupts = _noted_interrupts()
    try:
        app()
    except MoesimError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        # What an interrupt hits while it is imported may turn it into an error of its own.
        if not interrupts:
            raise
        sys.exit(130)
    finally:
        # An interrupt that passes code made at run time (as dataclasses are) leaves a mark by which
        # `python -m` dies of the signal, whatever the exit code; running any such code clears it.
        exec("")


def _noted_interrupts() -> list[int]:
    """A list that every interrupt from now on is added to, before it is raised as ever."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    return noted
