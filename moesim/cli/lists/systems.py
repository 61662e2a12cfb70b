"""The list of systems: what each preset sets, from which source, and what it cannot express."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import typer

from moesim.cli.lists.kind import Listing

if TYPE_CHECKING:
    from moesim.systems import Preset

__all__ = ["show_system", "show_systems", "systems"]

_WIDTH = 110


def systems() -> Listing:
    """Return each preset with its settings and their sources."""
    from moesim.systems import load_preset, system_names

    return {name: load_preset(name).model_dump() for name in system_names()}


def show_systems(listing: Listing) -> None:
    """Print one line for each system, or all of a single one."""
    from moesim.systems import load_preset

    _show_all([load_preset(name) for name in listing])


def show_system(name: str) -> None:
    """Print all keys of one system, their sources, and what is left out."""
    from moesim.systems import load_preset

    _show(load_preset(name))


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
    typer.echo("\n`moesim list systems NAME` has all keys, their sources, and what is left out.")


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
