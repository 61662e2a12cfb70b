"""All commands of moesim, by name, as typer has them, and what a line of them says."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import MoesimError

ROOT_COMMAND: Any = typer.main.get_command(app)


def commands(group: Any = ROOT_COMMAND, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the command of each that is shown."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands())


def answer(arguments: Iterable[str | Path]) -> tuple[int, str]:
    """Return the exit code and the message, or else the output, of a line that runs in here.

    `main` prints the message of a MoesimError, and ends with its code.
    """
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    if isinstance(done.exception, MoesimError):
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", done.output)  # colours, where forced


def write_program(path: Path) -> None:
    """Write a program that a shell can start as `moesim`."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m moesim "$@"\n')
    path.chmod(0o755)
