"""What a scenario can name: the lists of `moesim list` as pages."""

from __future__ import annotations

import json
from typing import Any

from markdown_table import cell, table
from typer.testing import CliRunner

from moesim.cli import app
from moesim.config.units import format_bytes

Listing = dict[str, dict[str, Any]]


def listing(*arguments: str) -> Listing:
    """Return what a command prints as JSON."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    if done.exit_code:
        raise RuntimeError(f"moesim {' '.join(arguments)} fails: {done.output}")
    found: Listing = json.loads(done.stdout)
    return found


def figures(title: str, kind: str, use: str) -> str:
    """Return a page with a table of figures and their sources for each entry of a list."""
    parts = [_head(title, f"moesim list {kind}", use)]
    for name, about in listing("list", kind).items():
        rows = [
            (f"`{key}`", cell(one["value"]), one["kind"], cell(one.get("source", "")))
            for key, one in about["figures"].items()
        ]
        parts.append(f"## `{name}`\n\n{about.get('about') or about.get('name', '')}\n")
        parts += [table(("figure", "value", "kind", "source"), rows)] if rows else []
    return "\n".join(parts)


def rows(title: str, kind: str, use: str) -> str:
    """Return a page with one table, a row for each entry; sources are numbered below it."""
    found = listing("list", kind)
    keys = list(dict.fromkeys(key for about in found.values() for key in about))
    keys = [key for key in keys if key != "aliases"]
    sources: dict[str, int] = {}

    def shown(key: str, value: Any) -> str:
        if value and key.endswith("source"):
            return f"[{sources.setdefault(str(value), len(sources) + 1)}]"
        return cell(_value(key, value))

    body = [
        (f"`{name}`", *(shown(key, one.get(key)) for key in keys)) for name, one in found.items()
    ]
    text = _head(title, f"moesim list {kind}", use) + "\n"
    text += table(("name", *map(_column, keys)), body)
    listed = [f"{number}. {source}" for source, number in sources.items()]
    names = [
        f"- `{name}`: {cell(', '.join(one['aliases']))}"
        for name, one in found.items()
        if one.get("aliases")
    ]
    return text + _section("Sources", listed) + _section("Other names", names)


def systems(title: str, use: str) -> str:
    """Return a page of the offloading systems: what each sets, from where, what it leaves out."""
    parts = [_head(title, "moesim list systems", use)]
    for name, about in listing("list", "systems").items():
        sets = about["sets"].items()
        body = [(f"`{key}`", f"`{one['value']}`", cell(one["source"])) for key, one in sets]
        parts.append(f"## `{name}`\n\n{about['about']}\nSource: {about['source']}\n")
        parts.append(table(("key", "value", "source"), body))
        left = "\n".join(f"- {one}" for one in about["cannot_express"])
        parts += [f"Left out:\n\n{left}\n"] if left else []
    return "\n".join(parts)


def _head(title: str, command: str, use: str) -> str:
    return (
        f"# {title}\n\nMade from the code; `{command}` prints the same. "
        f"A scenario names one with `{use}`.\n"
    )


def _section(title: str, lines: list[str]) -> str:
    return "\n".join(("", f"## {title}", "", *lines, "")) if lines else ""


def _column(key: str) -> str:
    for ending, name in (("_bytes_per_s", " (GB/s)"), ("_bytes", ""), ("_per_s", " (T/s)")):
        if key.endswith(ending):
            return key.removesuffix(ending).replace("_", " ") + name
    return key.replace("_", " ").replace("num ", "")


def _value(key: str, value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key.endswith("_bytes"):
        return format_bytes(value)
    for ending, scale in (("_bytes_per_s", 1e9), ("_per_s", 1e12)):
        if key.endswith(ending):
            return f"{value / scale:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
