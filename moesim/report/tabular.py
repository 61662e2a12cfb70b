"""A table of text in three forms: in colour for a terminal, plain for a pipe, and Markdown."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

__all__ = ["Cell", "Table", "escaped", "fitted", "markdown", "plain", "with_tables", "write_tables"]

_MARK: Final = "<!-- table: {} -->"
_END: Final = "<!-- end -->"
_SIGNS: Final = {"best": " ▲", "better": " ▲", "worst": " ▼", "worse": " ▼"}
_MARKUP: Final = re.compile(r"[\\`*|\[<$~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_COLORS: Final = {"best": "green", "better": "green", "worst": "red", "worse": "red"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its mark: "best" or "worst" of a column, "better" or "worse" than the baseline,
    or ""."""

    text: str
    mark: str = ""


@dataclass(slots=True)
class Table:
    """A title, column headers and rows; the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str] = ()
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: str | Cell) -> None:
        """Add one row, with a cell for each column."""
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])


def plain(table: Table) -> str:
    """Return aligned text without markup; ▲ marks best or better, ▼ worst or worse."""
    widths = _widths(table)
    text = [table.title] if table.title else []
    for line in _lines(table):
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        text.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(text)


def fitted(table: Table, width: int) -> tuple[Table, str]:
    """Return a table of at most `width` characters if possible, and what it leaves out.

    Headers are broken into lines first. Then columns whose cells are all equal are left out. If the
    others are still too wide, each row becomes a record: its label, then a line for each column. A
    table without column headers stays as it is, because its cells are sentences, which may be
    broken.
    """
    if not any(table.columns) or not table.rows or _needed(table) <= width:
        return table, ""
    if _needed(broken := _broken(table)) <= width:
        return broken, ""
    equal = [place for place in range(1, len(table.columns)) if _says_nothing(table, place)]
    kept = [place for place in range(len(table.columns)) if place not in equal]
    narrow = Table(table.title, [table.columns[place] for place in kept])
    narrow.rows = [[row[place] for place in kept] for row in table.rows]
    texts = [f"{table.columns[place]} {table.rows[0][place].text}" for place in equal]
    left_out = f"left out, equal in all rows: {', '.join(texts)}" if equal else ""
    broken = _broken(narrow)
    return (broken if _needed(broken) <= width else _records(narrow)), left_out


def _broken(table: Table) -> Table:
    """Return a table whose headers are broken into lines no wider than cells or words."""
    rows = _widths(Table("", (), table.rows))
    columns = [
        "\n".join(textwrap.wrap(column, max(width, *map(len, [*column.split(), "x"]))))
        for column, width in zip(table.columns, rows, strict=True)
    ]
    return Table(table.title, columns, table.rows)


def _records(table: Table) -> Table:
    """Return a table with a line for each cell, below the label of its row."""
    records = Table(table.title)
    for label, *cells in table.rows:
        records.rows.append([label, Cell("")])
        for column, cell in zip(table.columns[1:], cells, strict=True):
            records.rows.append([Cell(f"  {column}"), cell])
    return records


def _says_nothing(table: Table, place: int) -> bool:
    """Return whether a column has several cells and all are equal, or its only cell is zero."""
    texts = {row[place].text for row in table.rows}
    return len(texts) == 1 and (len(table.rows) > 1 or texts <= {"0", "0 ± 0", "same"})


def _lines(table: Table) -> list[list[str]]:
    """Return the cells of headers and rows as text, with their signs."""
    body = [[_marked(cell) for cell in row] for row in table.rows]
    return [list(table.columns), *body] if any(table.columns) else body


def _widths(table: Table) -> list[int]:
    lines = _lines(table)
    count = max(map(len, lines), default=0)
    return [
        max(len(part) for line in lines if i < len(line) for part in line[i].split("\n"))
        for i in range(count)
    ]


def _needed(table: Table) -> int:
    """Return the characters of a line on a terminal: cells, and the gaps around them."""
    widths = _widths(table)
    return sum(widths) + 2 * len(widths)


def markdown(table: Table) -> str:
    """Return a Markdown table: the best bold, the worst in italics, better and worse as words."""
    lines = [f"### {escaped(table.title)}", ""] if table.title else []
    lines.append("| " + " | ".join(map(escaped, table.columns)) + " |")
    lines.append("|" + "|".join(["---", *["--:"] * (len(table.columns) - 1)]) + "|")
    forms = {"best": "**{}**", "worst": "_{}_", "better": "{} better", "worse": "{} worse"}
    for row in table.rows:
        cells = [forms.get(cell.mark, "{}").format(escaped(cell.text)) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """Write tables to a stream (default: standard output), in colour on a terminal."""
    stream = stream or sys.stdout
    # Plain lines are easy to `grep`, and need no import of `rich`, which is slow.
    if not stream.isatty():
        stream.write("\n\n".join(map(plain, tables)) + "\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream)
    for whole in tables:
        table, left_out = fitted(whole, console.width)
        # `Text`, not a string: names may hold brackets, which `rich` reads as markup.
        if not table.rows:
            console.print(Text(table.title, "bold"), end="\n\n")
            continue
        drawn = RichTable(
            title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD,
            show_header=any(table.columns), pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        for place, column in enumerate(table.columns):
            drawn.add_column(Text(column), justify="right" if place else "left")
        for row in table.rows:
            drawn.add_row(*(Text(_marked(cell), _COLORS.get(cell.mark, "")) for cell in row))
        console.print(drawn)
        if left_out:
            console.print(Text(left_out), end="\n\n")


def _marked(cell: Cell) -> str:
    return cell.text + _SIGNS.get(cell.mark, "")


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    # Underscores inside words are no markup, and escaping them would make names hard to read.
    return _MARKUP.sub(r"\\\g<0>", text.replace("\n", " "))


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a document with each table between its marks replaced.

    The marks of a table are `<!-- table: NAME -->` and `<!-- end -->`. Raise `ValueError` for a
    name without a mark.
    """
    for name, content in tables.items():
        before, mark, rest = text.partition(_MARK.format(name))
        if not mark:
            raise ValueError(f"the document has no mark for the table {name}")
        after = rest[rest.index(_END) :]
        text = f"{before}{mark}\n{content}\n{after}"
    return text
