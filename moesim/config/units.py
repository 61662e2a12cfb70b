"""Quantities with units: parsing text like "24GiB" or "25us", and formatting integers.

Inside moesim, sizes are integer bytes, times integer nanoseconds and bandwidths integer bytes per
second. Floats are not used, because their rounding would reorder simultaneous events. Prefixes
are decimal (k, M, G, T) or binary (Ki, Mi, Gi, Ti), as in IEC 80000-13. Units are case-sensitive:
"Gb" would be gigabits. A number without a unit is in the base unit. Fractions of the base unit are
rounded to the nearest integer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

from moesim.errors import shown

__all__ = [
    "exact_bandwidth",
    "exact_bytes",
    "exact_duration_ns",
    "exact_flops",
    "format_bytes",
    "format_duration_ns",
    "format_share",
    "has_no_unit",
    "in_one_unit",
    "parse_bandwidth",
    "parse_bytes",
    "parse_duration_ns",
    "parse_flops",
    "parse_share",
]

BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,  # not in the standard, but common and not ambiguous
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DURATIONS_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
}
FLOPS: Final = {
    f"{prefix}{unit}": size
    for unit in ("FLOPS", "FLOP/s")
    for prefix, size in (("", 1), ("G", 10**9), ("T", 10**12), ("P", 10**15))
}
BANDWIDTHS: Final = {f"{unit}/s": size for unit, size in BYTES.items()}

# The lengths are bounded, so that no text becomes an integer of millions of digits.
_NUMBER: Final = r"[+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?"
_QUANTITY: Final = re.compile(rf"\s*({_NUMBER})\s*((?:[^\s\d]\S*)?)\s*")
_LARGEST: Final = 2**63 - 1  # event times are stored in 64-bit integers
_LONGEST: Final = 500  # characters of a text that a message repeats


def parse_bytes(value: object) -> int:
    """Return the bytes in "24GiB", "16.5 MB" or a number. Raise ValueError for anything else."""
    return _parse(value, "a size", BYTES, "24GiB")


def parse_duration_ns(value: object) -> int:
    """Return the nanoseconds in "25us", "1.5s" or a number. Raise ValueError for anything else."""
    return _parse(value, "a duration", DURATIONS_NS, "25us")


def parse_bandwidth(value: object) -> int:
    """Return the bytes per second in "32GB/s" or a number. Raise ValueError for anything else."""
    return _parse(value, "a bandwidth", BANDWIDTHS, "32GB/s")


def parse_flops(value: object) -> int:
    """Return the operations per second in "312TFLOPS" or a number. Raise ValueError otherwise."""
    return _parse(value, "a compute rate", FLOPS, "312TFLOPS")


def parse_share(value: object) -> float:
    """Return the share in "50%" or 0.5, from 0 to 1. Raise ValueError for anything else."""
    rule = 'a share from 0% to 100%, for example "50%" or 0.5'
    number: float
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2] not in ("", "%"):
            raise ValueError(f"{shown(value, _LONGEST)} is not {rule}")
        number = float(Fraction(match[1]) / (100 if match[2] else 1))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        raise ValueError(f"{shown(value, _LONGEST)} is not {rule}")
    if not 0 <= number <= 1:
        raise ValueError(f"{shown(value, _LONGEST)} is not {rule}")
    return float(number)


def has_no_unit(value: object) -> bool:
    """Return whether a value is a bare number other than zero, as a number or as text."""
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        return match is not None and not match[2] and Fraction(match[1]) != 0
    return isinstance(value, int | float) and not isinstance(value, bool) and value != 0


def in_one_unit(values: Sequence[object]) -> tuple[list[float], str] | None:
    """Return the numbers in `values` and their unit; None if they are not all of one kind.

    Quantities of several units have the unit of the last one: `["500MB/s", "3GB/s"]` are 0.5 and 3
    in "GB/s". Bare numbers have the unit "".
    """
    matches = [_QUANTITY.fullmatch(v) if isinstance(v, str) else None for v in values]
    if not any(matches):
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        return (list(map(float, numbers)), "") if numbers and len(numbers) == len(values) else None
    found = [(Fraction(match[1]), match[2]) for match in matches if match is not None]
    unit = found[-1][1]
    for sizes in (BYTES, DURATIONS_NS, FLOPS, BANDWIDTHS, {"%": 1}):
        if len(found) == len(values) and all(name in sizes for _, name in found):
            return [float(number * sizes[name] / sizes[unit]) for number, name in found], unit
    return None


def format_share(share: float) -> str:
    """Return the percentage that `parse_share` reads as exactly this share: 0.125 is "12.5%"."""
    # A decimal moves the point without rounding; 100 * share would not always be exact.
    percent = Decimal(repr(float(share))).scaleb(2).normalize()
    return f"{percent:f}%" if share == 0 or share >= 1e-9 else f"{percent}%"


def format_bytes(num_bytes: int) -> str:
    """Return a rounded size for messages and tables: "512 B", "16.5 MiB", "23.99 GiB"."""
    return _format(num_bytes, [("B", 1), *((u, BYTES[u]) for u in ("KiB", "MiB", "GiB", "TiB"))])


def format_duration_ns(duration_ns: int) -> str:
    """Return a rounded duration for messages and tables: "850 ns", "1.5 ms", "12.25 s"."""
    return _format(duration_ns, [(u, DURATIONS_NS[u]) for u in ("ns", "us", "ms", "s")])


def _parse(value: object, what: str, units: dict[str, int], example: str) -> int:
    """Return `value` in the base unit of `units`, as an integer from 0 to 2**63 - 1."""
    # To Python `True` is the integer 1, but no quantity.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(
            f'{shown(value, _LONGEST)} is not {what}; write a number and a unit, like "{example}"'
        )
    if isinstance(value, str):
        number = _parse_text(value, what, units, example)
    elif isinstance(value, int) or math.isfinite(value):
        number = Fraction(value)
    else:
        raise ValueError(
            f'{shown(value, _LONGEST)} is not {what}: it must be finite, like "{example}"'
        )
    if number < 0:
        raise ValueError(f"{shown(value, _LONGEST)} is not {what}: it must not be negative")
    whole = round(number)
    if whole > _LARGEST:
        raise ValueError(
            f'{shown(value, _LONGEST)} is not {what}: it is too large; write one like "{example}"'
        )
    if whole == 0 and number > 0:  # 0 may mean something else than a very small quantity
        base = next(iter(units))
        raise ValueError(
            f"{shown(value, _LONGEST)} is not {what}: it would be rounded to 0 {base}; "
            f"write at least 1{base}"
        )
    return whole


def _parse_text(text: str, what: str, units: dict[str, int], example: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(
            f'{shown(text, _LONGEST)} is not {what}; write a number and a unit, like "{example}"'
        )
    number, unit = match.groups()
    if not unit:
        return Fraction(number)
    if unit not in units:
        near = [name for name in units if name.lower() == unit.lower()]
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{shown(text, _LONGEST)} is not {what}: no unit {shown(unit)}; {hint}"
            f'units are {", ".join(units)}, as in "{example}"'
        )
    return Fraction(number) * units[unit]


def exact_bytes(num_bytes: int) -> str:
    """Return the shortest text that `parse_bytes` reads as exactly this size: "10GiB"."""
    return _exact(num_bytes, BYTES)


def exact_duration_ns(duration_ns: int) -> str:
    """Return the shortest text that `parse_duration_ns` reads as exactly this time: "20us"."""
    return _exact(duration_ns, DURATIONS_NS)


def exact_bandwidth(bytes_per_s: int) -> str:
    """Return the shortest text that `parse_bandwidth` reads as exactly this rate: "12GB/s"."""
    return _exact(bytes_per_s, BANDWIDTHS)


def exact_flops(flops_per_s: int) -> str:
    """Return the shortest text that `parse_flops` reads as exactly this rate: "165.2TFLOPS"."""
    return _exact(flops_per_s, FLOPS)


def _exact(amount: int, units: dict[str, int]) -> str:
    """Return `amount` in the unit that needs the fewest characters; the base unit is exact."""
    texts = []
    for unit, size in units.items():
        number = f"{Decimal(amount) / size:f}"
        number = number.rstrip("0").rstrip(".") if "." in number else number
        if Fraction(number) * size == amount:
            texts.append(number + unit)
    return min(texts, key=len)


def _format(amount: int, units: list[tuple[str, int]]) -> str:
    """Return `amount` in the largest unit of which it has at least one, to two decimals."""
    unit, size = next(
        (pair for pair in reversed(units) if abs(amount) >= pair[1]),
        units[0],
    )
    return f"{amount / size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
