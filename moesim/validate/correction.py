"""Two more numbers that a study may fit on its calibration configurations.

Calibration serves other workloads than the study, at other moments. A machine that has warmed up,
or that other users share, can be slower in all computation (`compute_factor`). It can also start
later on an expert that has just landed (`landing_ns`). Held-out configurations show whether the
correction holds for workloads that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.calibrate.steps import scaled
from moesim.cost.measured import OperationCost
from moesim.hardware.measurement import OperationTimes
from moesim.simulate.build import Plan

__all__ = ["Correction", "corrected", "fit_correction"]

_ROUNDS: Final = 4  # few, because each one simulates every plan three times
# Steps of the finite differences: large, because totals are whole nanoseconds.
_STEP: Final = (0.02, 20_000.0)
_LOW, _HIGH = (0.5, 0.0), (2.0, 2_000_000.0)


@dataclass(frozen=True, slots=True)
class Correction:
    """All computation takes `compute_factor` times as long.

    A computation that waited for its expert also starts `landing_ns` later.
    """

    compute_factor: float = 1.0
    landing_ns: float = 0.0


def corrected(plan: Plan, by: Correction) -> Plan:
    """Return the plan with its measured costs corrected; unmeasured costs stay as they are."""
    cost = plan.cost
    # Costs of a datasheet are not measured, so there is nothing to correct.
    if not isinstance(cost, OperationCost):
        return plan
    times = _corrected(cost.times, by)
    return replace(plan, cost=OperationCost(cost.hardware, cost.shape, times, pinned=cost.pinned))


def fit_correction(
    plans: Sequence[Plan],
    real_ns: Sequence[float],
    simulate_ns: Callable[[Plan], float],
) -> Correction:
    """Return the correction with least squared relative errors of the totals of `plans`.

    Gauss-Newton with finite differences suffices, because a total is nearly linear in both numbers.
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
        # A step may overshoot, so the best point so far is kept.
        if (squares := float(here @ here)) < least:
            best, least = at, squares
        slopes = np.stack(
            [(errors(at + _axis(i)) - here) / _STEP[i] for i in range(len(_STEP))], axis=1
        )
        scale = np.array(_STEP)  # a factor near 1 and nanoseconds: without it the fit is unstable
        move = scale * np.linalg.lstsq(slopes * scale, -here, rcond=None)[0]
        at = np.clip(at + move, _LOW, _HIGH)
    return Correction(float(best[0]), float(best[1]))


def _axis(place: int) -> npt.NDArray[np.float64]:
    return np.array([_STEP[i] if i == place else 0.0 for i in range(len(_STEP))])


def _corrected(times: OperationTimes, by: Correction) -> OperationTimes:
    landing_ns = times.landing_ns + by.landing_ns
    return scaled(times, by.compute_factor).model_copy(update={"landing_ns": landing_ns})
