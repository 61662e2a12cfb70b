"""The Python API as directives of mkdocstrings, which writes the docstrings of the code."""

from __future__ import annotations

import moesim
from moesim import policies

HEAD = """# Python API

`import moesim` is fast: names resolve when they are first used. Each entry is the docstring of the
code. Errors are subclasses of `MoesimError`.
"""
MEMBERS = {"Scenario": "    options: {members: false}\n"}
"""Options of mkdocstrings. Methods that only moesim's own modules call are left out."""


def page() -> str:
    """Return a directive for each public name of `moesim`, and for what policies import."""
    parts = [HEAD]
    own = ("View", "Policy", "Input", "register")
    for home, names in ((moesim, moesim.__all__), (policies, own)):
        parts.append(f"## `{home.__name__}`\n")
        parts += [_directive(home, name) for name in names if not name.startswith("__")]
    parts.append(
        "## `moesim.errors`\n\n::: moesim.errors\n    options: {show_root_heading: false}\n"
    )
    return "\n".join(parts)


def _directive(home: object, name: str) -> str:
    thing = getattr(home, name)
    module = getattr(thing, "__module__", None) or getattr(home, "__name__", "")
    return f"::: {module}.{getattr(thing, '__qualname__', name)}\n{MEMBERS.get(name, '')}"
