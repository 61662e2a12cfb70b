"""How a command ends: its exit code, and a last line that says so.

Ctrl-C, SIGTERM and a closed terminal all unwind a command alike, so that nothing half-written is
left. The exit code is then 128 and the signal's number, as shells expect it.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

import typer

from moesim.cli.progress import seconds_watched
from moesim.errors import MoesimError, OutputError

__all__ = ["run_to_its_end"]

_WORDS: Final = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_INTERRUPTED: Final = 130


def run_to_its_end(command: Callable[[], object]) -> None:
    """Run the command line, and exit with its code. Foreseen errors become one message each."""
    stops = _noted_signals()
    try:
        command()
    except SystemExit as ended:
        # typer turns an interrupt into this code.
        if stops and ended.code == _INTERRUPTED:
            _stop(stops[0])
        if not ended.code and (spent := seconds_watched()) is not None:
            _say(f"done in {spent:.0f} s")
        raise
    except KeyboardInterrupt:
        _stop(stops[0] if stops else signal.SIGINT)
    except Exception as error:
        # An interrupt that arrives during an import may be turned into another error.
        if stops:
            _stop(stops[0])
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OutputError("the output", error.strerror or str(error))
        if not isinstance(error, MoesimError):
            raise
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    finally:
        # An interrupt that passes code made at run time (as dataclasses are) leaves a mark by which
        # `python -m` dies of the signal, whatever the exit code; running any such code clears it.
        exec("")


def _stop(number: int) -> None:
    _say(_WORDS[signal.Signals(number).name])
    sys.exit(128 + number)


def _say(text: str) -> None:
    # Where the terminal is gone or the disk full, the exit code still tells.
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        typer.echo(text, err=True)


def _noted_signals() -> list[int]:
    """Return a list to which each signal that ends the command is added as it arrives."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        for name in _WORDS:
            number = getattr(signal, name, None)
            # What the parent has chosen to ignore (as nohup does) stays ignored.
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, note)
    return noted
