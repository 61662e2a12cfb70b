"""Output for programs: one JSON document on stdout."""

from __future__ import annotations

import json
import math
from typing import Any

import typer

__all__ = ["echo_json", "finite"]


def echo_json(value: Any) -> None:
    """Print `value` as JSON; numbers that are undefined (NaN) or infinite become null."""
    # JSON has no NaN: Python would write one, and other programs would refuse the document.
    typer.echo(json.dumps(finite(value), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """Return plain data with null for numbers that are undefined (NaN) or infinite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
