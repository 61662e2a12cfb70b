"""`--debug`, anywhere on the command line: an error is shown with its traceback.

Without it an unforeseen error is one message, and its traceback goes into a file for a report.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

__all__ = ["DebugOption", "Root", "debugging", "report_of"]

_FLAG: Final = "--debug"
_state = {"on": False}


def _set(wanted: bool) -> None:
    _state["on"] = wanted


def debugging() -> bool:
    """Whether the command line has `--debug`."""
    return _state["on"]


DebugOption = Annotated[
    bool,
    typer.Option(
        _FLAG,
        callback=_set,
        is_eager=True,
        help="Show the traceback of an error; may stand anywhere on the line.",
    ),
]


class Root(TyperGroup):
    """The commands of moesim; `--debug` may stand before a command or among its options."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; `python -m moesim` has the name of the console script, moesim."""
        name = prog_name or "moesim"
        return super().main(args, name, complete_var, standalone_mode, windows_expand_args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments as typer does, with `--debug` moved to the front."""
        end = args.index("--") if "--" in args else len(args)
        if _FLAG in args[:end]:
            args = [_FLAG, *(word for word in args[:end] if word != _FLAG), *args[end:]]
        return super().parse_args(ctx, args)


def report_of(error: BaseException) -> str:
    """Return the message about an error that moesim did not raise on purpose.

    Its traceback is part of the message with `--debug`, and else in a file that the message names.
    """
    text = "".join(traceback.format_exception(error))
    what = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
    message = f"{what}{_place(error)}\nthis is a fault of moesim; please report it"
    if debugging():
        return f"{message}\n\n{text.rstrip()}"
    path = _kept(text)
    where = f" with the traceback in {path}" if path else ""
    return f"{message}{where} ({_FLAG} prints the traceback)"


def _place(error: BaseException) -> str:
    """Return the innermost line of moesim that the error passed, for a message."""
    root = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            name = path.relative_to(root.parent)
            return f" (at {name}:{frame.lineno}, in {frame.name})"
    return ""


def _kept(text: str) -> str | None:
    """Return the file in the temporary folder that now holds `text`; None if there is no room."""
    with suppress(OSError):
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="moesim-error-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
        return file.name
    return None
