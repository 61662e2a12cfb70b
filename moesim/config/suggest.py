"""The hint in messages about an unknown name: the most similar name that exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near_names", "suggest"]

_CUTOFF = 0.5  # similarity as `difflib` measures it, from 0 to 1


def suggest(word: str, names: Iterable[str], *, rest: str = "") -> str:
    """Return `"; did you mean 'x'?"` for the name most similar to `word`.

    Case is ignored, and `-` equals `_`. Where no name is similar, return `rest` followed by all
    names, or nothing if `rest` is empty.
    """
    known = list(names)
    near = near_names(word, known, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {rest} {', '.join(known) or 'none'}" if rest else ""


def near_names(word: str, names: Iterable[str], most: int, cutoff: float = _CUTOFF) -> list[str]:
    """Return at most `most` names that are spelled like `word`, the most similar first.

    Case is ignored, and `-` equals `_`. `cutoff` is the least similarity, from 0 to 1.
    """
    spellings = {_plain(name): name for name in names}
    near = difflib.get_close_matches(_plain(word), spellings, most, cutoff)
    return [spellings[each] for each in near]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
