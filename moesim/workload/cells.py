"""Values of request files: numbers, times and lists of block ids, from CSV or JSON.

Numbers are plain decimals in ASCII digits. Python alone would also accept `1_0`, `nan` and the
digits of other scripts. Times are exact: whole nanoseconds, rounded once.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import numpy as np

__all__ = ["MOST_LENGTH", "TIME_UNITS", "Cell", "block_ids", "cut", "length", "moment_ns", "shown"]

MOST_LENGTH: Final = 100_000_000
"""The most tokens of one request."""

TIME_UNITS: Final = {"s": 9, "ms": 6, "us": 3, "ns": 0}
"""Units of times that are numbers, with the decimal power of their nanoseconds."""

_LATEST_NS: Final = 1 << 62  # sums of two times stay within 64 bits
_MOST_BLOCKS: Final = 1_000_000  # of one request
# Bounded repetitions, so that a number of thousands of digits is refused here.
_NUMBER: Final = re.compile(r"(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_COUNT: Final = re.compile(r"[0-9]+")
_ID: Final = re.compile(r"[0-9]{1,18}")
_TIMESTAMP: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)(?:Z|\+00:00)?"
)


class Cell(str):
    """The text of a CSV cell or of a JSON number. A JSON string is none, so it is no number."""

    __slots__ = ()


def moment_ns(value: object, unit: str) -> int:
    """Return a time in nanoseconds since some origin. Raise `ValueError` for anything else.

    `unit` is a key of `TIME_UNITS`, or `date` for a UTC time like 2023-11-16 18:17:03.9799600.
    """
    if unit == "date":
        return _date_ns(value)
    text = _text(value)
    number = Decimal(text) if _NUMBER.fullmatch(text) else None
    if number is None or not number.scaleb(TIME_UNITS[unit]) < _LATEST_NS:
        name = {"s": "seconds"}.get(unit, unit)
        raise ValueError(f"arrival {shown(value)} must be {name} ≥ 0, in digits like 12.5")
    return int(number.scaleb(TIME_UNITS[unit]).to_integral_value())


def _date_ns(value: object) -> int:
    stamp = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if stamp is None:
        raise ValueError(f"{shown(value)} is no UTC time like 2023-11-16 18:17:03.9799600")
    whole, _, fraction = stamp[1].partition(".")
    seconds = int(np.datetime64(whole, "s").astype(np.int64))
    nanoseconds = seconds * 10**9 + int(fraction.ljust(9, "0"))
    if not 0 <= nanoseconds < _LATEST_NS:
        raise ValueError(f"{shown(value)} lies outside the years 1970 to 2116")
    return nanoseconds


def length(value: object) -> int:
    """Return a number of tokens, from 0 to `MOST_LENGTH`. Raise `ValueError` otherwise."""
    text = _text(value)
    if not _COUNT.fullmatch(text):
        raise ValueError(f"length {shown(value)} must be a whole number, at least 1")
    digits = text.lstrip("0") or "0"
    # Checked by length first: Python refuses to convert integers of thousands of digits.
    if len(digits) > 18 or int(digits) > MOST_LENGTH:
        raise ValueError(
            f"length {shown(value)} is too large; at most {MOST_LENGTH:,} are simulated"
        )
    return int(digits)


def block_ids(value: object) -> tuple[int, ...]:
    """Return the ids of a prompt's token blocks. Raise `ValueError` for anything but such a list.

    Ids are whole numbers below 10^18.
    """
    if not isinstance(value, list) or len(value) > _MOST_BLOCKS:
        raise ValueError(f"block ids {shown(value)} must be a list of whole numbers")
    for number in value:
        if not isinstance(number, Cell) or not _ID.fullmatch(number):
            raise ValueError(f"block id {shown(number)} must be a whole number from 0, below 10^18")
    return tuple(map(int, value))


def _text(value: object) -> str:
    """Return a cell's text; of anything else a text that is no number."""
    return value if isinstance(value, Cell) else "no number"


def shown(value: object) -> str:
    """Return a value for a message."""
    if isinstance(value, bool) or value is None:  # as JSON spells them
        return {True: "true", False: "false", None: "null"}[value]
    return repr(cut(value)) if isinstance(value, str) else cut(str(value))


def cut(text: str) -> str:
    """Return a text for a message, at most 60 characters long."""
    return text if len(text) <= 60 else f"{text[:57]}..."
