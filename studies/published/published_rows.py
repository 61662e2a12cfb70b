"""Rows of published figures beside moesim's, and how they are written.

A row is *fitted* if its published figure chose a number of the model, and *predicted* if it chose
none. Rows that moesim cannot compute say what is missing, and have no figure of moesim.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

__all__ = ["Kind", "Row", "median_error", "table"]

Kind = Literal["fitted", "predicted", "missing"]
_POINTS: Final = ("%", "points")


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure. `what` says of what it is, `ours` is moesim's, `note` says why.

    Rows of one `group` are summarised together.

    Figures in % and in points are compared in points, others in per cent of the published one.
    """

    table: str
    source: str
    what: str
    unit: str
    published: float
    ours: float | None
    kind: Kind
    note: str = ""
    group: str = ""

    @property
    def in_points(self) -> bool:
        """Return whether the error is a difference in points."""
        return self.unit in _POINTS

    @property
    def error(self) -> float | None:
        """Return moesim's error in points or per cent, or None without a figure."""
        if self.ours is None:
            return None
        difference = self.ours - self.published
        return difference if self.in_points else 100 * difference / self.published

    @property
    def relative_pct(self) -> float | None:
        """Return the error in per cent of the published figure, whatever the unit."""
        return None if self.ours is None else 100 * (self.ours - self.published) / self.published

    @property
    def error_text(self) -> str:
        """Return the error with its sign and unit."""
        if self.error is None:
            return ""
        return f"{self.error:+.1f} {'points' if self.in_points else '%'}"


def median_error(rows: Iterable[Row], kind: Kind = "predicted") -> float | None:
    """Return the median of the errors' sizes over rows of a kind; None without any."""
    sizes = [abs(row.error) for row in rows if row.kind == kind and row.error is not None]
    return median(sizes) if sizes else None


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| of | published | ours | error | kind | note |", "|---|--:|--:|--:|---|---|"]
    for row in rows:
        ours = "" if row.ours is None else f"{row.ours:.4g}"
        cells = (
            row.what, f"{row.published:.4g} {row.unit}", ours, row.error_text, row.kind, row.note,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
