"""Records of request files: CSV rows, JSON lines, or the items of a JSON list.

Files are read piece by piece and the length of each piece is limited, so no file can fill the
memory. A record is a mapping of names to values, with the line at which it ends (CSV) or begins.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, NoReturn, TextIO

from moesim.workload.cells import Cell

__all__ = ["BadLine", "Record", "csv_records", "json_items", "json_lines", "lines"]

_LONGEST_LINE: Final = 100_000  # of CSV
_LONGEST_JSON: Final = 16 << 20  # a line or an item of JSON
_CHUNK: Final = 1 << 16
# What decides where an item ends: strings are passed over, brackets counted.
_MARKS: Final = re.compile(r'"(?:[^"\\]|\\.)*+("?)|[][{},]', re.DOTALL)


class BadLine(ValueError):
    """`line` (from 1) of a file is wrong for `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


class Record(NamedTuple):
    """One request of a file. `surplus`: cells beyond the header of a CSV file."""

    line: int
    values: Mapping[str, Any]
    surplus: int = 0


def lines(handle: TextIO, longest: int) -> Iterator[str]:
    """Yield the lines of a file, with their ends. Raise `BadLine` for one that is not text."""
    for number in count(1):
        try:
            line = handle.readline(longest + 1)
        except UnicodeDecodeError as error:
            raise BadLine(number, f"cannot be read: {error}") from None
        if not line:
            return
        if len(line) > longest:
            raise BadLine(number, f"is longer than {longest:,} characters")
        if "\0" in line:
            raise BadLine(number, "holds a NUL character")
        yield line


def csv_records(handle: TextIO, check_header: Callable[[Sequence[str]], None]) -> Iterator[Record]:
    """Yield the rows of a CSV file, after a check of its first line."""
    reader = csv.reader(lines(handle, _LONGEST_LINE), strict=True)
    try:
        header = next(reader, [])
        check_header(header)
        for cells in reader:
            if not cells:
                continue
            if len(cells) < len(header):
                raise ValueError(f"has {len(cells)} cells, and the header has {len(header)}")
            values = {
                name: Cell(cell.strip(" \t")) for name, cell in zip(header, cells, strict=False)
            }
            yield Record(reader.line_num, values, len(cells) - len(header))
    except BadLine:
        raise
    except csv.Error as error:
        raise BadLine(max(1, reader.line_num), f"cannot be read: {error}") from None
    except ValueError as error:
        raise BadLine(max(1, reader.line_num), str(error)) from None


def json_lines(handle: TextIO) -> Iterator[Record]:
    """Yield the objects of a file with one JSON object in each line; empty lines are left out."""
    for number, line in enumerate(lines(handle, _LONGEST_JSON), 1):
        if line.strip():
            yield Record(number, _object(line.rstrip(), number))


def json_items(handle: TextIO) -> Iterator[Record]:
    """Yield the objects of a file that is one JSON list. Raise `BadLine` for anything else."""
    scanner = _Scanner(handle)
    if scanner.skip() != "[":
        raise BadLine(scanner.line, "is no JSON list of conversations")
    scanner.advance(1)
    closing = scanner.skip()
    while closing != "]":
        line = scanner.line
        yield Record(line, _object(scanner.item(), line))
        closing = scanner.skip()
        if closing == ",":
            scanner.advance(1)
            if scanner.skip() == "]":
                raise BadLine(scanner.line, "has no item after the last comma")
        elif closing != "]":
            raise BadLine(
                scanner.line,
                "ends before its list does; the file is cut off"
                if not closing
                else "needs a comma or a closing bracket between items",
            )
    scanner.advance(1)
    if scanner.skip():
        raise BadLine(scanner.line, "has text after the end of its list")


class _Scanner:
    """A text that is read in chunks, with a place in it and the line of that place."""

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._text = ""
        self.line = 1

    def _more(self) -> bool:
        """Read a further chunk; return whether there was one."""
        try:
            # Twice as much each time, so that a long item is not searched again and again.
            chunk = self._handle.read(max(_CHUNK, len(self._text)))
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n")
            raise BadLine(line, f"cannot be read: {error}") from None
        self._text += chunk
        return bool(chunk)

    def advance(self, characters: int) -> None:
        self.line += self._text.count("\n", 0, characters)
        self._text = self._text[characters:]

    def skip(self) -> str:
        """Move to the next character that is no space, and return it; "" at the end."""
        while True:
            rest = self._text.lstrip(" \t\r\n")
            self.advance(len(self._text) - len(rest))
            if rest or not self._more():
                return rest[:1]

    def item(self) -> str:
        """Return the text up to the comma or bracket after the item, and move behind it."""
        depth = at = 0
        while True:
            for mark in _MARKS.finditer(self._text, at):
                if mark[1] == "":  # a string whose end is not read yet
                    at = mark.start()
                    break
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
                if depth < 0 or (depth == 0 and mark[0] == ","):
                    text = self._text[: mark.start()]
                    self.advance(mark.start())
                    return text
            else:
                at = len(self._text)
            if len(self._text) > _LONGEST_JSON:
                raise BadLine(self.line, f"has an item longer than {_LONGEST_JSON:,} characters")
            if not self._more():
                raise BadLine(self.line, "begins an item that never ends; the file is cut off")


def _object(text: str, line: int) -> dict[str, Any]:
    """Return a JSON object. Raise `BadLine` for other JSON, NaN, or a key that is there twice."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=Cell,
            parse_int=Cell,
        )
    except RecursionError:
        raise BadLine(line, "is nested too deeply") from None
    except json.JSONDecodeError as error:
        # Its lines count from the beginning of the item.
        raise BadLine(line + error.lineno - 1, f"is no JSON: {error.msg}") from None
    except ValueError as error:
        raise BadLine(line, f"is no JSON that is read: {error}") from None
    if not isinstance(value, dict):
        raise BadLine(line, "must hold a JSON object")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
