"""Expressions: arithmetic as plain data, which Python and a browser evaluate alike.

An expression is a number, the name of a variable, or a list: an operation and its arguments.
Operations are `+`, `*`, `/`, `min`, `max`, `floor`, and `interp`, which is a table of points that
straight lines join: `["interp", x, [x0, x1, ...], [y0, y1, ...]]`, with rising x. Outside of the
table its first and last lines extend.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import floor, prod
from typing import TypeAlias, Union

__all__ = ["Expression", "affine", "evaluate", "table", "variables_of"]

Expression: TypeAlias = Union[float, int, str, list["Expression"]]  # noqa: UP007 (it is recursive)


def evaluate(expression: Expression, values: Mapping[str, float]) -> float:
    """Return the value of an expression. Raise KeyError for an unknown variable or operation."""
    if isinstance(expression, str):
        return values[expression]
    if not isinstance(expression, list):
        return expression
    name, *arguments = expression
    if name == "interp":
        x, xs, ys = arguments
        assert isinstance(xs, list)
        assert isinstance(ys, list)
        return _interpolated(evaluate(x, values), _numbers(xs), _numbers(ys))
    numbers = [evaluate(argument, values) for argument in arguments]
    match name:
        case "+":
            return sum(numbers)
        case "*":
            return prod(numbers)
        case "/":
            return numbers[0] / numbers[1]
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
        case "floor":
            return floor(numbers[0])
    raise KeyError(name)


def _numbers(values: Sequence[Expression]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    if len(xs) == 1:
        return ys[0]
    place = min(max(bisect_right(xs, x) - 1, 0), len(xs) - 2)
    share = (x - xs[place]) / (xs[place + 1] - xs[place])
    return ys[place] + share * (ys[place + 1] - ys[place])


def affine(constant: float, terms: Sequence[tuple[float, Sequence[Expression]]]) -> Expression:
    """Return a constant plus terms, each a number times a product; terms of 0 are left out."""
    products: list[Expression] = [
        ["*", factor, *others] if others else factor for factor, others in terms if factor
    ]
    return ["+", constant, *products] if products else constant


def table(variable: str, points: Sequence[tuple[float, float]]) -> Expression:
    """Return the table of points, without those that lie on the line of their neighbours."""
    kept: list[tuple[float, float]] = []
    for number, point in enumerate(points):
        if len(kept) and number + 1 < len(points) and _on_line(kept[-1], point, points[number + 1]):
            continue
        kept.append(point)
    if len({y for _, y in kept}) == 1:
        return kept[0][1]
    return ["interp", variable, [x for x, _ in kept], [y for _, y in kept]]


def _on_line(
    before: tuple[float, float], point: tuple[float, float], after: tuple[float, float]
) -> bool:
    """Return whether a point is on the line of two others; exact for integers."""
    return (point[1] - before[1]) * (after[0] - before[0]) == (after[1] - before[1]) * (
        point[0] - before[0]
    )


def variables_of(expression: Expression) -> set[str]:
    """Return the names of the variables of an expression."""
    if isinstance(expression, str):
        return {expression}
    if not isinstance(expression, list):
        return set()
    return set().union(*map(variables_of, expression[1:]))
