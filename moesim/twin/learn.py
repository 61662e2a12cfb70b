"""What the samples tell of a machine: two numbers, how sure they are, and how well they fit.

The fit is that of `moesim measured --fit two`. The uncertainty is that of least squares, with the
spread of the residuals. The spread of few rows is itself uncertain, so an assumed spread counts as
two more rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.errors import UsageError
from moesim.measured.fit import (
    Fitted,
    TimeModel,
    Times,
    fit_machines,
    fit_two,
    owned_by,
    parts_of,
)
from moesim.measured.predict import Reading
from moesim.twin.samples import Sample, Samples

__all__ = ["SPREAD", "Learned", "Number", "Residual", "learn"]

SPREAD: Final = 0.06
"""Assumed: the spread of measured times around the best line, as a share."""
_AS_ROWS: Final = 2
_TWO_SIDED: Final = 1.96  # of the normal distribution, for 95 %
_RIGHT_WITHIN: Final = 3.0
"""Assumed: the factor by which a true number differs from the assumed one, in 95 % of machines."""
_UNSEEN: Final = 2.5
"""A number that may be wrong by this factor is not determined by the rows."""
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Number:
    """A fitted number with the assumed one and its interval of 95 %.

    `seen` is false where the rows do not determine it: it is then near the assumed one.
    """

    name: str
    value: float
    assumed: float
    low: float
    high: float
    seen: bool


@dataclass(frozen=True, slots=True)
class Residual:
    """A sample with the speed of the fitted machine, in tokens per second.

    `left_out` is the speed where the row was left out of the fit; None for fewer than three rows.
    """

    sample: Sample
    assumed: float
    fitted: float
    left_out: float | None = None

    @property
    def error_pct(self) -> float:
        """The error of the fitted speed in per cent of the measured one."""
        return 100 * (self.fitted / self.sample.value - 1)

    @property
    def left_out_pct(self) -> float | None:
        """The error without the row, in per cent."""
        return None if self.left_out is None else 100 * (self.left_out / self.sample.value - 1)


class _Around:
    """Simulated times near the fitted numbers: affine in 1 / bandwidth and in the layer's time.

    They are `Times` of the samples only, for fits that leave one out.
    """

    def __init__(
        self, model: Times, readings: Sequence[Reading], fit: Fitted, parts: _Floats
    ) -> None:
        self._assumed = model.assumed(readings[0])
        self._fit = fit
        self._parts = {
            reading.row.index: part for reading, part in zip(readings, parts, strict=True)
        }

    def assumed(self, reading: Reading) -> tuple[float, float]:
        return self._assumed

    def seconds(self, reading: Reading, read_bandwidth: float, layer_ns: float) -> float:
        fixed, reads, host = self._parts[reading.row.index]
        slower = self._fit.read_bandwidth / read_bandwidth
        return float(fixed + reads * slower + host * layer_ns / self._fit.layer_ns)


@dataclass(frozen=True)
class Learned:
    """A machine with its two fitted numbers.

    `parts` has for each decode sample the seconds that neither number changes, of reads, and of
    layers, at the fitted numbers (n, 3).
    """

    fit: Fitted
    assumed: tuple[float, float]
    samples: tuple[Sample, ...]
    assumed_tok_s: tuple[float, ...]
    parts: _Floats

    @property
    def times(self) -> _Floats:
        """Seconds of a token of each sample, at the fitted numbers."""
        times: _Floats = self.parts.sum(axis=1)
        return times

    @cached_property
    def slopes(self) -> _Floats:
        """The change of each logarithm of a time with those of both numbers (n, 2)."""
        return slopes_of(self.parts)

    @property
    def settings(self) -> int:
        """Settings that differ, repeated measurements counted once."""
        return len({(s.reading.row.setting, s.reading.row.depth, s.reading.row.model,
                     s.reading.row.quant) for s in self.samples})  # fmt: skip

    @cached_property
    def spread(self) -> float:
        """The spread of the rows around the line as a share, with the assumed one."""
        values = np.array([sample.value for sample in self.samples])
        errors = np.log(self.times * values)
        freedom = max(0, len(values) - len(self.fit.fitted))
        return sqrt((float(errors @ errors) + _AS_ROWS * SPREAD**2) / (freedom + _AS_ROWS))

    @cached_property
    def covariance(self) -> _Floats:
        """The covariance of the logarithms of both numbers (2, 2)."""
        free = [name in self.fit.fitted for name in ("read_bandwidth", "layer_ns")]
        slopes = self.slopes * np.array(free)
        known = (self.spread * _TWO_SIDED / log(_RIGHT_WITHIN)) ** 2
        covariance: _Floats = self.spread**2 * np.linalg.inv(slopes.T @ slopes + known * np.eye(2))
        return covariance * np.outer(free, free)

    def uncertainty(self, slopes: _Floats) -> float:
        """Return the half-width of the 95 % interval of a time's logarithm, by its slopes (2,)."""
        return _TWO_SIDED * sqrt(max(0.0, float(slopes @ self.covariance @ slopes)))

    def numbers(self) -> tuple[Number, Number]:
        """Return both numbers."""
        first, second = (
            self._number(place, name) for place, name in enumerate(("read_bandwidth", "layer_ns"))
        )
        return first, second

    def _number(self, place: int, name: str) -> Number:
        value = float(getattr(self.fit, name))
        factor = exp(_TWO_SIDED * sqrt(self.covariance[place, place]))
        seen = name in self.fit.fitted and factor < _UNSEEN
        return Number(name, value, self.assumed[place], value / factor, value * factor, seen)

    def residuals(self, model: TimeModel) -> list[Residual]:
        """Return the residual of each sample, with that of a fit without it for three or more."""
        rows = [(sample.reading, sample.value) for sample in self.samples]
        near = _Around(model, [reading for reading, _ in rows], self.fit, self.parts)
        found = []
        for place, sample in enumerate(self.samples):
            without = None
            if len(rows) > 2:
                fit = fit_two([*rows[:place], *rows[place + 1 :]], near)
                without = 1 / near.seconds(sample.reading, fit.read_bandwidth, fit.layer_ns)
            fitted = 1 / float(self.times[place])
            found.append(Residual(sample, self.assumed_tok_s[place], fitted, without))
        return found


