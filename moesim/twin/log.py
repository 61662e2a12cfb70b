"""The text of a log: a file or the standard input, as lines without what a terminal adds."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moesim.errors import UsageError, shown
from moesim.files import as_path
from moesim.inputs import MOST_TEXT, read_bytes
from moesim.measured.rows import Row

__all__ = ["MOST_LINE", "MOST_ROWS", "Entry", "Log", "read_log"]

MOST_ROWS: Final = 1000
"""Measurements that are read of all logs together."""
MOST_LINE: Final = 4000
"""Characters of the longest line that is searched for words; a JSON document may be longer."""
_MOST_SHOWN: Final = 120
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),  # PowerShell writes it with `>`
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One measurement of a log: its row, tokens per second, their deviation, and its place.

    `deviation` is None where the log does not say it. `left_out` says why a measurement is not
    used, "" if it is.
    """

    row: Row
    value: float
    deviation: float | None
    place: str
    left_out: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """The name of a log, and its lines without line ends, colours and byte-order marks."""

    name: str
    lines: Sequence[str]

    def place(self, index: int) -> str:
        """Return the file and the number of a line, like `bench.md:7`."""
        return f"{self.name}:{index + 1}"

    def refused(self, index: int, why: str) -> UsageError:
        """Return the error of a line that is not understood: its place, why, and the line."""
        line = self.lines[index].strip() if index < len(self.lines) else ""
        return UsageError(f"{self.place(index)}: {why}: {shown(line, _MOST_SHOWN)}")


def read_log(path: str) -> Log:
    """Return the log in a file, or that of the standard input for `-`.

    Raises:
        UsageError: the file cannot be read, is too large, or is no text.
    """
    name = "standard input" if path == "-" else path
    try:
        data = _standard_input() if path == "-" else read_bytes(as_path(path))
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None
    if len(data) > MOST_TEXT:
        raise UsageError(f"{name}: is larger than {MOST_TEXT:,} bytes, the most that is read")
    text = _decoded(data)
    if "\0" in text:
        raise UsageError(f"{name}: is no text: it holds a NUL character")
    if not text.strip():
        raise UsageError(f"{name}: is empty")
    return Log(name, tuple(map(_plain, text.split("\n"))))


def _standard_input() -> bytes:
    return sys.stdin.buffer.read(MOST_TEXT + 1)


def _decoded(data: bytes) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def _plain(line: str) -> str:
    """Return a line as a terminal shows it: without colours, and after the last return."""
    text = line.removesuffix("\r")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return text.rpartition("\r")[2]
