"""Measured costs: what operations of one model took on one machine, in place of a roofline.

The same questions as `CostModel`, answered from the `operations` of a measured profile. Arithmetic
is on integers (femtoseconds, since a pair of query and key takes less than a picosecond on a
GPU), rounded up to whole nanoseconds at the end.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from math import ceil
from typing import Final, NamedTuple

from moesim.hardware.cost import CostModel, Direction, remember
from moesim.hardware.hardware import Hardware
from moesim.hardware.measurement import ExpertTable, LayerTimes, OperationTimes
from moesim.hardware.ops import BatchShape
from moesim.hardware.shapes import ModelShape

__all__ = ["LayerWork", "OperationCost", "cost_of", "layer_work"]

_FS: Final = 10**6  # femtoseconds in a nanosecond


class LayerWork(NamedTuple):
    """What the time of one layer without its routed experts is a sum over."""

    tokens: int
    sequences: int
    kv_tokens: int
    pairs: int


def layer_work(batch: BatchShape, window: int | None) -> LayerWork:
    """The work of one layer; a `window` bounds what its tokens can see."""
    entries, pairs = batch.kv_tokens, batch.pairs
    if window is not None:
        pairs = min(pairs, batch.tokens * window)
        entries = min(entries, batch.tokens * window)
    return LayerWork(batch.tokens, batch.sequences, entries, pairs)


def cost_of(hardware: Hardware, shape: ModelShape, *, pinned: bool = True) -> CostModel:
    """Measured costs where the profile has them for this very shape, else the roofline."""
    times = hardware.operations_of(shape)
    if times is None:
        return CostModel(hardware, shape, pinned=pinned)
    return OperationCost(hardware, shape, times, pinned=pinned)


class OperationCost(CostModel):
    """Prices of one model on one machine, as they were measured there.

    Copies cost what the figures of the link say, those of experts times what a run that computes
    beside them makes of it.
    """

    def __init__(
        self,
        hardware: Hardware,
        shape: ModelShape,
        times: OperationTimes,
        *,
        pinned: bool = True,
    ) -> None:
        super().__init__(hardware, shape, pinned=pinned)
        self.times = times
        self._table = _Table(times.experts)
        self._call_fs = _fs(times.experts.call_ns)
        self.landing_ns = ceil(times.landing_ns)
        self._front = _Layer(times.front)
        self._dense_times = _Layer(times.dense or times.front)
        self._first = _Layer(times.first)
        tail = times.tail
        self._tail_fs = tuple(
            map(_fs, (tail.base_ns, tail.token_ns, tail.sequence_ns, tail.sampled_ns))
        )
        self._copy_factor = Fraction(times.copy_factor)
        self._readback_fs = _fs(times.readback.base_ns), _fs(times.readback.byte_ns)

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """One grouped call, `tokens[i]` rows through its i-th expert; none cost nothing."""
        known = self._experts_memo.get(tokens)
        if known is None:
            each = sum(map(self._table.fs, tokens))
            # No time at all would be a tie of everything that happens around it.
            known = max(1, _ceil_ns(self._call_fs + each)) if tokens else 0
            remember(self._experts_memo, tokens, known)
        return known

    def front_ns(self, layer: int, batch: BatchShape) -> int:
        """One MoE layer up to its experts."""
        return self._layer_price(self._front, layer, batch)

    def dense_ns(self, layer: int, batch: BatchShape) -> int:
        """A whole layer without routed experts."""
        return self._layer_price(self._dense_times, layer, batch)

    def tail_ns(self, batch: BatchShape) -> int:
        """The end of a step, and the way to the next; whatever ran there was measured with it,
        a decoupled router too."""
        base, token, sequence, sampled = self._tail_fs
        return _ceil_ns(
            base + token * batch.tokens + sequence * batch.sequences + sampled * batch.sampled
        )

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        """One copy with the link to itself, beside computations."""
        alone = super().copy_ns(direction, nbytes)
        return ceil(alone * self._copy_factor) if direction == "h2d" else alone

    def readback_ns(self, nbytes: int) -> int:
        """From the end of a front until the first work of its layer event begins."""
        base, byte = self._readback_fs
        return _ceil_ns(base + byte * nbytes)

    def _price_kind(self, layer: int) -> tuple[bool, ...]:
        return (layer == 0, *super()._price_kind(layer))

    def _layer_price(self, times: _Layer, layer: int, batch: BatchShape) -> int:
        window = self.shape.window if layer in self._windowed else None
        work = layer_work(batch, window)
        return _ceil_ns(times.fs(work) + (self._first.fs(work) if layer == 0 else 0))


class _Layer:
    """`LayerTimes` in femtoseconds."""

    def __init__(self, times: LayerTimes) -> None:
        self._base = _fs(times.base_ns)
        self._each = LayerWork(
            _fs(times.token_ns),
            _fs(times.sequence_ns),
            _fs(times.kv_token_ns),
            _fs(times.pair_ns),
        )

    def fs(self, work: LayerWork) -> int:
        return self._base + sum(each * count for each, count in zip(self._each, work, strict=True))


class _Table:
    """`ExpertTable` in femtoseconds, with a memo. No rows cost nothing."""

    def __init__(self, table: ExpertTable) -> None:
        self._tokens = table.tokens
        self._each = [_fs(each) for each in table.each_ns]
        self._memo = {0: 0}

    def fs(self, count: int) -> int:
        known = self._memo.get(count)
        if known is None:
            known = self._memo[count] = self._interpolated(count)
        return known

    def _interpolated(self, count: int) -> int:
        """Below the first number of rows as for it, since reading the weights costs the same."""
        tokens, each = self._tokens, self._each
        if count <= tokens[0]:
            return each[0]
        if len(tokens) == 1:
            return -(-each[0] * count // tokens[0])
        high = min(bisect_left(tokens, count), len(tokens) - 1)
        low = high - 1
        rise = (each[high] - each[low]) * (count - tokens[low])
        return each[low] - (-rise // (tokens[high] - tokens[low]))


def _fs(nanoseconds: float) -> int:
    """Exact, rounded to the nearest."""
    return round(Fraction(nanoseconds) * _FS)


def _ceil_ns(femtoseconds: int) -> int:
    return -(-femtoseconds // _FS)
