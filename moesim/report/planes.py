"""Planes of settings: whether a claim holds in each, and the border between both sides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from moesim.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLANE_LEGEND", "by_side", "draw_plane", "side", "spread"]

_T = TypeVar("_T")

PLANE_LEGEND: Final = (
    "Blue: above zero. Red: below. Hatched: the 95 % interval contains zero. The black line "
    "separates settings whose intervals lie on different sides."
)


def side(value: Estimate | None) -> int:
    """Return 1 or -1 if an interval lies above or below zero, and else 0."""
    if value is None or not value.defined or value.half is None:
        return 0
    return int(value.low > 0) - int(value.high < 0)


def by_side(
    values: Sequence[_T], estimates: Sequence[Estimate | None]
) -> tuple[list[_T], list[_T]]:
    """Return the values whose interval lies below zero, and those whose interval lies above."""
    sides = [side(estimate) for estimate in estimates]
    below, above = (
        [value for value, where in zip(values, sides, strict=True) if where == wanted]
        for wanted in (-1, 1)
    )
    return below, above


def spread(value: Estimate, digits: int = 1) -> str:
    """Return a signed mean and half its interval as text."""
    return f"{value.mean:+.{digits}f} ± {value.half or 0:.{digits}f}"


def draw_plane(
    axes: Axes,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[Estimate | None]],
    *,
    most: float,
    digits: int = 0,
    size: float = 5.5,
) -> None:
    """Draw `values[row][column]` as cells with their means, and the border between both sides.

    `most` is the value of the darkest colour. None leaves a cell empty.
    """
    means = np.array([[np.nan if v is None else v.mean for v in row] for row in values])
    axes.pcolormesh(means, cmap="RdBu", vmin=-most, vmax=most, edgecolors="white", linewidth=0.4)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            dark = abs(value.mean) > 0.65 * most
            axes.text(
                x + 0.5, y + 0.5, f"{value.mean:+.{digits}f}", ha="center", va="center",
                fontsize=size, color="white" if dark else "black",
            )  # fmt: skip
            if not side(value):
                axes.fill_between(
                    [x, x + 1], y, y + 1, facecolor="none", hatch="////", edgecolor="#666666",
                    linewidth=0,
                )  # fmt: skip
    for line in _border([[side(value) for value in row] for row in values]):
        axes.plot(*line, color="black", linewidth=1.8, solid_capstyle="round")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(0, len(rows))
    axes.tick_params(length=0, labelsize=6.5)
    axes.grid(False)


Line = tuple[list[float], list[float]]


def _border(sides: Sequence[Sequence[int]]) -> list[Line]:
    """Return the lines between decided cells of different sides, through the undecided ones.

    Along a row or a column, the border lies in the middle between the last cell of one side and the
    next of the other.
    """
    height, width = len(sides), len(sides[0])
    lines: list[Line] = []
    for y in range(height):
        for middle in _changes([sides[y][x] for x in range(width)]):
            lines.append(([middle, middle], [y, y + 1]))
    for x in range(width):
        for middle in _changes([sides[y][x] for y in range(height)]):
            lines.append(([x, x + 1], [middle, middle]))
    return lines


def _changes(line: Sequence[int]) -> list[float]:
    """Return the places in a line of cells where the side changes."""
    decided = [(place, value) for place, value in enumerate(line) if value]
    return [
        (first + second + 1) / 2
        for (first, before), (second, after) in pairwise(decided)
        if before != after
    ]
