"""Quantities as people write them, and as the simulator counts them.

Inside moesim sizes are integer bytes, times integer nanoseconds, bandwidths integer bytes per
second: floats would reorder simultaneous events. At the border people write "24GiB", "25us",
"32GB/s". A prefix is decimal (k, M, G, T) or binary (Ki, Mi, Gi, Ti) as in IEC 80000-13, and
spelt exactly: "Gb" would be gigabits. A bare number is already in the base unit. What does not
come out whole is rounded to the nearest integer.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

__all__ = [
    "format_bytes",
    "format_duration_ns",
    "format_share",
    "parse_bandwidth",
    "parse_bytes",
    "parse_duration_ns",
    "parse_flops",
    "parse_share",
]

BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
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

# Bounded, so that no text makes an astronomically long integer.
_NUMBER: Final = r"[+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?"
_QUANTITY: Final = re.compile(rf"\s*({_NUMBER})\s*((?:[^\s\d]\S*)?)\s*")
_LARGEST: Final = 2**63 - 1


def parse_bytes(value: object) -> int:
    """Bytes of "24GiB", "16.5 MB" or a bare number. ValueError where it is none."""
    return _parse(value, "a size", BYTES, "24GiB")


def parse_duration_ns(value: object) -> int:
    """Nanoseconds of "25us", "4ms", "1.5s" or a bare number. ValueError where it is none."""
    return _parse(value, "a duration", DURATIONS_NS, "25us")


def parse_bandwidth(value: object) -> int:
    """Bytes per second of "32GB/s" or a bare number. ValueError where it is none."""
    return _parse(value, "a bandwidth", BANDWIDTHS, "32GB/s")


def parse_flops(value: object) -> int:
    """Operations per second of "312TFLOPS" or a bare number. ValueError where it is none."""
    return _parse(value, "a compute rate", FLOPS, "312TFLOPS")


def parse_share(value: object) -> float:
    """The share, from 0 to 1, of "50%" or 0.5. ValueError where it is none."""
    rule = 'a share from 0% to 100%, for example "50%" or 0.5'
    number: float
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2] not in ("", "%"):
            raise ValueError(f"{value!r} is not {rule}")
        number = float(Fraction(match[1]) / (100 if match[2] else 1))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ValueError(f"{value!r} is not {rule}")
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not {rule}")
    return number


def format_share(share: float) -> str:
    """Return the percentage that `parse_share` reads as exactly this share: 0.125 is "12.5%"."""
    percent = Decimal(repr(float(share))).scaleb(2).normalize()
    return f"{percent:f}%" if share == 0 or share >= 1e-9 else f"{percent}%"


def format_bytes(num_bytes: int) -> str:
    """A size for people: "512 B", "16.5 MiB", "23.99 GiB"."""
    return _format(num_bytes, [("B", 1), *((u, BYTES[u]) for u in ("KiB", "MiB", "GiB", "TiB"))])


def format_duration_ns(duration_ns: int) -> str:
    """A duration for people: "850 ns", "25 us", "1.5 ms", "12.25 s"."""
    return _format(duration_ns, [(u, DURATIONS_NS[u]) for u in ("ns", "us", "ms", "s")])


def _parse(value: object, what: str, units: dict[str, int], example: str) -> int:
    """`value` in the base unit of `units`, as an integer from 0 to 2**63 - 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f'{value!r} is not {what}; write a number and a unit, like "{example}"')
    if isinstance(value, str):
        number = _parse_text(value, what, units, example)
    elif math.isfinite(value):
        number = Fraction(value)
    else:
        raise ValueError(f'{value!r} is not {what}: it must be finite, like "{example}"')
    if number < 0:
        raise ValueError(f"{value!r} is not {what}: it must not be negative")
    whole = round(number)
    if whole > _LARGEST:
        raise ValueError(f'{value!r} is not {what}: it is too large; write one like "{example}"')
    if whole == 0 and number > 0:
        raise ValueError(f"{value!r} is not {what}: it is smaller than the unit it is counted in")
    return whole


def _parse_text(text: str, what: str, units: dict[str, int], example: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not {what}; write a number and a unit, like "{example}"')
    number, unit = match.groups()
    if not unit:
        return Fraction(number)
    if unit not in units:
        near = [known for known in units if known.lower() == unit.lower()]
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{text!r} is not {what}: no unit {unit!r}; {hint}units are {', '.join(units)}, "
            f'as in "{example}"'
        )
    return Fraction(number) * units[unit]


def _format(amount: int, units: list[tuple[str, int]]) -> str:
    """`amount` in the largest unit that it fills, to two decimals without trailing zeros."""
    unit, size = next(
        (pair for pair in reversed(units) if abs(amount) >= pair[1]),
        units[0],
    )
    return f"{amount / size:.2f}".rstrip("0").rstrip(".") + f" {unit}"
