"""The end of a command: its exit code, and a last line on stderr that states it in words.

Ctrl-C, SIGTERM and a closed terminal all unwind a command alike, so that no half-written file is
left. The exit code is then 128 plus the signal's number, as shells expect.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

import typer

from moesim.cli.debug import debugging, report_of
from moesim.cli.progress import seconds_watched
from moesim.errors import MoesimError, OutputError

__all__ = ["run_to_its_end"]

_WORDS: Final = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_INTERRUPTED: Final = 130
_AGAIN_S: Final = 0.2


def run_to_its_end(command: Callable[[], object]) -> None:
    """Run the command line and exit with its code.

    A foreseen error becomes one message. Any other error becomes one that asks for a report. Both
    have their traceback with `--debug`.
    """
    stops = _noted_signals()
    sys.unraisablehook = _report_unless_an_interrupt
    _discard_what_has_no_stream()
    _replace_what_cannot_be_shown()
    try:
        command()
    except SystemExit as ended:
        # typer turns an interrupt into this code, but the signal may have been another one.
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
            _say(f"error: {report_of(error)}")
            sys.exit(MoesimError.exit_code)
        if debugging():
            _say("".join(traceback.format_exception(error)))
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    finally:
        for number in set(stops):
            signal.signal(number, signal.SIG_IGN)
        # An interrupt inside code that was compiled at run time (as in dataclasses) sets a flag in
        # Python. With it, `python -m` ends by the signal and not with our exit code. Running other
        # compiled code clears the flag.
        exec("")


def _discard_what_has_no_stream() -> None:
    """Discard what is printed to a stream that the parent process closed (`>&-` in a shell)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it stays open
            setattr(sys, name, stream)


def _replace_what_cannot_be_shown() -> None:
    """Print `?` for a sign that the terminal's encoding lacks; Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _stop(number: int) -> None:
    """Exit as shells expect of a command that signal `number` ended."""
    _say(_WORDS[signal.Signals(number).name])
    sys.exit(128 + number)


def _say(text: str) -> None:
    # If the terminal is gone or the disk is full, the exit code still reports the end.
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        typer.echo(text, err=True)


def _noted_signals() -> list[int]:
    """Return a list to which each signal that ends the command is added as it arrives.

    Libraries may drop an interrupt (pyarrow does while it imports pandas). It is therefore raised
    again until it is seen to unwind the command; nothing interrupts that.
    """
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        again = threading.Timer(_AGAIN_S, _raise_in_main_thread, [number])
        again.daemon = True
        again.start()
        if not _unwinds(sys.exception()):
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in _WORDS:
            number = getattr(signal, name, None)
            # A signal that the parent process set to be ignored, as nohup does, stays ignored.
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, note)
    return noted


def _report_unless_an_interrupt(dropped: sys.UnraisableHookArgs) -> None:
    """Report what Python had to drop, as in `__del__`; an interrupt is raised again anyway."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


def _raise_in_main_thread(number: int) -> None:
    """Raise a signal where it also wakes the main thread out of a wait."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # Windows
        signal.raise_signal(number)


def _unwinds(error: BaseException | None) -> bool:
    """Whether an interrupt is being handled, as itself or as an error that it was turned into."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
