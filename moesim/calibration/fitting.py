"""Durations fitted by sums of non-negative parts, robustly, on half of the points.

A *point* is all repeats of one and the same work: what it consists of, the median of its
durations and their mean. Errors are relative, since a step is as often short as long. Outliers
(another process had the processor) are weighed down after Huber (1964). The scale of the errors is
estimated with the coefficients, so each round is one weighted least squares with coefficients that
are not negative (scipy's `nnls`): more work never costs less. Durations are
skewed, and a run is a sum of many, so medians alone would fall short of it: at last all
coefficients are scaled for the sum of the fitted durations to be right, those beyond one and
a half times what is usual counted as that much.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.hardware.measurement import Residual

__all__ = [
    "Fit",
    "Point",
    "Row",
    "fit",
    "pool",
    "robust",
    "split",
    "swelling",
    "verify",
]

Array = npt.NDArray[np.float64]
Row = Sequence[float]

_ROUNDS: Final = 12
_HUBER: Final = 1.345  # in standard deviations: 95 % efficient where errors are normal
_MOST: Final = 1.5  # times the usual duration: more has other causes
_MAD: Final = 1.4826  # standard deviations to a median absolute deviation


@dataclass(frozen=True, slots=True)
class Point:
    """All repeats of one and the same work: the median of their durations, and the mean."""

    work: Any
    duration_ns: float
    repeats: int
    mean_ns: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of a sum, in ns per unit of each part, and how well they hold."""

    coefficients: tuple[float, ...]
    residual: Residual


def pool(samples: Iterable[tuple[Hashable, float]]) -> list[Point]:
    """Samples of the same work become one point, in the order of first appearance.

    Where all are of the same work, as where one sequence decodes alone, they become two, of every
    other one, so that some can be held out.
    """
    groups: dict[Hashable, list[float]] = {}
    for work, duration_ns in samples:
        groups.setdefault(work, []).append(duration_ns)
    if len(groups) == 1:
        ((work, group),) = groups.items()
        return [_point(work, np.array(half)) for half in (group[::2], group[1::2]) if half]
    return [_point(work, np.array(group)) for work, group in groups.items()]


def _point(work: Any, durations: Array) -> Point:
    median = float(np.median(durations))
    mean = float(np.minimum(durations, _MOST * median).mean())
    return Point(work, median, len(durations), mean)


def split(points: Sequence[Point], seed: int = 0) -> tuple[list[Point], list[Point]]:
    """At most half of the points to fit, the others to hold out.

    Of each two that are neighbours in duration one is drawn, so both halves cover the same range.
    Raises `UsageError` where there are fewer than two.
    """
    if len(points) < 2:
        raise UsageError(
            f"{len(points)} measured point is not enough to fit and to check; allow more time"
        )
    ordered = sorted(points, key=lambda point: point.duration_ns)
    rng = np.random.default_rng(seed)
    fitted, held_out = [], []
    for start in range(0, len(ordered), 2):
        pair = ordered[start : start + 2]
        if len(pair) == 1:
            held_out += pair
            break
        chosen = int(rng.integers(2))
        fitted.append(pair[chosen])
        held_out.append(pair[1 - chosen])
    return fitted, held_out


def fit(
    points: Sequence[Point],
    parts: Callable[[Any], Row],
    *,
    seed: int = 0,
) -> Fit:
    """The durations of `points` as non-negative multiples of the `parts` of their work."""
    fitted, held_out = split(points, seed)
    coefficients = robust(fitted, parts)
    scale = swelling(fitted, lambda work: float(np.dot(parts(work), coefficients)))
    made = tuple(float(scale * c) for c in coefficients)
    return Fit(made, verify(held_out, lambda work: float(np.dot(parts(work), made)), len(fitted)))


def robust(
    points: Sequence[Point],
    parts: Callable[[Any], Row],
    known: Callable[[Any], float] | None = None,
) -> Array:
    """Coefficients that make the relative errors small, those of outliers excepted.

    `known` is what a work takes besides, in ns; the coefficients are of the rest.
    """
    from scipy.optimize import nnls  # slow to import

    rows = np.array([parts(point.work) for point in points], dtype=float)
    besides = np.array([known(point.work) if known else 0.0 for point in points])
    durations = np.array([max(point.duration_ns, 1.0) for point in points])
    weights = np.sqrt([point.repeats for point in points]) / durations
    trust = np.ones(len(points))
    found = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        scale = weights * np.sqrt(trust)
        found, _ = nnls(rows * scale[:, None], (durations - besides) * scale)
        errors = np.abs(rows @ found + besides - durations) / durations
        usual = _HUBER * _MAD * float(np.median(errors))
        if usual <= 0:
            break
        trust = np.minimum(1.0, usual / np.maximum(errors, 1e-300))
    return found


def swelling(points: Sequence[Point], predict: Callable[[Any], float]) -> float:
    """How much longer the durations are, summed, than predicted; outliers count little."""
    usual = np.array([predict(point.work) for point in points])
    means = np.array([point.mean_ns for point in points])
    repeats = np.array([point.repeats for point in points], dtype=float)
    whole = float(np.dot(repeats, usual))
    return float(np.dot(repeats, np.minimum(means, _MOST * usual))) / whole if whole > 0 else 1.0


def verify(held_out: Sequence[Point], predict: Callable[[Any], float], fitted: int) -> Residual:
    """The errors of a prediction on points that it has not seen."""
    measured = np.array([max(point.duration_ns, 1.0) for point in held_out])
    ratios = np.array([predict(point.work) for point in held_out]) / measured
    errors = np.abs(ratios - 1)
    short = swelling(held_out, predict)
    spread = _MAD * float(np.median(np.abs(ratios - np.median(ratios))))
    return Residual(
        fitted=fitted,
        held_out=len(held_out),
        error_median=float(np.median(errors)),
        error_p90=float(np.quantile(errors, 0.9)),
        bias=1 / short - 1,
        interval=1.96 * 1.2533 * spread / np.sqrt(len(held_out)),
    )
