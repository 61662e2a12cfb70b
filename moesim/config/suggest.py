"""The hint of every message about an unknown name: the nearest name that exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["suggest"]

_CUTOFF = 0.5


def suggest(word: str, names: Iterable[str], *, rest: str = "") -> str:
    """Return `"; did you mean 'x'?"` for the name nearest to `word`.

    Case and `-` or `_` make no difference. Where no name is near, return `rest` followed by all
    names, or nothing if `rest` is empty.
    """
    spellings = {_plain(name): name for name in names}
    near = difflib.get_close_matches(_plain(word), spellings, 1, _CUTOFF)
    if near:
        return f"; did you mean {spellings[near[0]]!r}?"
    return f"; {rest} {', '.join(spellings.values()) or 'none'}" if rest else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
