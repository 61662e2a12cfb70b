"""Arrivals of a CSV file: the time and the lengths of each request, with every line checked.

The format `plain` is moesim's own. The format `azure` is that of the Azure LLM inference traces
(Splitwise, Patel et al. 2024, arXiv 2311.18677).

Numbers are plain decimals in ASCII digits. Python alone would also accept `1_0`, `nan` and the
digits of other scripts. Lines are read one at a time and their length is limited, so no file can
fill the memory.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import numpy as np

from moesim.inputs import open_regular

__all__ = ["COLUMNS", "MOST_REQUESTS", "MOST_TOKENS", "Arrival", "CsvError", "read_arrivals"]

COLUMNS: Final = {
    "plain": ("arrival_s", "prompt_tokens", "output_tokens"),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
}
MOST_REQUESTS: Final = 1_000_000
"""The most requests of a workload; each takes about a kilobyte before anything is simulated."""

MOST_TOKENS: Final = 100_000_000
"""The most tokens of a workload; each takes eight bytes before anything is simulated."""

_LONGEST_LINE: Final = 100_000
# Bounded repetitions, so that a number of thousands of digits is refused here.
_SECONDS: Final = re.compile(r"(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_COUNT: Final = re.compile(r"[0-9]+")
_TIMESTAMP: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)(?:Z|\+00:00)?"
)


class Arrival(NamedTuple):
    """One line. `moment` is in seconds in the format `plain`, and a UTC time in `azure`."""

    line: int
    moment: float | np.datetime64
    prompt_tokens: int
    output_tokens: int


class CsvError(ValueError):
    """A file cannot be read: `line` (from 1) is wrong for `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


def read_arrivals(path: Path, form: str, limit: int | None) -> list[Arrival]:
    """Return the first `limit` arrivals of a file, or all if it is None.

    `form` is a key of `COLUMNS`. Raise `CsvError` for the first wrong line.
    """
    try:
        # "-sig", because spreadsheets write a byte order mark in front of the header.
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as handle:
            arrivals = list(islice(_arrivals(handle, COLUMNS[form]), limit))
    except OSError as error:
        raise CsvError(1, f"cannot be read: {error.strerror}") from None
    if not arrivals:
        raise CsvError(1, "holds no requests; write one a line")
    return arrivals


def _arrivals(handle: TextIO, columns: Sequence[str]) -> Iterator[Arrival]:
    """Yield the arrivals of an open file, in ascending order."""
    reader = csv.reader(_lines(handle), strict=True)
    number, before = 0, None
    try:
        header = next(reader, [])
        places = _places(header, columns)
        for cells in reader:
            if not cells:
                continue
            arrival = _arrival(reader.line_num, cells, header, places)
            number += 1
            if number > MOST_REQUESTS:
                raise ValueError(
                    f"is request {number:,}; at most {MOST_REQUESTS:,} are simulated at once: give "
                    "workload.requests a number"
                )
            if before is not None and arrival.moment < before:
                raise ValueError("arrives before the request above it; sort the lines by time")
            before = arrival.moment
            yield arrival
    except CsvError:
        raise
    except csv.Error as error:
        raise CsvError(max(1, reader.line_num), f"cannot be read: {error}") from None
    except ValueError as error:
        raise CsvError(max(1, reader.line_num), str(error)) from None


def _lines(handle: TextIO) -> Iterator[str]:
    """Yield the lines of a file, with their ends. Raise `CsvError` for one that is not text."""
    for number in count(1):
        try:
            line = handle.readline(_LONGEST_LINE + 1)
        except UnicodeDecodeError as error:
            raise CsvError(number, f"cannot be read: {error}") from None
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise CsvError(number, f"is longer than {_LONGEST_LINE:,} characters")
        if "\0" in line:
            raise CsvError(number, "holds a NUL character")
        yield line


def _places(header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Return the places of the wanted columns in the header; other columns are allowed."""
    if missing := [name for name in columns if name not in header]:
        raise ValueError(_no_column(missing, header))
    for name in columns:
        if header.count(name) > 1:
            raise ValueError(f"has several columns {name!r}; keep one of them")
    return [header.index(name) for name in columns]


def _no_column(missing: Sequence[str], header: Sequence[str]) -> str:
    """Return a message with the missing columns, and with the format that would fit, if any."""
    message = f"has no column {' and no column '.join(map(repr, missing))}"
    for form, columns in COLUMNS.items():
        if set(columns) <= set(header):
            return f"{message}; its columns are those of `format: {form}`"
    formats = " or ".join(f"{', '.join(names)} ({form})" for form, names in COLUMNS.items())
    present = ", ".join(_cut(name) for name in header[:20]) or "none"
    return f"{message}; it has {present}; `format` says which it needs: {formats}"


def _arrival(
    line: int, cells: Sequence[str], header: Sequence[str], places: Sequence[int]
) -> Arrival:
    if len(cells) != len(header):
        raise ValueError(f"has {len(cells)} cells, and the header has {len(header)}")
    when, prompt, output = (cells[place].strip(" \t") for place in places)
    for place, cell in zip(places, (when, prompt, output), strict=True):
        if not cell:
            raise ValueError(f"column {header[place]!r} is empty")
    moment = _timestamp(when) if header[places[0]] == "TIMESTAMP" else _seconds(when)
    return Arrival(line, moment, _length(prompt), _length(output))


def _timestamp(text: str) -> np.datetime64:
    stamp = _TIMESTAMP.fullmatch(text)
    if stamp is None:
        raise ValueError(f"{_shown(text)} is no UTC time like 2023-11-16 18:17:03.9799600")
    return np.datetime64(stamp[1])


def _seconds(text: str) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else float("nan")
    if not seconds < float("inf"):  # NaN: not in the accepted form; infinity: too large a number
        raise ValueError(f"arrival {_shown(text)} must be seconds ≥ 0, in digits like 12.5")
    return seconds


def _length(text: str) -> int:
    """Return a number of tokens, from 1 to `MOST_TOKENS`."""
    if not _COUNT.fullmatch(text) or not text.strip("0"):
        raise ValueError(f"length {_shown(text)} must be a whole number, at least 1")
    digits = text.lstrip("0")
    # Checked by length first: Python refuses to convert integers of thousands of digits.
    if len(digits) > 18 or int(digits) > MOST_TOKENS:
        raise ValueError(
            f"length {_shown(text)} is too large; at most {MOST_TOKENS:,} are simulated"
        )
    return int(digits)


def _shown(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
