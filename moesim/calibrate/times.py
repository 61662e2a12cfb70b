"""From samples to an entry of a profile: the fitted times of one model's operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from moesim.calibrate.fitting import Fit, Row, fit, pool, robust, split, verify
from moesim.calibrate.samples import ExpertWork, Layer, Readback, Samples
from moesim.calibrate.steps import scaled, step_factor
from moesim.cost.measured import LayerWork, layer_work
from moesim.cost.roofline import copy_ns
from moesim.errors import UsageError
from moesim.hardware.hardware import Link
from moesim.hardware.measurement import (
    ExpertTable,
    FetchTimes,
    LayerTimes,
    OperationTimes,
    ReadbackTimes,
    Residual,
    TailTimes,
    shape_profile,
)
from moesim.hardware.ops import BatchShape
from moesim.model.shapes import ModelShape

__all__ = ["fit_operations", "fit_times", "with_copies"]

# Rows at which the expert table may bend: nearly evenly spaced on a logarithmic scale.
_KNOTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def fit_times(shape: ModelShape, samples: Samples, *, seed: int = 0) -> OperationTimes:
    """Return the times of `shape`'s operations, each kind fitted to half of its points.

    Raise `UsageError` if a kind has too few points.
    """
    residuals: dict[str, Residual] = {}
    _check(samples, shape)
    backs = [(work, float(ns)) for work, ns in samples.readbacks]
    readback = fit(pool(backs), _readback_parts, seed=seed)
    base, byte, *asked, before = readback.coefficients
    # A tail's sample includes the readback of its sampled tokens, which has a price of its own.
    tails = [(work.batch, max(1.0, ns - base - byte * work.nbytes)) for work, ns in samples.tails]
    tail_fit = fit(pool(tails), _tail_parts, seed=seed)
    tail = tail_fit.coefficients
    residuals |= {"readback": readback.residual, "tail": tail_fit.residual}
    # A step's first layer takes longer than later ones, so its extra time is fitted apart.
    layers = _Layers(shape, seed)
    front, dense, first = layers.fit(samples)
    residuals.update(layers.residuals)
    experts, landing, call, calls = _fit_experts(samples.experts, seed)
    residuals["experts"] = calls.residual
    times = OperationTimes(
        shape=shape_profile(shape),
        experts=experts,
        front=front,
        dense=dense,
        first=first,
        tail=TailTimes(base_ns=tail[0], token_ns=tail[1], sequence_ns=tail[2], sampled_ns=tail[3]),
        readback=ReadbackTimes(base_ns=base, byte_ns=byte),
        landing_ns=landing,
        fetch=FetchTimes(
            call_ns=call,
            event_ns=asked[0] + layers.fetch_ns[0],
            copy_ns=asked[1] + before + layers.fetch_ns[1],
        ),
        residuals=residuals,
    )
    predict = {
        "experts": calls.predict,
        "fronts": layers.predict,
        "dense": layers.predict,
        "readbacks": readback.predict,
        "tails": lambda work: tail_fit.predict(work.batch) + base + byte * work.nbytes,
    }
    return scaled(times, step_factor(samples, predict))


def fit_operations(shape: ModelShape, samples: Samples, link: Link) -> OperationTimes:
    """Return the times of `fit_times`, and how much longer copies over `link` take in runs."""
    return with_copies(fit_times(shape, samples), samples, link)


def with_copies(times: OperationTimes, samples: Samples, link: Link) -> OperationTimes:
    """Return the times with the factor by which copies take longer in runs than alone."""
    ratios = [ns / copy_ns(link, nbytes, pinned=True) for nbytes, ns in samples.copies]
    factor = float(np.median(ratios)) if ratios else 1.0
    return times.model_copy(update={"copy_factor": max(1.0, factor)})


def _check(samples: Samples, shape: ModelShape) -> None:
    """Raise `UsageError` unless there are samples of every kind of operation of the model."""
    wanted = ["experts", "fronts", "readbacks", "tails"] + ["dense"] * bool(shape.dense_layers)
    missing = [name for name in wanted if len(getattr(samples, name)) < 2]
    if missing:
        raise UsageError(
            f"the measurements of {shape.name} hold too few {', '.join(missing)}; allow more time"
        )


def _tail_parts(batch: BatchShape) -> Row:
    return 1, batch.tokens, batch.sequences, batch.sampled


def _readback_parts(work: Readback) -> Row:
    return 1, work.nbytes, *_fetch_parts(work.copies), work.before


def _layer_parts(work: _LayerPoint) -> Row:
    return 1, *work.counts, *_fetch_parts(work.copies)


def _fetch_parts(copies: int) -> Row:
    """Return what a layer event with copies costs once, and for each copy."""
    return float(copies > 0), copies


class _LayerPoint(NamedTuple):
    """The counts of a layer, and how many experts were copied right before it."""

    counts: LayerWork
    copies: int


class _Layers:
    """Fits fronts and dense layers, and the extra time of the first layer of a step."""

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self._shape = shape
        self._windowed = set(shape.windowed_layers)
        self._seed = seed
        self.residuals: dict[str, Residual] = {}
        # What copies of the layer event before add to a front: once, and for each.
        self.fetch_ns: Sequence[float] = (0.0, 0.0)
        self._usual: dict[str, Callable[[Any], float]] = {}
        self._extra: Row = (0.0,) * len(_layer_parts(_LayerPoint(LayerWork(0, 0, 0, 0), 0)))

    def fit(self, samples: Samples) -> tuple[LayerTimes, LayerTimes | None, LayerTimes]:
        """Return the times of a front, of a dense layer (or None), and the first layer's extra."""
        times: dict[str, LayerTimes] = {}
        surplus: list[tuple[Any, float]] = []
        for kind, taken in (("front", samples.fronts), ("dense", samples.dense)):
            if not taken:
                continue
            later = [(self._work(w), float(ns)) for w, ns in taken if not w.first]
            begins = [(self._work(w), float(ns)) for w, ns in taken if w.first]
            usual = fit(pool(later or begins), _layer_parts, seed=self._seed)
            self.residuals[kind] = usual.residual
            times[kind] = _times(usual.coefficients)
            self._usual[kind] = usual.predict
            if kind == "front" and later:
                self.fetch_ns = usual.coefficients[-2:]
            if later and begins:
                surplus += [((work, usual.coefficients), ns) for work, ns in begins]
        return times["front"], times.get("dense"), self._first(surplus)

    def _first(self, surplus: Sequence[tuple[Any, float]]) -> LayerTimes:
        points = pool(surplus)
        if len(points) < 2:
            return LayerTimes(base_ns=0.0)
        fitted, held_out = split(points, self._seed)

        def usual(work: Any) -> float:
            return float(np.dot(_layer_parts(work[0]), work[1]))

        extra = robust(fitted, lambda work: _layer_parts(work[0]), usual)

        def predict(work: Any) -> float:
            return usual(work) + float(np.dot(_layer_parts(work[0]), extra))

        self.residuals["first"] = verify(held_out, predict, len(fitted))
        self._extra = tuple(map(float, extra))
        return _times(self._extra)

    def predict(self, layer: Layer) -> float:
        """Return the nanoseconds of a layer."""
        kind = "dense" if layer.layer in self._shape.dense_layers else "front"
        work = self._work(layer)
        extra = float(np.dot(_layer_parts(work), self._extra)) if layer.first else 0.0
        return self._usual[kind](work) + extra

    def _work(self, layer: Layer) -> _LayerPoint:
        window = self._shape.window if layer.layer in self._windowed else None
        return _LayerPoint(layer_work(layer.batch, window), layer.copies)


