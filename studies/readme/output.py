"""Output of this folder's studies: progress, and figures with their intervals."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from moesim.report.statistics import Estimate

T = TypeVar("T")


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, and count them in a line on stderr."""
    for done, item in enumerate(items, 1):
        # On stderr, because stdout is the report.
        print(f"\r{what}: {done} of {len(items)} ", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


def spread(value: Estimate, *, digits: int = 2, scale: float = 1, sign: bool = False) -> str:
    """Return a mean and half its 95 % interval over seeds, as text."""
    text = f"{scale * value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.half is None else f"{text} ± {scale * value.half:.{digits}f}"


def interval(values: Iterable[float], *, digits: int = 2) -> str:
    """Return the range from the least to the largest value, as text."""
    numbers = list(values)
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f}"
