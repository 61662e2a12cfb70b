"""Two numbers that a study may fit on its calibration configurations, beyond what was calibrated.

Calibration serves workloads of its own, minutes before the study: a machine that has warmed up, or
that others use as well, is a little slower throughout (`compute_factor`), and takes longer to
start on an expert that has just landed (`landing_ns`). Held-out configurations say whether that
is more than an excuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.hardware.measurement import LayerTimes, OperationTimes
from moesim.hardware.operations import OperationCost
from moesim.wiring import Plan

__all__ = ["Correction", "corrected", "fit_correction"]

_ROUNDS: Final = 4
_STEP: Final = (0.02, 20_000.0)
_LOW, _HIGH = (0.5, 0.0), (2.0, 2_000_000.0)


@dataclass(frozen=True, slots=True)
class Correction:
    """All computation takes `compute_factor` times as long, and one that waited for its expert
    starts `landing_ns` later."""

    compute_factor: float = 1.0
    landing_ns: float = 0.0


def corrected(plan: Plan, by: Correction) -> Plan:
    """The plan with its measured costs corrected; with others, as it is."""
    cost = plan.cost
    if not isinstance(cost, OperationCost):
        return plan
    times = _corrected(cost.times, by)
    made = OperationCost(cost.hardware, cost.shape, times, pinned=cost.pinned)
    return replace(plan, cost=made)


def fit_correction(
    plans: Sequence[Plan],
    real_ns: Sequence[float],
    simulate_ns: Callable[[Plan], float],
) -> Correction:
    """The correction that makes the relative errors of the totals of `plans` least, in squares.

    Gauss-Newton with differences: a total is nearly linear in both numbers.
    """
    target = np.array(real_ns, float)

    def errors(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        by = Correction(float(at[0]), float(at[1]))
        totals = np.array([simulate_ns(corrected(plan, by)) for plan in plans], float)
        return np.asarray(totals / target - 1)

    at = np.array([1.0, 0.0])
    best, least = at, float("inf")
    for _ in range(_ROUNDS):
        here = errors(at)
        if (squares := float(here @ here)) < least:
            best, least = at, squares
        slopes = np.stack(
            [(errors(at + _axis(i)) - here) / _STEP[i] for i in range(len(_STEP))], axis=1
        )
        scale = np.array(_STEP)
        move = scale * np.linalg.lstsq(slopes * scale, -here, rcond=None)[0]
        at = np.clip(at + move, _LOW, _HIGH)
    return Correction(float(best[0]), float(best[1]))


def _axis(place: int) -> npt.NDArray[np.float64]:
    return np.array([_STEP[i] if i == place else 0.0 for i in range(len(_STEP))])


def _corrected(times: OperationTimes, by: Correction) -> OperationTimes:
    factor = by.compute_factor

    def scaled(part: Any) -> Any:
        """Every duration in a part of the times."""
        changes = {
            key: [factor * each for each in value] if isinstance(value, list) else factor * value
            for key, value in part.model_dump().items()
            if key.endswith("_ns")
        }
        return part.model_copy(update=changes)

    layers: dict[str, LayerTimes | None] = {
        key: None if (part := getattr(times, key)) is None else scaled(part)
        for key in ("front", "dense", "first")
    }
    changes = {
        "experts": scaled(times.experts),
        "landing_ns": times.landing_ns + by.landing_ns,
        **layers,
        "tail": scaled(times.tail),
        "readback": scaled(times.readback),
    }
    return times.model_copy(update=changes)
