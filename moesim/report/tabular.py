"""A table of text, and its three forms: for a terminal, for a pipe, and as Markdown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

__all__ = ["Cell", "Table", "escaped", "markdown", "plain", "write_tables"]

_SIGNS: Final = {"best": " ▲", "better": " ▲", "worst": " ▼", "worse": " ▼"}
_MARKUP: Final = re.compile(r"[\\`*|\[<$~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_COLORS: Final = {"best": "green", "better": "green", "worst": "red", "worse": "red"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and how it does: "best" or "worst" of a column, "better" or "worse" than the
    baseline, or nothing of that."""

    text: str
    mark: str = ""


@dataclass(slots=True)
class Table:
    """A title, column headers and rows; the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str] = ()
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: str | Cell) -> None:
        """Add one row, a cell a column."""
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])


def plain(table: Table) -> str:
    """Aligned text without any markup; ▲ marks what is best or better, ▼ what is worst or worse."""
    body = [[_marked(cell) for cell in row] for row in table.rows]
    lines = [list(table.columns), *body] if any(table.columns) else body
    count = max(map(len, lines), default=0)
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(count)]
    text = [table.title] if table.title else []
    for line in lines:
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        text.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(text)


def markdown(table: Table) -> str:
    """A Markdown table; the best is bold, the worst in italics, better and worse are words."""
    lines = [f"### {escaped(table.title)}", ""] if table.title else []
    lines.append("| " + " | ".join(map(escaped, table.columns)) + " |")
    lines.append("|" + "|".join(["---", *["--:"] * (len(table.columns) - 1)]) + "|")
    forms = {"best": "**{}**", "worst": "_{}_", "better": "{} better", "worse": "{} worse"}
    for row in table.rows:
        cells = [forms.get(cell.mark, "{}").format(escaped(cell.text)) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """Write tables to a stream (standard output): in colour on a terminal, plain elsewhere."""
    stream = stream or sys.stdout
    if not stream.isatty():
        stream.write("\n\n".join(map(plain, tables)) + "\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream)
    for table in tables:
        if not table.rows:
            console.print(Text(table.title, "bold"), end="\n\n")
            continue
        made = RichTable(
            title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD,
            show_header=any(table.columns), pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        for place, column in enumerate(table.columns):
            made.add_column(Text(column), justify="right" if place else "left")
        for row in table.rows:
            made.add_row(*(Text(_marked(cell), _COLORS.get(cell.mark, "")) for cell in row))
        console.print(made)


def _marked(cell: Cell) -> str:
    return cell.text + _SIGNS.get(cell.mark, "")


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line; underscores inside words need no help."""
    return _MARKUP.sub(r"\\\g<0>", text.replace("\n", " "))
