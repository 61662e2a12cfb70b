"""`moesim schema`: what can be shown without a simulation."""

from __future__ import annotations

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(schema)


def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from moesim.scenario import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