def _times(coefficients: Sequence[float]) -> LayerTimes:
    base, token, sequence, entry, pair, prefill, *_ = coefficients
    return LayerTimes(
        base_ns=base,
        token_ns=token,
        sequence_ns=sequence,
        kv_token_ns=entry,
        pair_ns=pair,
        prefill_ns=prefill,
    )


def _fit_experts(
    samples: Sequence[tuple[ExpertWork, int]], seed: int
) -> tuple[ExpertTable, float, float, Fit]:
    """Fit the table of rows, the delay after a landing, and what a copy adds to the calls.

    The fit itself predicts calls whose tokens are in any order.
    """
    points = pool((work._replace(tokens=tuple(sorted(work.tokens))), ns) for work, ns in samples)
    fitted, _ = split(points, seed)
    most = max(max(point.work.tokens) for point in fitted)
    least = min(min(point.work.tokens) for point in fitted)
    knots = [knot for knot in _KNOTS if least <= knot < most]
    knots = sorted({least, *knots, most})

    def parts(work: ExpertWork) -> Row:
        """Return the parts: experts, a call, a wait, copies, and rows between each two knots."""
        each = [0.0] * (len(knots) - 1)
        for count in work.tokens:
            for place, (low, high) in enumerate(pairwise(knots)):
                beyond = count if place == len(each) - 1 else min(count, high)
                each[place] += max(0, beyond - low)
        # A copy slows down what is computed while it is issued, which is about one expert.
        beside = min(work.copies, len(work.tokens))
        return [len(work.tokens), 1, float(work.landed), float(work.fresh), beside, *each]

    result = fit(points, parts, seed=seed)
    weights, call, landing, fresh, beside, *slopes = result.coefficients
    each_ns = [weights]
    for slope, (low, high) in zip(slopes, pairwise(knots), strict=True):
        each_ns.append(each_ns[-1] + slope * (high - low))
    table = ExpertTable(call_ns=call, tokens=knots, each_ns=each_ns)
    return table, landing, fresh + beside, result
