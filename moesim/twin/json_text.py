"""JSON: a list of tests or rows, or one object a line (JSONL).

Objects with `avg_ts` are tests of `llama-bench`; those with `metric` are rows of `moesim measured`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NoReturn

from moesim.errors import UsageError
from moesim.measured.rows import measured_rows
from moesim.twin.bench import FIELDS, bench_entry
from moesim.twin.log import Entry, Log

__all__ = ["json_entries"]

_LIST: Final = re.compile(r"\s*\[\s*(?:\{|$)")
_GAP: Final = re.compile(r"[\s,]*")
_MOST_LINES: Final = 1000  # of one object
_MOST_CONTENT: Final = 200_000
"""Characters of the longest object."""


def json_entries(log: Log, index: int, gpu: str = "") -> tuple[list[Entry], int] | None:
    """Return the entries of the list or object that begins at a line, and the first line after it.

    Return None where none begins there. `gpu`: the card that the log names before it.

    Raises:
        UsageError: it is no JSON, or an object is neither a test nor a row.
    """
    line = log.lines[index]
    if not _LIST.match(line) and not line.lstrip().startswith("{"):
        return None
    lines = _document(log, index)
    text = "\n".join(lines)
    starts = [0, *accumulate(len(each) + 1 for each in lines)]
    entries, end = [], index + 1
    for start, stop, value in _objects(text, log, index, starts):
        place = index + bisect_right(starts, start) - 1
        entries.append(_entry(value, log, place, gpu))
        end = index + bisect_right(starts, stop)
    return entries, end


def _document(log: Log, index: int) -> Sequence[str]:
    """Return the lines that a document may have: one of JSONL, some of an object, all of a list."""
    line = log.lines[index].strip()
    if not line.startswith("{"):
        return log.lines[index:]
    return log.lines[index : index + (1 if line.endswith("}") else _MOST_LINES)]


def _objects(
    text: str, log: Log, index: int, starts: list[int]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the objects of a list, or one object, each with its first and last character."""

    def refuse(place: int, why: str) -> NoReturn:
        raise log.refused(index + bisect_right(starts, min(place, len(text) - 1)) - 1, why)

    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    place = len(text) - len(text.lstrip())
    in_list = text[place] == "["
    place += in_list
    while True:
        gap = _GAP.match(text, place)
        assert gap is not None
        place = gap.end()
        if in_list and text[place : place + 1] == "]":
            return
        if place >= len(text):
            refuse(place, "the JSON list has no end")
        if text[place] != "{":
            refuse(place, "expected a JSON object")
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            refuse(error.pos, f"is no JSON ({error.msg})")
        except (ValueError, RecursionError) as error:
            refuse(place, f"is no JSON ({error})")
        if end - place > _MOST_CONTENT:
            refuse(place, f"an object of {end - place:,} characters")
        yield place, end - 1, value
        place = end
        if not in_list:
            return


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _entry(value: dict[str, Any], log: Log, index: int, gpu: str) -> Entry:
    if "avg_ts" in value:
        known = {key: _text(each) for key, each in value.items() if key in FIELDS}
        unknown = tuple(f"the field {key!r} is not known" for key in value if key not in FIELDS)
        if "model_type" not in value or not {"n_prompt", "n_gen"} & set(value):
            raise log.refused(index, "a test of llama-bench without its model or its tokens")
        return bench_entry(known, log, index, gpu, unknown)
    if "metric" in value:
        try:
            (measured,) = measured_rows([value], "")
        except UsageError as error:
            raise log.refused(index, str(error).replace(": row 0, ", "").strip()) from None
        if measured.value is None:
            raise log.refused(index, "a row without a value")
        return Entry(measured.row, measured.value, None, log.place(index))
    raise log.refused(index, "neither a test of llama-bench (avg_ts) nor a row (metric)")


def _text(value: Any) -> str:
    """Return a value as CSV has it."""
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None or isinstance(value, dict | list) else str(value)
