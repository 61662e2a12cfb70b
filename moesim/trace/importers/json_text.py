"""Checks on JSON that a parser leaves out: a key that is given twice keeps only its last value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moesim.errors import SourceError, shown

__all__ = ["check_keys", "integers", "numbers"]


def check_keys(path: Path, where: str, text: str) -> None:
    """Raise `SourceError` where an object of a JSON text has a key twice."""

    def pairs(items: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in items]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise SourceError(path, where, f"has the key {twice!r} twice")

    try:
        json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise SourceError(path, where, f"is not readable JSON ({error})") from None


def integers(value: Any, path: Path, where: str, name: str, most: int) -> list[int]:
    """Return a JSON list of whole numbers from -1 to `most`. Raise `SourceError` otherwise."""
    if not isinstance(value, list):
        raise SourceError(path, where, f"{name} must be a list of ids, not {shown(value)}")
    for item in value:
        if type(item) is not int or not -1 <= item <= most:
            raise SourceError(
                path, where, f"{name} must hold whole numbers from -1 to {most}, not {shown(item)}"
            )
    return value


def numbers(value: Any, path: Path, where: str, name: str) -> list[float]:
    """Return a JSON list of numbers from 0 to 65504. Raise `SourceError` otherwise."""
    if not isinstance(value, list):
        raise SourceError(path, where, f"{name} must be a list of weights, not {shown(value)}")
    for item in value:
        if type(item) not in (int, float) or not 0 <= item <= 65_504:
            raise SourceError(
                path, where, f"{name} must hold numbers from 0 to 65504, not {shown(item)}"
            )
    return [float(item) for item in value]
