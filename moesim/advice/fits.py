"""Fits: a simulated time as an expression that is checked against further simulations.

The time of a step under a fixed placement is a sum over layers of fixed times and of bytes over
bandwidths. So it is affine in the number of layers on the CPU, in each 1/bandwidth, and between
windows of attention in the context. A few simulations give the coefficients. Where a further one
differs by more than 0.1 %, a variable stays at the value of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from moesim.advice.expression import Expression, affine, evaluate, table
from moesim.advice.samples import BANDWIDTHS, Setting

__all__ = [
    "TOLERANCE",
    "Formula",
    "Range",
    "Ranges",
    "Sample",
    "Space",
    "candidates_of",
    "corners_of",
    "fitted",
    "layers_table",
    "middle_of",
    "more_knots",
    "range_of",
    "shifted",
]

TOLERANCE: Final = 0.001
"""The largest relative error of a formula at a simulated setting."""
_FACTORS: Final = (3.0, 1.5)
"""By how much a bandwidth may change, the widest range that holds first."""
_PARTS: Final = 8
"""Groups of layers that a table of layers tells apart, about."""
Sample = Callable[[Setting], float]
Range = tuple[float, float]
Ranges = Mapping[str, Range]
Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Formula:
    """An expression, the range of each variable in which it holds, and its largest known error."""

    expression: Expression
    holds: Ranges
    errors: list[float] = field(default_factory=list, compare=False)

    def check(self, setting: Setting, simulated: float) -> float:
        """Keep and return the relative error at a simulated setting."""
        error = abs(evaluate(self.expression, setting) / simulated - 1)
        self.errors.append(error)
        return error

    @property
    def error(self) -> float:
        """The largest relative error at a simulated setting."""
        return max(self.errors, default=0.0)

    def plain(self) -> dict[str, Any]:
        """Return the formula as plain data."""
        holds = {name: list(ends) for name, ends in self.holds.items()}
        return {"expression": self.expression, "holds": holds}


@dataclass(frozen=True)
class Space:
    """The setting of the question, with `n`, and the ranges of its variables.

    A variable whose range has one value does not vary. `layers` is what a time is affine in, by
    `n`: with several sequences, layers differ in the experts that all tokens need together.
    """

    base: Setting
    ranges: Ranges
    layers: Expression = "n"

    def varies(self, name: str) -> bool:
        """Return whether a variable may change."""
        return name in self.ranges and self.ranges[name][0] < self.ranges[name][1]

    def start(self) -> dict[str, float]:
        """Return the setting with all experts on the GPU, if their number may change."""
        return {**self.base, "n": 0} if self.varies("n") else dict(self.base)

    def far(self, name: str) -> float:
        """Return the end of a range that changes the time most: most layers, least bandwidth."""
        low, high = self.ranges[name]
        return low if name in BANDWIDTHS and low < self.base[name] else high

    def factor(self, name: str, value: float) -> float:
        """Return what a time is affine in: a number of layers, or the base over a bandwidth."""
        return evaluate(self.symbol(name), {name: value})

    def symbol(self, name: str) -> Expression:
        """Return `factor` as an expression."""
        if name == "n":
            return self.layers
        return ["/", self.base[name], name] if name in BANDWIDTHS else name


def fitted(sample: Sample, space: Space, monomials: Iterable[Monomial]) -> list[Expression]:
    """Return the terms of a time that is a sum of coefficients times monomials, fitted exactly.

    Each monomial names variables whose factors are multiplied. There is a simulation for each,
    with its variables at the far end of their ranges.
    """
    kept = list(dict.fromkeys(tuple(filter(space.varies, each)) for each in monomials))
    points = [{**space.start(), **{name: space.far(name) for name in each}} for each in kept]
    matrix = [
        [prod(space.factor(name, point[name]) for name in each) for each in kept]
        for point in points
    ]
    times = [sample(point) for point in points]
    solved = np.linalg.solve(np.array(matrix, dtype=float), np.array(times))
    terms = [
        (float(value), [space.symbol(name) for name in each])
        for value, each in zip(solved, kept, strict=True)
    ]
    constant = sum(value for value, symbols in terms if not symbols)
    whole = affine(constant, [term for term in terms if term[1]])
    return whole[1:] if isinstance(whole, list) else [whole]


def shifted(
    sample: Sample, reference: Sample, space: Space, knots: Sequence[float], bandwidth: str
) -> list[Expression]:
    """Return the terms of what another context and other KV entries add to a time.

    `reference` has the KV entries that the time was fitted with, `sample` the others. `knots` are
    contexts between which times are affine, `bandwidth` is that of the memory with the KV cache.
    """
    points = [{**space.base, "context": knot} for knot in knots]
    near = [sample(point) - reference(space.base) for point in points]
    if not space.varies(bandwidth):
        return [table("context", list(zip(knots, near, strict=True)))]
    slow = {bandwidth: space.far(bandwidth)}
    start = reference({**space.base, **slow})
    factor = space.factor(bandwidth, slow[bandwidth]) - 1
    slopes = [
        (sample({**point, **slow}) - start - time) / factor
        for point, time in zip(points, near, strict=True)
    ]
    rest = [time - slope for time, slope in zip(near, slopes, strict=True)]
    return [
        table("context", list(zip(knots, rest, strict=True))),
        ["*", table("context", list(zip(knots, slopes, strict=True))), space.symbol(bandwidth)],
    ]


def layers_table(sample: Sample, start: Setting, every: int) -> Expression:
    """Return layers on the CPU, each counted by the time that it adds at a setting."""
    step = max(1, every // _PARTS)
    numbers = sorted({*range(0, every, step), every})
    times = [sample({**start, "n": number}) for number in numbers]
    scale = every / (times[-1] - times[0])
    return table(
        "n", [(n, scale * (time - times[0])) for n, time in zip(numbers, times, strict=True)]
    )


def range_of(sample: Sample, base: Setting, name: str, candidates: Sequence[Range]) -> Range:
    """Return the first range in which a time is affine in a variable, or the base alone."""
    for low, high in candidates:
        inverse = name in BANDWIDTHS
        middle = (low * high) ** 0.5 if inverse else round((low + high) / 2)
        ends = [sample({**base, name: value}) for value in (low, middle, high)]
        x, x0, x1 = ((1 / v if inverse else v) for v in (middle, low, high))
        line = ends[0] + (ends[2] - ends[0]) * (x - x0) / (x1 - x0)
        if abs(line / ends[1] - 1) <= TOLERANCE / 2:
            return low, high
    return base[name], base[name]


def candidates_of(value: float, most: float | None = None) -> list[Range]:
    """Return the ranges that are tried for a bandwidth, of which `most` can be read at once."""
    ranges = []
    for factor in _FACTORS:
        high = value * factor if most is None or most <= value else min(most, value * factor)
        ranges.append((value / factor, high))
    least, most = ranges[0]
    return [*ranges, (least, value), (value, most)]


def middle_of(space: Space) -> dict[str, float]:
    """Return a setting between the ends of all ranges."""
    found = dict(space.base)
    for name, (low, high) in space.ranges.items():
        if space.varies(name):
            middle = (low * high) ** 0.5 if name in BANDWIDTHS else low + (high - low) // 3
            found[name] = middle
    return found


def corners_of(space: Space) -> list[dict[str, float]]:
    """Return two settings at the ends of all ranges, and some layers on the CPU in each."""
    low, high = space.ranges["n"]
    layers = [low + (high - low) // 3, low + 2 * (high - low) // 3]
    ends: list[dict[str, float]] = [{}, {}]
    for number, (name, (least, most)) in enumerate(space.ranges.items()):
        for corner, end in zip(ends, (number, number + 1), strict=True):
            corner[name] = most if end % 2 else least
    return [{**space.base, **end, "n": n} for end, n in zip(ends, layers, strict=True)]


def more_knots(knots: Sequence[float]) -> list[float]:
    """Return contexts with others between them, about twice as long each."""
    found = list(knots[:1])
    for end in knots[1:]:
        while found[-1] * 2 < end:
            found.append(found[-1] * 2)
        found.append(end)
    return found
