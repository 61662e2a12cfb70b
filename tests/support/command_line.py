"""All commands of moesim, by name, as typer has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from moesim.cli import app

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
