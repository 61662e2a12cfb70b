"""Intervals of predictions: factors around the predicted value, by what a row leaves open.

Errors of speeds are ratios, so an interval is a factor each way. The factor of the model itself
comes from the rows with which the engine profiles were formed (docs/measured.md names them). A
figure that had to be supposed widens it: independent causes add as squares of logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Final

from moesim.measured.predict import Reading

__all__ = ["interval_of"]

_MODEL: Final = {"decode": 1.35, "prefill": 1.45, "small_batch": 1.45}
_FITTED: Final = 1.25
_SUPPOSED: Final = 1.08
"""The factor of one supposed part: the speed of memory, the processor, or the link."""
_MOST: Final = 1.7  # each way


def interval_of(
    reading: Reading, supposed: Sequence[str], *, fitted: bool = False
) -> tuple[float, float]:
    """Return the factors of the lower and upper end of the interval."""
    factors = [_FITTED if fitted else _MODEL[reading.group or "decode"]]
    factors += [] if fitted else [_SUPPOSED] * len(supposed)
    factor = min(_MOST, exp(sqrt(sum(log(each) ** 2 for each in factors))))
    return 1 / factor, factor
