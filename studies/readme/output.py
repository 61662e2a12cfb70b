"""How the studies of this folder say how far they are, and how far a figure can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from moesim.report.statistics import Estimate

T = TypeVar("T")


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a line on stderr that counts them."""
    for done, item in enumerate(items, 1):
        print(f"\r{what}: {done} of {len(items)} ", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


def spread(value: Estimate, *, digits: int = 2, scale: float = 1, sign: bool = False) -> str:
    """A mean and half its 95 % interval over seeds."""
    text = f"{scale * value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {scale * value.half:.{digits}f}"


def interval(values: Iterable[float], *, digits: int = 2) -> str:
    """From the least to the most."""
    known = list(values)
    return f"{min(known):.{digits}f} to {max(known):.{digits}f}"
