"""A threshold of the gate, like `ttft_p99_ms > +5%`: it fails the gate if it holds.

The limit has one of three kinds:
- `+5%` or `-5%`: a change relative to the baseline;
- `+3ms` or `-3ms`: a change in the metric's unit, and `+2pp` in percentage points of a share;
- `120` or `120ms`: a value, for which no baseline is needed. `30%` is the value of a share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from moesim.config.units import BYTES, DURATIONS_NS
from moesim.errors import UsageError, shown
from moesim.results.metric_names import SIGNS, compared, metric_named, unit_of

__all__ = ["Kind", "Threshold", "parse_threshold"]

Kind = Literal["value", "change", "relative"]

_EXAMPLE: Final = "ttft_p99_ms > +5%"
_FORMS: Final = "a limit (+5% or -5%, +3 or -3 in the metric's unit, or a value)"
_LIMIT: Final = re.compile(r"([+-]?)\s*(\d{1,15}(?:\.\d{1,15})?)\s*([^\d\s.]\S*)?", re.ASCII)
_SIZES: Final[Mapping[str, Mapping[str, Fraction]]] = {
    "ms": {unit: Fraction(ns, 10**6) for unit, ns in DURATIONS_NS.items()},
    "s": {unit: Fraction(ns, 10**9) for unit, ns in DURATIONS_NS.items()},
    "bytes": {unit: Fraction(size) for unit, size in BYTES.items()},
    "/s": dict.fromkeys(("/s", "tokens/s", "requests/s"), Fraction(1)),
    "share": {"%": Fraction(1, 100), "pp": Fraction(1, 100)},
    "": {},
}
"""The units that a limit may have, by the unit of the metric, each in units of the metric."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """What fails the gate: a metric, a sign, and a limit.

    `limit` is in the metric's unit, or a share of the baseline if `kind` is "relative". `text` is
    what the user wrote.
    """

    text: str
    metric: str
    sign: str
    limit: float
    kind: Kind

    def holds(self, value: float) -> bool:
        """Return whether a value, or a change, exceeds the threshold."""
        return SIGNS[self.sign](value, self.limit)


def parse_threshold(text: str, option: str = "--fail-if") -> Threshold:
    """Return the threshold in a text like `"ttft_p99_ms > +5%"`.

    Raises:
        UsageError: the text has another form, the metric is not known, or the unit is not its own.
    """
    name, sign, limit = compared(option, text, _FORMS, _EXAMPLE)
    metric = metric_named(option, name)
    match = _LIMIT.fullmatch(limit)
    if match is None:
        raise UsageError(f"{option} {shown(text)}: {shown(limit)} is no limit; write {_FORMS}")
    direction, digits, unit = match.groups(default="")
    number = Fraction(digits) * (-1 if direction == "-" else 1)
    if direction and unit == "%":
        return Threshold(text, metric, sign, float(number / 100), "relative")
    kind: Kind = "change" if direction else "value"
    return Threshold(text, metric, sign, float(number * _size(option, text, metric, unit)), kind)


def _size(option: str, text: str, metric: str, unit: str) -> Fraction:
    """Return a unit in units of the metric. Raise UsageError if the metric has no such unit."""
    sizes = _SIZES[unit_of(metric)]
    if not unit:
        return Fraction(1)
    if unit in sizes:
        return sizes[unit]
    if unit == "%":
        why = "% without a sign is the value of a share; write +5% or -5% for a change"
    else:
        why = f"{shown(unit)} is no unit of {metric}; it has " + (", ".join(sizes) or "none")
    raise UsageError(f"{option} {shown(text)}: {why}")
