"""Two numbers for each machine and engine, fitted to a few of its rows.

The numbers are the bandwidth at which the CPU reads weights (on machines with unified memory, at
which all do) and the host time of a layer. Fitted are decode rows that permit it (`fit: true`), by
least squares on the logarithm of the time. Such rows get no prediction. With one row, one number is
fitted: the one with the greater share of the time, because the other can hardly be seen in it. Of
pairs that fit equally well, the one nearest to the assumed numbers is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.measured.predict import Answer, Declined, Reading

__all__ = [
    "Fitted",
    "TimeModel",
    "Times",
    "engine_of",
    "fit_machines",
    "fit_two",
    "machine_of",
    "owned_by",
    "parts_of",
]

Number = Literal["read_bandwidth", "layer_ns"]
NUMBERS: Final[tuple[Number, Number]] = ("read_bandwidth", "layer_ns")
_MOST: Final = (50.0, 5.0)
"""The most by which a fitted number, reads and layer, is above or below the assumed one."""
_ROUNDS: Final = 8
_STILL: Final = 1e-4
"""A smaller change of both logarithms ends the search."""
_CLOSE: Final = 1e-6
_NEAR: Final = 0.001
"""Weight of the distance from the assumed numbers: one e-fold counts as an error of 0.1 %."""
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The numbers of one machine and engine, and the indices of the rows that they come from.

    `read_bandwidth` is in bytes per second. `fitted` names the numbers that were fitted; the other
    is the assumed one.
    """

    machine: str
    engine: str
    read_bandwidth: float
    layer_ns: float
    fitted: tuple[Number, ...]
    rows: tuple[int, ...]
    note: str = ""
    owner: str = ""


class Times(Protocol):
    """The times of rows at two numbers of their machine: all that a fit asks for."""

    def assumed(self, reading: Reading, /) -> tuple[float, float]:
        """Return the read bandwidth (bytes per second) and the host time of a layer (ns)."""

    def seconds(self, reading: Reading, read_bandwidth: float, layer_ns: float, /) -> float:
        """Return the seconds of one token of a row at these two numbers."""


class TimeModel(Times, Protocol):
    """What predicts rows, and can do so with other numbers for a machine."""

    def predict(self, reading: Reading, /) -> Answer:
        """Return a prediction, or why there is none."""

    def with_fitted(self, fits: Sequence[Fitted], /) -> TimeModel:
        """Return the model that predicts the fitted machines with their fitted numbers."""


_THREADS: Final = re.compile(r"(?:,|\s-t)\s*\d+\s*(?:threads?.*|cores?)?$", re.IGNORECASE)


_OWNER: Final = re.compile(r"[\s/#@]")


def machine_of(reading: Reading) -> str:
    """Return the machine of a row: its GPU and CPU, without the number of threads."""
    cpu = _THREADS.sub("", reading.row.cpu).strip()
    return " / ".join(part for part in (reading.row.gpu, cpu) if part)


def owned_by(reading: Reading) -> tuple[str, str, str]:
    """Return machine, engine, and the account or site that published the row.

    Machines of one kind of two owners differ, in their software too.
    """
    return machine_of(reading), engine_of(reading), _OWNER.split(reading.row.source, maxsplit=1)[0]


def engine_of(reading: Reading) -> str:
    """Return the engine of a row with its backend."""
    return f"{reading.engine.name} {reading.engine.backend}".strip()


def fit_machines(
    readings: Sequence[Reading], values: Sequence[float | None], model: TimeModel
) -> list[Fitted]:
    """Fit each machine and engine that has rows with `fit: true`, in the order of the rows.

    Rows without a value, of another metric than decode, or that the model declines, are not used.
    """
    parts: dict[tuple[str, str, str], list[tuple[Reading, float]]] = {}
    for reading, value in zip(readings, values, strict=True):
        if reading.row.fit and value and reading.group == "decode" and not reading.reason:
            if isinstance(model.predict(reading), Declined):
                continue
            key = owned_by(reading)
            parts.setdefault(key, []).append((reading, value))
    return [fit_two(rows, model) for rows in parts.values()]


