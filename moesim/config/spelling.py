"""Values of a scenario as text: on one line, uncut, and different for different values.

The spelling is YAML's: `null`, `true`, `4`, `[1, 2]`. Text is put in quotation marks, as in JSON,
if it could be read as another value or contains characters that separate values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["entries", "exact", "looks_like_data", "shortest_tails", "spelled"]

_BREAKS: Final = re.compile(r"[\s,;=\"'`|()\[\]{}]")
"""Characters that end a value in the texts around it, like `a = 1, b = 2` or `(a 1 b 2)`."""


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
    """Return a value as a field of a CSV file or a part of a command.

    Text stays as it is, unless it could be read as other data. Other values are written as JSON.
    """
    if not isinstance(value, str):
        return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    clear = value.isprintable() and not value.startswith('"') and not looks_like_data(value)
    return value if value and clear else _quoted(value)


def _quoted(text: str) -> str:
    """Return a text in quotation marks, with escapes for characters that cannot be printed."""
    inner = json.dumps(text, ensure_ascii=False)  # leaves most unprintable characters
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in inner)


def looks_like_data(text: str) -> bool:
    """Return whether a text reads as a number, list, mapping, quoted text, true, false or null."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # too many brackets to be a value
        return False
    return True


def shortest_tails(keys: Sequence[str]) -> dict[str, str]:
    """Return for each dotted key its last parts: as few as distinguish it from the other keys."""
    return {key: _tail(key, [_parts(other) for other in keys if other != key]) for key in keys}


def _tail(key: str, others: Sequence[list[str]]) -> str:
    """Return the shortest tail of a key that no other key ends with, or the whole key."""
    parts = _parts(key)
    for length in range(1, len(parts)):
        if all(other[-length:] != parts[-length:] for other in others):
            return ".".join(parts[-length:])
    return key if parts in others else ".".join(parts)


def _parts(key: str) -> list[str]:
    """Return the parts of a key without those that say nothing, like `options`."""
    return [part for part in key.split(".") if part not in ("options", "policy", "kind")] or [key]
