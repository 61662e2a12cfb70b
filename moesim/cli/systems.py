"""`moesim systems`: the presets of systems, what each sets, and what it cannot express."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moesim.systems import Preset

__all__ = ["register"]

_WIDTH = 110
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def register(app: typer.Typer) -> None:
    """Add the command of this file to the application."""
    app.command()(systems)


def systems(
    name: Annotated[
        str | None, typer.Argument(help="One system; default: all.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `system: NAME` of a scenario sets, from which source, and what it leaves out."""
    from moesim.cli.output import echo_json
    from moesim.systems import load_preset, system_names

    presets = [load_preset(each) for each in ([name] if name else system_names())]
    if as_json:
        echo_json({preset.name: preset.model_dump() for preset in presets})
    elif name:
        _show(presets[0])
    else:
        _show_all(presets)


def _show_all(presets: list[Preset]) -> None:
    """Print one line for each system; the engine and the placement come last."""
    from moesim.report.tabular import Table, write_tables

    policies = ("cache.policy", "cache.scope", "prefetch.policy", "batching.policy")
    keys = (*policies, "placement.policy", "engine.profile")
    table = Table("", ["system", *(_header(key) for key in keys), "left out"])
    for preset in presets:
        values = [_text(preset.sets[key].value) if key in preset.sets else "" for key in keys]
        table.add(preset.name, *values, str(len(preset.cannot_express)))
    write_tables([table])
    typer.echo("\n`moesim systems NAME` has all keys, their sources, and what is left out.")


def _header(key: str) -> str:
    section, _, last = key.partition(".")
    return section if last in ("policy", "profile") else last


def _show(preset: Preset) -> None:
    typer.echo(f"{preset.name}\n")
    _wrapped(preset.about)
    _wrapped(f"source: {preset.source}")
    typer.echo("\nsets")
    for key, setting in preset.sets.items():
        _wrapped(f"{key}: {_text(setting.value)}", "  ")
        _wrapped(setting.source, "      ")
        if setting.beside:
            _wrapped(f"left out where the scenario changes {', '.join(setting.beside)}", "      ")
    typer.echo("\ncannot express")
    for text in preset.cannot_express:
        _wrapped(text, "  - ", "    ")


def _wrapped(text: str, first: str = "", rest: str | None = None) -> None:
    indent = first if rest is None else rest
    words = " ".join(text.split())
    typer.echo(textwrap.fill(words, _WIDTH, initial_indent=first, subsequent_indent=indent))


def _text(value: Any) -> str:
    """Return a value as YAML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