def slopes_of(parts: Any) -> _Floats:
    """Return the change of the logarithm of times with those of bandwidth and layer time."""
    whole = parts.sum(axis=-1, keepdims=True)
    slopes: _Floats = np.concatenate([-parts[..., 1:2], parts[..., 2:3]], axis=-1) / whole
    return slopes


def learn(samples: Samples, model: TimeModel) -> Learned:
    """Fit the two numbers of one machine to its decode samples.

    Raises:
        UsageError: there are no decode samples, or those of several machines or engines.
    """
    decodes = samples.decodes
    if not decodes:
        raise UsageError(
            "the logs time no single tokens (tg, or eval time), which the numbers are fitted to"
        )
    readings = [sample.reading for sample in decodes]
    owners = list(dict.fromkeys(" with ".join(owned_by(reading)[:2]) for reading in readings))
    if len(owners) > 1:
        raise UsageError(
            f"the logs are of several machines or engines: {'; '.join(owners)}. Give the logs of "
            "one, or the parts of the machine as options"
        )
    fits = fit_machines(readings, [sample.value for sample in decodes], model)
    if not fits:
        raise UsageError(f"{decodes[0].place}: no measurement can be predicted")
    (fit,) = fits
    used = tuple(sample for sample in decodes if sample.reading.row.index in fit.rows)
    kept = [sample.reading for sample in used]
    assumed = model.assumed(kept[0])
    plain = tuple(1 / model.seconds(reading, *model.assumed(reading)) for reading in kept)
    parts = parts_of(kept, model, fit.read_bandwidth, fit.layer_ns)
    return Learned(fit, assumed, used, plain, parts)
