"""The command line that repeats a command: as it was typed, or with the value of every option."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

__all__ = ["command_line", "full_command_line"]

_CHANGE_NOTHING: Final = frozenset({"as_json", "as_markdown", "force", "on", "watch", "workers"})
"""Options that change no figure and no number."""


def command_line(context: typer.Context) -> str:
    """Return the command line in progress, with the options that were given, in one spelling."""
    words: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if value is None or not given or parameter.name in _CHANGE_NOTHING:
            continue
        if parameter.param_type_name == "argument":
            words += _texts(value)
        elif value is False:
            options += [max(parameter.secondary_opts, key=len)] if parameter.secondary_opts else []
        else:
            options += _option(max(parameter.opts, key=len), value)
    return shlex.join([*_path(context), *words, *options])


def full_command_line(words: Sequence[str], options: Mapping[str, object]) -> str:
    """Return the command line of a command and its options, also of those at their defaults.

    Provenance has it, so that it holds where a later version has other defaults. An absolute path
    is cut to its last part. Options that are None or False are left out. An option with a list is
    repeated.
    """
    spelled = [
        word
        for name, value in options.items()
        if value is not None and value is not False
        for word in _option(f"--{name}", value, _without_folders)
    ]
    return shlex.join(["moesim", *words, *spelled])


def _path(context: typer.Context) -> list[str]:
    """Return the names of the commands, like `moesim trace info`."""
    # The first word is the program, which may be spelt as `python -m moesim`.
    return ["moesim", *context.command_path.removeprefix(_program(context)).split()]


def _program(context: typer.Context) -> str:
    return context.find_root().info_name or ""


def _option(name: str, value: Any, spell: Callable[[Any], str] = str) -> list[str]:
    if value is True:
        return [name]
    return [word for text in _texts(value, spell) for word in (name, text)]


def _texts(value: Any, spell: Callable[[Any], str] = str) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [spell(getattr(each, "value", each)) for each in values]


def _without_folders(value: Any) -> str:
    # Provenance is published with a trace: it must not show folders of this machine.
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value)
