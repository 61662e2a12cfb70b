"""How well predictions agree with measured values: medians, shares within a limit, coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.measured.predict import Answer, Prediction, Reading

__all__ = ["FITTED", "GROUPS", "depth_range", "error_pct", "scores", "summary"]

GROUPS: Final = ("decode", "prefill", "small_batch")
FITTED: Final = "fitted"
"""The reason of a row whose value two numbers of its machine were fitted to."""
_LIMITS_PCT: Final = (25, 40)
_DEPTHS: Final = ((1, "0"), (4096, "1-4095"), (16384, "4096-16383"), (65536, "16384-65535"))
_DEEPEST: Final = "65536 and more"


@dataclass(frozen=True, slots=True)
class _Scored:
    """One counted row: its prediction and its value, None where there is none."""

    reading: Reading
    prediction: Prediction | None
    value: float | None


def error_pct(prediction: float, value: float) -> float:
    """Return the error of a prediction in per cent of the measured value."""
    return 100 * (prediction / value - 1)


def summary(
    readings: Sequence[Reading], answers: Sequence[Answer], values: Sequence[float | None]
) -> dict[str, Any]:
    """Return scores for each group, and within it by engine, GPU, model, placement and depth.

    Counted are rows of a counted kind and a known metric that were not used to fit. "declined" says
    how many rows have which kind of reason.
    """
    scored: dict[str, list[_Scored]] = {group: [] for group in GROUPS}
    declined: dict[str, int] = {}
    for reading, answer, value in zip(readings, answers, values, strict=True):
        prediction = answer if isinstance(answer, Prediction) else None
        if prediction is None:
            why = getattr(answer, "reason", "").partition(":")[0]
            declined[why] = declined.get(why, 0) + 1
        if reading.group is not None and reading.kind.counted and not _fitted(answer):
            scored[reading.group].append(_Scored(reading, prediction, value))
    groups = {
        group: {**scores(rows), "by": {name: _split(rows, key) for name, key in _KEYS.items()}}
        for group, rows in scored.items()
    }
    return {
        "rows": len(readings),
        "groups": groups,
        "declined": dict(sorted(declined.items(), key=lambda item: (-item[1], item[0]))),
    }


def scores(rows: Sequence[_Scored]) -> dict[str, Any]:
    """Return the scores of rows; those that need a value or a prediction are None without one.

    `coverage` is predicted rows among counted ones, `inside` the share of values in their interval,
    `width` the median of high over low.
    """
    predicted = [row.prediction for row in rows if row.prediction is not None]
    pairs = [(r.prediction, r.value) for r in rows if r.prediction is not None and r.value]
    errors = np.array([error_pct(prediction.value, value) for prediction, value in pairs])
    inside = np.array([prediction.low <= value <= prediction.high for prediction, value in pairs])
    widths = np.array([prediction.high / prediction.low for prediction in predicted])
    return {
        "counted": len(rows),
        "predicted": len(predicted),
        "compared": len(pairs),
        "coverage": len(predicted) / len(rows) if rows else None,
        "median_abs_error_pct": _of(np.median, np.abs(errors)),
        "median_error_pct": _of(np.median, errors),
        **{f"within_{limit}_pct": _of(np.mean, np.abs(errors) <= limit) for limit in _LIMITS_PCT},
        "inside": _of(np.mean, inside),
        "width": _of(np.median, widths),
    }


def depth_range(depth: int | None) -> str:
    """Return the range in which a depth is reported."""
    if depth is None:
        return "unknown"
    return next((name for limit, name in _DEPTHS if depth < limit), _DEEPEST)


_KEYS: Final[dict[str, Callable[[Reading], str]]] = {
    "engine": lambda reading: f"{reading.engine.name} {reading.engine.backend}".strip(),
    "gpu": lambda reading: reading.row.gpu,
    "model": lambda reading: reading.row.model,
    "placement": lambda reading: reading.kind.name,
    "depth": lambda reading: depth_range(reading.row.depth),
}


def _split(rows: Sequence[_Scored], key: Callable[[Reading], str]) -> dict[str, dict[str, Any]]:
    parts: dict[str, list[_Scored]] = {}
    for row in rows:
        parts.setdefault(key(row.reading), []).append(row)
    order = {name: place for place, name in enumerate((*(name for _, name in _DEPTHS), _DEEPEST))}
    names = sorted(parts, key=lambda name: (order.get(name, len(order)), name))
    return {name: scores(parts[name]) for name in names}


def _fitted(answer: Answer) -> bool:
    return not isinstance(answer, Prediction) and answer.reason == FITTED


def _of(statistic: Callable[[Any], Any], values: Any) -> float | None:
    """Return a statistic of values, None where there are none."""
    return float(statistic(values)) if len(values) else None
