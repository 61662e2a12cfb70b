"""Reading logs: each is read by what it holds, whatever its name is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from moesim.errors import UsageError
from moesim.twin.csv_text import csv_entries
from moesim.twin.devices import Devices
from moesim.twin.json_text import json_entries
from moesim.twin.log import MOST_LINE, MOST_ROWS, Entry, Log, read_log
from moesim.twin.markdown import markdown_entries
from moesim.twin.server import is_server_log, server_entries

__all__ = ["entries_of", "read_logs"]

Parser = Callable[[Log, int, str], "tuple[list[Entry], int] | None"]
_PARSERS: Final[tuple[Parser, ...]] = (markdown_entries, csv_entries, json_entries)
_REFUSED: Final = (
    (re.compile(r"\s*(?:CREATE TABLE|INSERT INTO)\b"), "SQL is not read; use -o json or -o csv"),
    (re.compile(r'\s*"[^"]{0,200}","'), "CSV without its first line, which names the columns"),
)
_READ: Final = (
    "what llama-bench prints (Markdown, CSV, JSON, JSONL), logs of llama-server, and rows of "
    "`moesim measured` as JSON"
)


def read_logs(paths: Sequence[str]) -> list[Entry]:
    """Return the measurements of logs, in their order; `-` is the standard input.

    Raises:
        UsageError: a log cannot be read, holds nothing that is known, or a line of it is not
            understood.
    """
    if paths.count("-") > 1:
        raise UsageError("the standard input can be read once only")
    entries: list[Entry] = []
    for path in paths:
        entries += entries_of(read_log(path))
        if len(entries) > MOST_ROWS:
            raise UsageError(f"{path}: more than {MOST_ROWS} measurements; give fewer at once")
    return entries


def entries_of(log: Log) -> list[Entry]:
    """Return the measurements of one log. Raise UsageError as `read_logs`."""
    if is_server_log(log):
        return server_entries(log)
    entries: list[Entry] = []
    devices, index, read = Devices(), 0, False
    while index < len(log.lines):
        parsed = _parsed(log, index, devices.text)
        if parsed is None:
            devices.see(log.lines[index])
            index += 1
            continue
        found, index = parsed
        read = read or bool(found)
        devices.measured = devices.measured or bool(found)
        entries += found
        if len(entries) > MOST_ROWS:
            raise log.refused(index - 1, f"more than {MOST_ROWS} measurements")
    if not read:
        first = next(place for place, line in enumerate(log.lines) if line.strip())
        raise log.refused(first, f"no measurement is found; {_READ} are read")
    return entries


def _parsed(log: Log, index: int, gpu: str) -> tuple[list[Entry], int] | None:
    """Return what the parser of a line's format reads there; None for other text."""
    line = log.lines[index]
    for parser in _PARSERS:
        if (parsed := parser(log, index, gpu)) is not None:
            return parsed
    if len(line) <= MOST_LINE:
        for form, why in _REFUSED:
            if form.match(line):
                raise log.refused(index, why)
    return None
