"""Intervals of predictions: factors around the predicted value, by what a row leaves open.

Errors of speeds are ratios, so an interval is a factor each way. What a row leaves open widens it:
independent causes add as squares of logarithms. docs/measured.md says how often intervals held.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Final

from moesim.measured.predict import Reading

__all__ = ["interval_of", "joined"]

_MODEL: Final = 1.38
"""The factor of the model itself."""
_FITTED: Final = 1.25
"""The same with two numbers fitted to the machine."""
_SUPPOSED: Final = (
    ("host memory is ", 1.2),
    ("the text names no card", 1.2),
    ("the text names no processor", 1.15),
)
"""The factors of supposed parts, by how their notes begin."""
_OTHER: Final = 1.05
_SEVERAL_MACHINES: Final = frozenset({"cuda", "cpu"})
"""Backends whose figures were fitted to several machines."""
_FEW_MACHINES: Final = {"decode": 1.1, "prefill": 1.6, "small_batch": 1.6}
"""The factor where they were fitted to one machine, or assumed: builds differ most in prompts."""


def interval_of(
    reading: Reading, supposed: Sequence[str], *, fitted: bool = False
) -> tuple[float, float]:
    """Return the factors of the lower and upper end of the interval.

    A fit is one of decode rows, so it narrows the intervals of decode only.
    """
    group = reading.group or "decode"
    known = fitted and group == "decode"
    factors = [_FITTED] if known else [_MODEL, *map(_factor_of, supposed)]
    if not known and reading.engine.backend.casefold() not in _SEVERAL_MACHINES:
        factors.append(_FEW_MACHINES[group])
    factor = joined(*factors)
    return 1 / factor, factor


def joined(*factors: float) -> float:
    """Return the factor, at least 1, of independent causes: squares of logarithms add."""
    return exp(sqrt(sum(log(each) ** 2 for each in factors)))


def _factor_of(supposed: str) -> float:
    return next((factor for start, factor in _SUPPOSED if supposed.startswith(start)), _OTHER)
