"""Durations fitted by sums of non-negative parts, robustly, on half of the points.

A *point* is all repeats of the same work: its parts, the median of its durations and their mean.
Errors are relative, because short steps are as frequent as long ones. Outliers (another process had
the processor) get less weight after Huber (1964). The scale of the errors is estimated with the
coefficients, so each round is one weighted least squares. Its coefficients are not negative
(scipy's `nnls`), so more work never costs less. A validation compares with medians of runs, so
medians are fitted too.

A part that is in proportion to the first part in all points cannot be told from it. The first part
then takes its time. Otherwise a layer of 24 tokens might take 24 times as long as one of a single
token, only because no other number of tokens was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.hardware.measurement import MOST_RATIO, Residual

__all__ = [
    "Fit",
    "Point",
    "Row",
    "fit",
    "pool",
    "robust",
    "split",
    "verify",
]

Array = npt.NDArray[np.float64]
Row = Sequence[float]

_ROUNDS: Final = 12
_HUBER: Final = 1.345  # in standard deviations: 95 % efficient where errors are normal
_MAD: Final = 1.4826  # standard deviations to a median absolute deviation


@dataclass(frozen=True, slots=True)
class Point:
    """All repeats of the same work, and the median of their durations."""

    work: Any
    duration_ns: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of a sum, in ns per unit of each part, their error, and the sum of a work."""

    coefficients: tuple[float, ...]
    residual: Residual
    predict: Callable[[Any], float]


def pool(samples: Iterable[tuple[Hashable, float]]) -> list[Point]:
    """Return one point for all samples of the same work, in the order of first appearance.

    If all samples are of the same work (one sequence decodes alone), return two points of every
    other sample, so that one can be held out.
    """
    groups: dict[Hashable, list[float]] = {}
    for work, duration_ns in samples:
        groups.setdefault(work, []).append(duration_ns)
    if len(groups) == 1:
        ((work, group),) = groups.items()
        return [_point(work, np.array(half)) for half in (group[::2], group[1::2]) if half]
    return [_point(work, np.array(group)) for work, group in groups.items()]


def _point(work: Any, durations: Array) -> Point:
    return Point(work, float(np.median(durations)), len(durations))


def split(points: Sequence[Point], seed: int = 0) -> tuple[list[Point], list[Point]]:
    """Return the points to fit, at most half of them, and the points to hold out.

    Of each two neighbours in duration one is drawn, so both halves cover the same range.
    Raise `UsageError` for fewer than two points.
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
    """Fit the durations of `points` as non-negative multiples of the `parts` of their work.

    The first part is positive in all points.
    """
    fitted, held_out = split(points, seed)
    coefficients = tuple(map(float, robust(fitted, parts)))

    def predict(work: Any) -> float:
        return float(np.dot(parts(work), coefficients))

    return Fit(coefficients, verify(held_out, predict, len(fitted)), predict)


def robust(
    points: Sequence[Point],
    parts: Callable[[Any], Row],
    offset: Callable[[Any], float] | None = None,
) -> Array:
    """Return the coefficients with small relative errors, except those of outliers.

    `offset` is a part of each duration that is already explained, in ns; the coefficients explain
    the rest.
    """
    from scipy.optimize import nnls  # slow to import

    rows = np.array([parts(point.work) for point in points], dtype=float)
    offsets = np.array([offset(point.work) if offset else 0.0 for point in points])
    durations = np.array([max(point.duration_ns, 1.0) for point in points])
    shares = rows[:, 1:] / rows[:, :1]
    rows[:, 1:] *= shares.min(axis=0) < shares.max(axis=0)
    weights = np.sqrt([point.repeats for point in points]) / durations
    trust = np.ones(len(points))
    coefficients = np.zeros(rows.shape[1])
    # Huber's loss by iterated reweighting: a point's trust falls with its error in the last round.
    for _ in range(_ROUNDS):
        scale = weights * np.sqrt(trust)
        coefficients, _ = nnls(rows * scale[:, None], (durations - offsets) * scale)
        errors = np.abs(rows @ coefficients + offsets - durations) / durations
        usual = _HUBER * _MAD * float(np.median(errors))
        if usual <= 0:
            break
        trust = np.minimum(1.0, usual / np.maximum(errors, 1e-300))
    return coefficients


def verify(held_out: Sequence[Point], predict: Callable[[Any], float], fitted: int) -> Residual:
    """Return the errors of a prediction on points that were not fitted."""
    measured = np.array([max(point.duration_ns, 1.0) for point in held_out])
    ratios = np.array([predict(point.work) for point in held_out]) / measured
    errors = np.abs(ratios - 1)
    spread = _MAD * float(np.median(np.abs(ratios - np.median(ratios))))
    return Residual(
        fitted=fitted,
        held_out=len(held_out),
        error_median=_capped(np.median(errors)),
        error_p90=_capped(np.quantile(errors, 0.9)),
        bias=_capped(np.median(ratios) - 1),
        # The standard error of a median is 1.2533 times that of a mean, for normal errors.
        interval=_capped(1.96 * 1.2533 * spread / np.sqrt(len(held_out))),
    )


def _capped(ratio: float) -> float:
    """Return a ratio that a profile can hold.

    On a busy machine what is left of a step after its known parts may be nothing: any prediction of
    it is then wrong by a factor without bounds.
    """
    return float(min(ratio, MOST_RATIO))
