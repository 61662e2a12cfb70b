"""Paths on the command line: `~` is the home folder, and impossible paths are refused.

A shell expands `--out ~/x` but leaves `--out=~/x` as it is; here both mean the same. A name that is
too long for the file system, or a link to itself, is refused before a command uses it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import typer

from moesim.errors import UsageError
from moesim.files import as_path

__all__ = ["App"]

F = TypeVar("F", bound=Callable[..., Any])

_IMPOSSIBLE: Final = (errno.ENAMETOOLONG, errno.ELOOP)


class App(typer.Typer):
    """A typer application that resolves and checks the paths of all its commands."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a command, as `typer.Typer` does."""
        register = super().command(name, **options)

        def decorate(function: F) -> F:
            register(_with_paths(function))
            return function

        return decorate


def _with_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    # typer reads the options from the signature, which `wraps` keeps.
    @wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**{name: _resolved(value) for name, value in arguments.items()})

    return call


def _resolved(value: Any) -> Any:
    """Return a path, or each path of a list, with `~` expanded; return other values unchanged."""
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if not isinstance(value, Path):
        return value
    path = as_path(value)
    try:
        os.stat(path)  # a missing file is fine here: the command may be about to write it
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
            raise UsageError(f"{shown}: cannot be a path: {error.strerror}") from None
    return path
