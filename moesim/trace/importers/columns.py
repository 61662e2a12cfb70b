"""Rows of comma-separated text, with strict numbers and the place of each mistake."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moesim.errors import SourceError, shown
from moesim.progress import Counter
from moesim.trace.importers.source import lines_of

__all__ = ["Row", "rows_of", "split_header"]

_LONGEST: Final = 9  # digits of a number: larger ones are no ids, layers or positions


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: its cells by column name."""

    path: Path
    line: int
    cells: dict[str, str]

    def whole(self, name: str) -> int:
        """Return a cell as a whole number of at most nine digits, not negative."""
        return self.digits(name, self.cells[name])

    def wholes(self, name: str) -> list[int]:
        """Return a cell of whole numbers that spaces separate."""
        return [self.digits(name, part) for part in self.cells[name].split()]

    def number(self, name: str) -> float:
        """Return a cell as a number from 0 to 65504."""
        return self.decimal(name, self.cells[name])

    def decimals(self, name: str) -> list[float]:
        """Return a cell of numbers that spaces separate."""
        return [self.decimal(name, part) for part in self.cells[name].split()]

    def digits(self, name: str, text: str) -> int:
        """Return `text` as a whole number."""
        if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST):
            raise self.error(f"{name} must be a whole number, not {shown(text)}")
        return int(text)

    def decimal(self, name: str, text: str) -> float:
        """Return `text` as a number."""
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not 0 <= value <= 65_504:
            raise self.error(f"{name} must be a number from 0 to 65504, not {shown(text)}")
        return value

    def error(self, reason: str) -> SourceError:
        """Return the error about this line."""
        return SourceError(self.path, f"line {self.line}", reason)


def split_header(line: str) -> tuple[str, ...]:
    """Return the column names of a header line."""
    return tuple(name.strip() for name in line.split(","))


def rows_of(
    path: Path, columns: tuple[str, ...] | None = None, progress: Counter | None = None
) -> Iterator[Row]:
    """Yield the rows of a table after its header, or from the first line if `columns` names them.

    `progress(done, total)` counts lines.

    Raises:
        SourceError: the file is no text, or a line has more or fewer cells than there are columns.
    """
    names = columns
    for line, text in lines_of(path, progress):
        cells = text.split(",")
        if names is None:
            names = split_header(text)
            _check_names(path, names)
            continue
        if len(cells) != len(names):
            raise SourceError(
                path,
                f"line {line}",
                f"has {len(cells)} cells, and {len(names)} were expected: {','.join(names)}",
            )
        yield Row(path, line, dict(zip(names, (cell.strip() for cell in cells), strict=True)))


def _check_names(path: Path, names: tuple[str, ...]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(path, "line 1", f"names the column {twice!r} twice")
