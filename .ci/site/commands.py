"""The commands as Markdown, from the application itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from markdown_table import cell, table

from moesim.cli import app


def page() -> str:
    """Return a section for each command, with its help and a table of its options."""
    head = (
        "# Commands\n\nEvery command with its arguments and options, made from the code. "
        "`moesim COMMAND --help` prints the same.\n\n"
    )
    return head + "\n".join(_section(*command) for command in commands())


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Yield each command that help shows: its name, itself and its context."""
    command = typer.main.get_command(app)
    yield from _below("moesim", command, None)


def _below(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent)
    yield name, command, context
    for below, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _below(f"{name} {below}", inner, context)


def _section(name: str, command: Any, context: Any) -> str:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(f"`{cell(left)}`", cell(right)) for left, right in filter(None, records)]
    below = [
        (f"`{name} {key}`", cell(inner.get_short_help_str(200)))
        for key, inner in getattr(command, "commands", {}).items()
        if not inner.hidden
    ]
    depth = max(2, 1 + name.count(" "))  # `moesim trace info` is below `moesim trace`
    parts = [f"{'#' * depth} `{name}`", _text(command.help)]
    parts += [table(("command", "what it does"), below)] if below else []
    parts += [table(("argument or option", "meaning"), rows), _text(command.epilog)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _text(text: str | None) -> str:
    """Return help as Markdown: examples, which are indented, stay as they are typed."""
    lines = (text or "").replace("\b\n", "").splitlines()
    return "\n".join(line.replace("<", "&lt;") for line in lines)
