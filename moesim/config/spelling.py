"""Values of a scenario as text: whole, on one line, and never the same text for two values.

YAML's words are used: `null`, `true`, `4`, `[1, 2]`. A text that could be mistaken for one of
these, or that would run into the text around it, stands in quotation marks, as in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["entries", "exact", "looks_like_data", "shortest_tails", "spelled"]

_BREAKS: Final = re.compile(r"[\s,;=\"'`|()\[\]{}]")
"""What ends a value in the text around it: `a = 1, b = 2` or `(a 1 b 2)`."""


def spelled(value: Any) -> str:
    """Return a value as a label shows it: `25GB/s`, `4`, `"4"`, `null`, `[a, b]`, `{a 1 b 2}`."""
    if isinstance(value, Mapping):
        return "{" + entries(value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    plain = value and not _BREAKS.search(value) and value.isprintable()
    return value if plain and not looks_like_data(value) else _quoted(value)


def entries(value: Mapping[Any, Any]) -> str:
    """Return a mapping's entries without braces: `a 1 b 2`."""
    return " ".join(f"{spelled(key)} {spelled(inner)}" for key, inner in value.items())


def exact(value: Any) -> str:
    """Return a value as a field of a CSV or part of a command: a text as it is, unless it could be
    mistaken for other data; everything else as JSON."""
    if not isinstance(value, str):
        return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    clear = value.isprintable() and not value.startswith('"') and not looks_like_data(value)
    return value if value and clear else _quoted(value)


def _quoted(text: str) -> str:
    """Return a text in quotation marks on one line; what cannot be printed as its number."""
    inner = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in inner)


def looks_like_data(text: str) -> bool:
    """Return whether a text is spelt as a number, a list, a mapping, true, false or null is."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def shortest_tails(keys: Sequence[str]) -> dict[str, str]:
    """Return for each dotted key its last parts, as few as tell it from the other keys."""
    return {key: _tail(key, [_parts(other) for other in keys if other != key]) for key in keys}


def _tail(key: str, others: Sequence[list[str]]) -> str:
    parts = _parts(key)
    for length in range(1, len(parts)):
        if all(other[-length:] != parts[-length:] for other in others):
            return ".".join(parts[-length:])
    return key if parts in others else ".".join(parts)


def _parts(key: str) -> list[str]:
    """The parts of a key that name something: `cache.options.window` is the cache's window."""
    return [part for part in key.split(".") if part not in ("options", "policy", "kind")] or [key]
