"""Paths on the command line, all treated alike: `~` is the home folder.

A shell expands `--out ~/x` and leaves `--out=~/x` as it is; here both mean the same. A name that no
file system can hold, or a link that leads to itself, is refused before any command looks at it.
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
    """An application whose commands take their paths as people mean them."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a command, as `typer.Typer` does."""
        register = super().command(name, **options)

        def decorate(function: F) -> F:
            register(_with_paths(function))
            return function

        return decorate


def _with_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**{name: _meant(value) for name, value in arguments.items()})

    return call


def _meant(value: Any) -> Any:
    """A path, or each path of a list, as the person means it; anything else as it is."""
    if isinstance(value, list):
        return [_meant(each) for each in value]
    if not isinstance(value, Path):
        return value
    path = as_path(value)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            shown = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
            raise UsageError(f"{shown}: cannot be a path: {error.strerror}") from None
    return path
