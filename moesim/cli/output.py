"""What commands print for programs to read."""

from __future__ import annotations

import json
import math
from typing import Any

import typer

__all__ = ["echo_json"]


def echo_json(value: Any) -> None:
    """Print `value` as the one JSON document on stdout; what is undefined (NaN) is null."""
    typer.echo(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
