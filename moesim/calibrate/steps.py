"""The factor by which whole steps take longer than the sum of their usual parts.

A machine delays some operation in most steps: another thread has the interpreter, another process
the core. Medians of single operations leave such delays out, and a mean counts rare long ones too.
A validation compares whole steps by their medians. So all times are scaled until the median step of
the samples is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np

from moesim.calibrate.samples import KINDS, Samples
from moesim.hardware.measurement import OperationTimes

__all__ = ["scaled", "step_factor"]

_LEAST_STEPS: Final = 3


def step_factor(samples: Samples, predict: Mapping[str, Callable[[Any], float]]) -> float:
    """Return the median over steps of their measured over their predicted time.

    `predict[kind]` gives the nanoseconds of a work of that kind of samples. Return 1 if there are
    too few steps.
    """
    ratios = []
    for begin, end in pairwise([(0,) * len(KINDS), *samples.steps]):
        measured = predicted = 0.0
        for kind, low, high in zip(KINDS, begin, end, strict=True):
            for work, ns in getattr(samples, kind)[low:high]:
                measured += ns
                predicted += predict[kind](work)
        if predicted > 0:
            ratios.append(measured / predicted)
    return float(np.median(ratios)) if len(ratios) >= _LEAST_STEPS else 1.0


def scaled(times: OperationTimes, factor: float) -> OperationTimes:
    """Return the times with all durations multiplied; copies over a link stay."""
    changes: dict[str, Any] = {"landing_ns": factor * times.landing_ns}
    for key in ("experts", "front", "dense", "first", "tail", "readback", "fetch"):
        if (part := getattr(times, key)) is not None:
            changes[key] = part.model_copy(update=_multiplied(part, factor))
    return times.model_copy(update=changes)


def _multiplied(part: Any, factor: float) -> dict[str, Any]:
    return {
        key: [factor * each for each in value] if isinstance(value, list) else factor * value
        for key, value in part.model_dump().items()
        if key.endswith("_ns")
    }
