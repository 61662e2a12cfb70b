"""Measured costs: durations of one model's operations on one machine, instead of a roofline.

`OperationCost` has the methods of `CostModel`, and takes durations from the `operations` of a
measured profile. Arithmetic is on integers and is rounded up to whole nanoseconds at the end. The
integers are femtoseconds, because a (query, key) pair takes less than a picosecond on a GPU.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from math import ceil
from typing import ClassVar, Final, NamedTuple

from moesim.cost.roofline import CostModel, remember
from moesim.engines.engine import IDEAL, Engine
from moesim.hardware.hardware import Hardware
from moesim.hardware.measurement import ExpertTable, LayerTimes, OperationTimes
from moesim.hardware.ops import BatchShape
from moesim.hardware.topology import H2D
from moesim.model.shapes import ModelShape

__all__ = ["LayerWork", "OperationCost", "layer_work"]

_FS: Final = 10**6  # femtoseconds in a nanosecond


class LayerWork(NamedTuple):
    """The counts whose weighted sum is the time of one layer without its routed experts.

    They mean what they mean in `BatchShape`, within what the layer's window lets tokens attend to.
    `prefill` is 1 if a sequence has several tokens, else 0.
    """

    tokens: int
    sequences: int
    kv_tokens: int
    pairs: int
    prefill: int = 0


def layer_work(batch: BatchShape, window: int | None) -> LayerWork:
    """Return the work of one layer, whose tokens attend to at most `window` positions."""
    entries, pairs = batch.kv_tokens, batch.pairs
    if window is not None:
        pairs = min(pairs, batch.tokens * window)
        entries = min(entries, batch.tokens * window)
    prefill = int(batch.tokens > batch.sequences)
    return LayerWork(batch.tokens, batch.sequences, entries, pairs, prefill)


class OperationCost(CostModel):
    """Measured durations of the operations of one model on one machine.

    Copies follow the figures of the link. Copies to the GPU also take the measured factor by which
    computations at the same time slow them down.
    """

    sums_experts: ClassVar[bool] = False

    def __init__(
        self,
        hardware: Hardware,
        shape: ModelShape,
        times: OperationTimes,
        *,
        pinned: bool = True,
        engine: Engine = IDEAL,
    ) -> None:
        super().__init__(hardware, shape, pinned=pinned, engine=engine)
        self.times = times
        self._table = _Table(times.experts)
        self._call_fs = _fs(times.experts.call_ns)
        self.landing_ns = ceil(times.landing_ns)
        fetch = times.fetch
        self._fetch_fs = _fs(fetch.call_ns), _fs(fetch.event_ns), _fs(fetch.copy_ns)
        self._front = _Layer(times.front)
        # A model without dense layers never uses the second.
        self._dense_times = _Layer(times.dense or times.front)
        self._first = _Layer(times.first)
        tail = times.tail
        self._tail_fs = tuple(
            map(_fs, (tail.base_ns, tail.token_ns, tail.sequence_ns, tail.sampled_ns))
        )
        self._copy_factor = Fraction(times.copy_factor)
        self._readback_fs = _fs(times.readback.base_ns), _fs(times.readback.byte_ns)

    def experts_ns(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None = None) -> int:
        """Return the nanoseconds of one grouped call, whose i-th expert computes `tokens[i]` rows.

        A call without experts takes 0. The measured sizes count, whatever `nbytes` is.
        """
        duration_ns = self._experts_memo.get(tokens)
        if duration_ns is None:
            sum_fs = sum(map(self._table.fs, tokens))
            # With a duration of 0, the events before and after the call would be simultaneous.
            duration_ns = max(1, _ceil_ns(self._call_fs + sum_fs)) if tokens else 0
            remember(self._experts_memo, tokens, duration_ns)
        return duration_ns

    @property
    def call_ns(self) -> int:
        return _ceil_ns(self._call_fs)

    def front_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of one MoE layer without its routed experts."""
        return self._layer_ns_of(self._front, layer, batch)

    def dense_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of a whole layer without routed experts."""
        return self._layer_ns_of(self._dense_times, layer, batch)

    def tail_ns(self, batch: BatchShape) -> int:
        """Return the nanoseconds from the last layer of a step to the start of the next step.

        The measurement includes a decoupled router, if the model has one.
        """
        base, token, sequence, sampled = self._tail_fs
        measured_ns = _ceil_ns(
            base + token * batch.tokens + sequence * batch.sequences + sampled * batch.sampled
        )
        return measured_ns + self.engine.step_ns

    def pageable(self) -> OperationCost:
        return OperationCost(
            self.hardware, self.shape, self.times, pinned=False, engine=self.engine
        )

    def copy_ns(self, lane: str, nbytes: int) -> int:
        """Return the nanoseconds of one copy without other copies, during computations."""
        idle_ns = super().copy_ns(lane, nbytes)
        return ceil(idle_ns * self._copy_factor) if lane == H2D else idle_ns

    def fetch_ns(self, copied: int) -> int:
        """See `CostModel.fetch_ns`."""
        call, event, copy = self._fetch_fs
        return _ceil_ns(call + (event + copy * copied if copied else 0))

    def readback_ns(self, nbytes: int) -> int:
        """Return the nanoseconds from the end of a front until its layer event starts work."""
        base, byte = self._readback_fs
        return _ceil_ns(base + byte * nbytes)

    def _layer_kind(self, layer: int) -> tuple[int, ...]:
        return (layer == 0, *super()._layer_kind(layer))  # the first layer has a time of its own

    def _layer_ns_of(self, times: _Layer, layer: int, batch: BatchShape) -> int:
        window = self.shape.window if layer in self._windowed else None
        work = layer_work(batch, window)
        return _ceil_ns(times.fs(work) + (self._first.fs(work) if layer == 0 else 0))


class _Layer:
    """`LayerTimes` as integers, in femtoseconds."""

    def __init__(self, times: LayerTimes) -> None:
        self._base = _fs(times.base_ns)
        self._each = LayerWork(
            _fs(times.token_ns),
            _fs(times.sequence_ns),
            _fs(times.kv_token_ns),
            _fs(times.pair_ns),
            _fs(times.prefill_ns),
        )

    def fs(self, work: LayerWork) -> int:
        """Return the femtoseconds of a layer with this work."""
        return self._base + sum(each * count for each, count in zip(self._each, work, strict=True))


class _Table:
    """`ExpertTable` as integers, in femtoseconds, with a memo. An expert without rows takes 0."""

    def __init__(self, table: ExpertTable) -> None:
        self._tokens = table.tokens
        self._each = [_fs(each) for each in table.each_ns]
        self._memo = {0: 0}

    def fs(self, count: int) -> int:
        """Return the femtoseconds of one expert with `count` rows."""
        duration_fs = self._memo.get(count)
        if duration_fs is None:
            duration_fs = self._memo[count] = self._interpolated(count)
        return duration_fs

    def _interpolated(self, count: int) -> int:
        tokens, each = self._tokens, self._each
        if count <= tokens[0]:
            return each[0]  # reading the weights takes most of the time, whatever the rows
        if len(tokens) == 1:
            # One entry gives no slope, so the time grows in proportion to the rows.
            return -(-each[0] * count // tokens[0])
        # Past the last entry, the last two entries give the slope.
        high = min(bisect_left(tokens, count), len(tokens) - 1)
        low = high - 1
        rise = (each[high] - each[low]) * (count - tokens[low])
        return each[low] - (-rise // (tokens[high] - tokens[low]))


def _fs(nanoseconds: float) -> int:
    """Return femtoseconds, rounded to the nearest integer without a float in between."""
    return round(Fraction(nanoseconds) * _FS)


def _ceil_ns(femtoseconds: int) -> int:
    return -(-femtoseconds // _FS)
