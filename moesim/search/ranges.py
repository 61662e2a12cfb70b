"""The values that `--over KEY=VALUES` names: a list like `lru,lfu`, or a range like `1..32`.

`A..B` is every value from A to B in steps of 1 of its unit. `A..B..STEP` has another step, and
`A..B..2x` multiplies by a factor instead. Values are computed exactly, so `0..1..0.1` holds 0.3.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final

from moesim.config.units import in_one_unit
from moesim.config.yaml_document import parse_value
from moesim.errors import UsageError, shown

__all__ = ["numbers_of", "parse_over"]

MOST_VALUES: Final = 10_000
_NUMBER: Final = r"[+-]?\d{1,18}(?:\.\d{1,18})?"
_RANGE: Final = re.compile(
    rf"({_NUMBER})\s*([^\d\s.][^\s.]*)?\.\.({_NUMBER})\s*([^\d\s.][^\s.]*)?"
    rf"(?:\.\.({_NUMBER})\s*([^\d\s.][^\s.]*)?)?"
)
_SUFFIXED: Final = re.compile(rf"({_NUMBER})(\D\S*)")


def parse_over(text: str) -> tuple[str, list[Any] | None]:
    """Return the key and the values of `KEY=VALUES`; None for a key alone. Raise UsageError."""
    key, equals, values = text.partition("=")
    key = key.strip()
    if not key or not all(key.split(".")) or (equals and not values.strip()):
        raise UsageError(
            f"--over {shown(text)}: write a dotted key and its values, like "
            "cache.slots=1/layer..8/layer or cache.policy=lru,lfu"
        )
    return key, _values(key, values.strip()) if equals else None


def numbers_of(values: list[Any] | tuple[Any, ...]) -> list[float] | None:
    """Return the numbers in values of one kind, like `1/layer` or `3GB/s`; None for others."""
    if (found := in_one_unit(values)) is not None:
        return found[0]
    matches = [_SUFFIXED.fullmatch(v) if isinstance(v, str) else None for v in values]
    parts = [(float(match[1]), match[2]) for match in matches if match is not None]
    same = len(parts) == len(values) and len({suffix for _, suffix in parts}) == 1
    return [number for number, _ in parts] if same else None


def _values(key: str, text: str) -> list[Any]:
    if (match := _RANGE.fullmatch(text)) is not None:
        return _range(f"--over {key}={text}", match)
    if re.match(rf"{_NUMBER}[^,]*\.\.", text):  # unlike the path ../traces/deep
        raise UsageError(f"--over {key}={text}: is no range; {_HOW}")
    listed = parse_value(f"[{text}]", f"--over {key}")
    # `[1, 2]` means the same as `1,2`.
    only = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    return only if isinstance(only, list) else list(listed)


_HOW: Final = "write A..B, A..B..STEP or A..B..2x, like 1GB/s..64GB/s or 1..64..2x"


def _range(option: str, match: re.Match[str]) -> list[Any]:
    """Return the values of a range."""
    first, unit, last, last_unit, step, step_unit = match.groups(default="")
    unit = unit or last_unit
    low, high = Fraction(first), Fraction(last)
    by = Fraction(step or 1)
    factor = step_unit == "x"
    if last_unit != unit or (step_unit not in ("", unit) and not factor):
        raise UsageError(f"{option}: has several units; write both ends and the step in one")
    if low > high:
        raise UsageError(f"{option}: begins above its end; write the lower end first")
    if by <= (1 if factor else 0) or (factor and low <= 0):
        wrong = "a factor needs to be above 1, and the range above 0" if factor else "has no step"
        raise UsageError(f"{option}: {wrong}; {_HOW}")
    values: list[Fraction] = []
    value = low
    while value <= high:
        if len(values) == MOST_VALUES:
            raise UsageError(f"{option}: has more than {MOST_VALUES:,} values; write a larger step")
        values.append(value)
        value = value * by if factor else value + by
    return [_spelled(value, unit) for value in values]


def _spelled(value: Fraction, unit: str) -> Any:
    """Return a value with its unit as text, or as a number without one."""
    number = int(value) if value.denominator == 1 else float(value)
    return f"{number!r}{unit}" if unit else number
