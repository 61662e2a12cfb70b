"""The parts of a page: tables, plots with choices, and the sections that hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from moesim.report.metrics import number
from moesim.report.tabular import Cell, Table

__all__ = ["Block", "Choice", "Code", "DataCell", "DataTable", "Facts", "Hidden", "Page"]
__all__ += ["Paragraph", "Plot", "Section", "Side", "from_table", "number_cell", "text"]

NARROW: Final = 26
"""Characters of a text that stays on one line."""
MOST_ROWS: Final = 200
"""The most rows of the table of a plot; longer ones are thinned, and the table says so."""


@dataclass(frozen=True, slots=True)
class DataCell:
    """A text, the number that it is sorted by (None: the text), its mark, and an anchor."""

    text: str
    value: float | None = None
    mark: str = ""
    href: str = ""

    @property
    def width(self) -> str:
        """Return a class for a text that needs room, so that it is not broken at every word."""
        return " wide" if len(self.text) > NARROW else ""


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table with a caption; the first cell of a row is its heading.

    Only a table with `interactive` is sorted and filtered by the reader. `anchors` are the ids of
    its rows, which other tables link to.
    """

    kind: ClassVar = "table"
    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[DataCell]]
    interactive: bool = False
    note: str = ""
    anchors: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A list from which the reader chooses the value of a field; a plot shows the rows with it."""

    field: str
    label: str
    options: tuple[str, ...]

    @property
    def first(self) -> str:
        """Return the option that is chosen when the page opens."""
        return self.options[0]

    @property
    def several(self) -> bool:
        """Return whether there is anything to choose."""
        return len(self.options) > 1


@dataclass(frozen=True, slots=True)
class Plot:
    """A Vega-Lite specification, its rows, and the columns of the table that says the same.

    The specification names its data `rows`. In its titles, `{field}` stands for what the reader
    chose for a field. `summary` is what a screen reader says instead of the picture.
    """

    kind: ClassVar = "plot"
    name: str
    title: str
    summary: str
    caption: str
    spec: Mapping[str, Any]
    fields: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    columns: Mapping[str, str]
    choices: tuple[Choice, ...] = ()
    longest_label: int = 0
    """Characters of the longest legend entry; 0 without a legend."""
    rising: tuple[str, int] | None = None
    """The field whose values are the rows of the picture, and the pixels of each row."""

    @property
    def table(self) -> DataTable:
        """Return the rows of the first choices as a table."""
        places = [self.fields.index(name) for name in self.columns]
        wanted = [(self.fields.index(choice.field), choice.first) for choice in self.choices]
        chosen = [row for row in self.rows if all(row[at] == value for at, value in wanted)]
        shown = chosen[:: math.ceil(len(chosen) / MOST_ROWS) or 1]
        note = f"{len(shown)} of {len(chosen)} rows, at even steps" if shown != chosen else ""
        rows = [[_cell(row[place]) for place in places] for row in shown]
        caption = f"{self.title}: the numbers of the plot"
        return DataTable(f"{self.name}-data", caption, list(self.columns.values()), rows, note=note)

    @property
    def payload(self) -> dict[str, Any]:
        """Return what the script of the page needs, ready for JSON.

        A text stands once among the levels of its field, and its rows hold its place there.
        """
        levels = {field: _levels(self.rows, place) for place, field in enumerate(self.fields)}
        places = [
            {text: place for place, text in enumerate(levels[field])} for field in self.fields
        ]
        return {
            "spec": self.spec,
            "fields": self.fields,
            "levels": {field: texts for field, texts in levels.items() if texts},
            "rows": [
                [
                    of.get(value) if of else _plain(value)
                    for of, value in zip(places, row, strict=True)
                ]
                for row in self.rows
            ],
            "columns": list(self.columns),
            "choices": {choice.field: choice.first for choice in self.choices},
            "longest": self.longest_label,
            "most": MOST_ROWS,
            "rising": self.rising,
        }


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or two."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms with their values, and the tag of each value ("" for none)."""

    kind: ClassVar = "facts"
    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Code:
    """A command or a file, as it is typed."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True, slots=True)
class Side:
    """Blocks beside each other where the window is wide enough."""

    kind: ClassVar = "side"
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Hidden:
    """Blocks that the reader unfolds."""

    kind: ClassVar = "hidden"
    label: str
    blocks: Sequence[Block]


Block = DataTable | Plot | Paragraph | Facts | Code | Side | Hidden


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its blocks; `name` is the anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows: a title with its mark, the verdict, what to know first, and sections."""

    title: str
    mark: str
    lead: str
    reasons: Sequence[str]
    warnings: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]


def number_cell(value: float, mark: str = "", digits: str = "") -> DataCell:
    """Return a cell with four significant digits that is sorted by its full value."""
    shown = digits or number(value)
    return DataCell(shown, None if math.isnan(value) else value, mark)


def text(value: Any) -> str:
    """Return a value of a plot's row as text; "" for None."""
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def from_table(name: str, table: Table) -> DataTable:
    """Return a table of the terminal, cell by cell as it is printed there.

    Without headers, its cells are sentences.
    """
    words = "" if any(table.columns) else "text"
    rows = [[_printed(cell, words) for cell in row] for row in table.rows]
    return DataTable(name, table.title, list(table.columns), rows)


def _printed(cell: Cell, words: str) -> DataCell:
    return DataCell(cell.text.rstrip(), None, cell.mark or words)  # spaces in front indent


def _cell(value: Any) -> DataCell:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return DataCell(text(value), float(value) if numeric and value == value else None)


def _levels(rows: Sequence[tuple[Any, ...]], place: int) -> list[str]:
    """Return the different values of a field, if all are text; [] otherwise."""
    values = dict.fromkeys(row[place] for row in rows)
    return list(values) if all(isinstance(value, str) for value in values) else []


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: six significant digits, and None for NaN."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
