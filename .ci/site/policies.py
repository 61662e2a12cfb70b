"""Every policy: what it does, its options, and whether it knows the future."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lists import listing
from markdown_table import cell, table

from moesim.policies import find

HEAD = """# Policies

Every policy that a scenario can name, made from the code. `moesim list policies` prints the same.
A policy that *knows the future* is a bound: reports mark it and rank it nowhere.
[A policy of your own](../howto/policy.md) takes one file.
"""


def page() -> str:
    """Return a table for each family."""
    parts = [HEAD]
    for family, found in listing("list", "policies").items():
        rows = [_row(family, name, about) for name, about in found.items()]
        head = ("policy", "what it does", "options and defaults", "")
        parts.append(f"## {family}\n\n{table(head, rows)}")
    return "\n".join(parts)


def _row(family: str, name: str, about: Mapping[str, Any]) -> tuple[str, str, str, str]:
    options = ", ".join(f"`{key}: {value}`" for key, value in about["options"].items())
    knows = getattr(find(family, name), "clairvoyant", False) is True
    what = cell(about["what"])
    return f"`{name}`", what, cell(options), "knows the future" if knows else ""