def fit_two(rows: Sequence[tuple[Reading, float]], model: Times) -> Fitted:
    """Fit one or two numbers to rows of one machine with their measured tokens per second."""
    readings = [reading for reading, _ in rows]
    bandwidth, layer_ns = model.assumed(readings[0])
    numbers, note = _numbers(readings, model, bandwidth, layer_ns)
    free = np.array([number in numbers for number in NUMBERS])
    values = np.array([value for _, value in rows])
    logs, best = np.zeros(2), np.inf
    step, tried = np.zeros(2), logs
    for _ in range(_ROUNDS):
        numbers_tried = bandwidth * np.exp(tried[0]), layer_ns * np.exp(tried[1])
        whole = [model.seconds(reading, *numbers_tried) for reading in readings]
        error = float(np.sum(np.log(whole * values) ** 2) + _NEAR**2 * tried @ tried)
        if error < best:
            logs, best = tried, error
            parts = parts_of(readings, model, *numbers_tried, whole)
            step = _least_squares(parts, values, free, logs)
        else:  # times are not affine there: reads may be as fast as the memory is
            step = step / 2
        if np.max(np.abs(step)) < _STILL:
            break
        tried = logs + step
    factors = np.exp(logs)
    ends = [
        name
        for name, log, most in zip(NUMBERS, logs, np.log(_MOST), strict=True)
        if abs(log) > most - 0.01
    ]
    limits = [f"{name} reached the limit of the fit" for name in ends]
    return Fitted(
        machine_of(readings[0]), engine_of(readings[0]),
        float(bandwidth * factors[0]), float(layer_ns * factors[1]), numbers,
        tuple(reading.row.index for reading in readings), "; ".join(filter(None, (note, *limits))),
        owned_by(readings[0])[2],
    )  # fmt: skip


def _numbers(
    readings: Sequence[Reading], model: Times, bandwidth: float, layer_ns: float
) -> tuple[tuple[Number, ...], str]:
    """Return which numbers are fitted, and why not both."""
    if len(readings) > 1:
        return NUMBERS, ""
    fixed, reads, host = parts_of(readings, model, bandwidth, layer_ns)[0]
    whole = fixed + reads + host
    chosen = NUMBERS[0] if reads >= host else NUMBERS[1]
    shares = f"reads take {reads / whole:.0%} of its time and layers {host / whole:.0%}"
    return (chosen,), f"one row, so only {chosen} is fitted: {shares}"


def parts_of(
    readings: Sequence[Reading],
    model: Times,
    bandwidth: float,
    layer_ns: float,
    whole_s: Sequence[float] | None = None,
) -> _Floats:
    """Return for each row the seconds that neither number changes, of reads, and of layers (n, 3).

    Decode time is affine in 1 / bandwidth and in the time of a layer, so three prices tell them.
    Half the bandwidth is asked for, because twice as much may exceed what the memory has. `whole_s`
    are the times at these numbers, if they are known.
    """
    parts = []
    if whole_s is None:
        whole_s = [model.seconds(reading, bandwidth, layer_ns) for reading in readings]
    for reading, whole in zip(readings, whole_s, strict=True):
        reads = model.seconds(reading, bandwidth / 2, layer_ns) - whole
        host = whole - model.seconds(reading, bandwidth, 0.0)
        parts.append((whole - reads - host, reads, host))
    split: _Floats = np.maximum(np.array(parts), 0.0)
    return split


def _least_squares(parts: _Floats, values: _Floats, free: Any, logs: _Floats) -> _Floats:
    """Return the change of both logarithms with the least squares of log errors."""
    from scipy.optimize import least_squares

    def errors(change: _Floats) -> Any:
        both = np.zeros(2)
        both[free] = change
        times = parts[:, 0] + parts[:, 1] * np.exp(-both[0]) + parts[:, 2] * np.exp(both[1])
        return np.concatenate([np.log(times * values), _NEAR * (logs + both)])

    most = np.log(_MOST)[free]
    # At a limit, rounding must not put the start of the search outside of it.
    limits = (
        np.minimum(-most - logs[free], -_CLOSE),
        np.maximum(most - logs[free], _CLOSE),
    )
    found = least_squares(errors, np.zeros(int(free.sum())), bounds=limits, xtol=1e-12, ftol=1e-12)
    step = np.zeros(2)
    step[free] = found.x
    return step
