"""The load of each operation: its arithmetic, and the bytes that it reads and writes.

A load depends on the model alone. The rates of a machine turn it into a duration by the roofline
(Williams, Waterman, Patterson 2009): the longer of arithmetic and memory traffic. The GPU and the
CPU do the same work at different rates.

A matrix product of an n × m weight with t rows has 2·t·n·m operations and reads the weight once.
Activations are small beside weights and are left out.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.model.layers import LayerKind
from moesim.model.shapes import ModelShape, stored_bytes

__all__ = ["Load", "Loads", "Rates"]

_SECOND_NS: Final = 10**9
_MOST_RATE: Final = 2**63 // 1000


class Load(NamedTuple):
    """The arithmetic operations of a work, and the bytes that it moves from and to memory."""

    flops: int
    nbytes: int


class Rates(NamedTuple):
    """What a processor reaches: operations/s, and bytes/s of its memory. Both are at least 1."""

    flops_per_s: int
    bytes_per_s: int

    def duration_ns(self, load: Load) -> int:
        """Return the longer of arithmetic and memory traffic, rounded up to whole nanoseconds."""
        # `-(-a // b)` rounds up, exactly also for integers that a float cannot hold.
        compute = -(-load.flops * _SECOND_NS // self.flops_per_s)
        memory = -(-load.nbytes * _SECOND_NS // self.bytes_per_s)
        return max(compute, memory)

    def durations_ns(self, load: Load) -> npt.NDArray[np.int64]:
        """Return the durations of loads that are arrays; each is that of `duration_ns`."""
        compute = _ceil_ns(load.flops, self.flops_per_s)
        return np.maximum(compute, _ceil_ns(load.nbytes, self.bytes_per_s))


class Loads:
    """The loads of one model's operations."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.windowed = frozenset(shape.windowed_layers) if shape.window else frozenset()
        kinds = shape.all_kinds()
        self._kinds = list(dict.fromkeys(kinds))
        numbers = {kind: number for number, kind in enumerate(self._kinds)}
        self.kind_of = [numbers[kind] for kind in kinds]
        """For each model layer the number of its kind; layers of one kind have the same load."""
        self._weights = [_Weights.of(kind.params, shape) for kind in self._kinds]
        head = shape.hidden * shape.vocabulary
        self._head = _Weights(head, stored_bytes(head, shape.bits_of_head))
        self._row_bytes = stored_bytes(shape.hidden, shape.bits_of_embedding)
        self._router = _Router.of(shape) if shape.router else None

    def expert(self, rows: int, nbytes: int | None = None) -> Load:
        """Return the load of one routed expert: 2·rows·weights operations, its weights once.

        `nbytes`: its stored size, where experts differ in it. Without rows the load is 0.
        """
        if not rows:
            return Load(0, 0)
        shape = self.shape
        return Load(
            2 * rows * shape.expert_params, shape.expert_bytes if nbytes is None else nbytes
        )

    def nbytes(self, op: Op, sizes: tuple[int, ...] | None = None) -> int:
        """Return the bytes that a computation moves; `sizes` are those of its experts, if given."""
        if isinstance(op, Experts):
            stored = sizes or (None,) * len(op.tokens)
            return sum(
                self.expert(*expert).nbytes for expert in zip(op.tokens, stored, strict=True)
            )
        if isinstance(op, Front | Dense):
            return self.layer(op.layer, op.batch).nbytes
        assert isinstance(op, Tail), f"{op} is no computation"
        router = self.router(op.batch)
        return self.tail(op.batch).nbytes + (router.nbytes if router else 0)

    def layer(self, layer: int, batch: BatchShape) -> Load:
        """Return the load of a layer without its routed experts.

        This is norms, attention or recurrence, and then router and shared experts, or a dense FFN.
        """
        number = self.kind_of[layer]
        weights = self._weights[number]
        flops, nbytes = self._mixing(self._kinds[number], batch)
        return Load(flops + 2 * batch.tokens * weights.params, nbytes + weights.nbytes)

    def tail(self, batch: BatchShape) -> Load:
        """Return the load of a step's end, without a decoupled router.

        This is reading the embedding rows, and the LM head if rows are sampled.
        """
        head_bytes = self._head.nbytes if batch.sampled else 0
        return Load(
            2 * batch.sampled * self._head.params, batch.tokens * self._row_bytes + head_bytes
        )

    def router(self, batch: BatchShape) -> Load | None:
        """Return the load of a decoupled router over all rows of a step; None without one.

        The router has the load of a layer of its sizes: its weights are read once a step, and its
        attention has as many pairs and past tokens as that of a layer. Each row is assumed to be
        routed in the step that computes it, although the ids of a prompt are there earlier.
        """
        router = self._router
        if router is None:
            return None
        flops = 2 * batch.tokens * router.params + router.pair_flops * batch.pairs
        entries = batch.kv_tokens + batch.tokens
        nbytes = router.nbytes + batch.tokens * router.row_bytes + entries * router.kv_bytes
        return Load(flops, nbytes)

    def attention(self, layer: int, batch: BatchShape) -> Load:
        """Return the load of one layer's attention or recurrence, without its projections."""
        return self._mixing(self._kinds[self.kind_of[layer]], batch)

    def _mixing(self, kind: LayerKind, batch: BatchShape) -> Load:
        """Return the operations on pairs and states, and the bytes of KV entries and states.

        Scores and weighted values each take 2 operations for a (query, key) pair, head and
        dimension. KV entries are read once a sequence, and each token writes its own. A state is
        read and written once a sequence.
        """
        flops, nbytes = _pair_flops(kind, batch), 0
        if kind.kv_numbers:
            entries = _entries(kind, batch) + batch.tokens
            nbytes = entries * stored_bytes(kind.kv_numbers, self.shape.kv_bits)
        if kind.index_numbers:  # an index scores all positions, of which attention reads few
            entry_bytes = stored_bytes(kind.index_numbers, self.shape.kv_bits)
            nbytes += (batch.kv_tokens + batch.tokens) * entry_bytes
        flops += batch.pairs * kind.index_flops + batch.tokens * kind.state_flops
        return Load(flops, nbytes + 2 * batch.sequences * kind.state_bytes)


def _ceil_ns(work: npt.ArrayLike, rate: int) -> npt.NDArray[np.int64]:
    """Return work · 10^9 / rate, rounded up, exactly.

    The product may not fit into 64 bits, so the division goes by three digits at a time.
    """
    if rate >= _MOST_RATE:  # the remainder times 1000 may have over 63 bits
        exact = -(-np.asarray(work, object) * _SECOND_NS // rate)
        return np.asarray(exact, np.int64)
    whole, rest = np.divmod(np.asarray(work, np.int64), rate)
    for _ in range(3):
        digits, rest = np.divmod(rest * 1000, rate)
        whole = whole * 1000 + digits
    return np.asarray(whole + (rest > 0))


def _least(one: Any, other: Any) -> Any:
    """Return the lower of two numbers, or of each pair of two arrays."""
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return np.minimum(one, other)


def _entries(kind: LayerKind, batch: BatchShape) -> Any:
    """Return the KV entries that a layer reads."""
    # An upper bound: tokens of one sequence share most of their windows.
    return (
        batch.kv_tokens
        if kind.window is None
        else _least(batch.kv_tokens, batch.tokens * kind.window)
    )


def _pair_flops(kind: LayerKind, batch: BatchShape) -> Any:
    """Return the operations of a layer's (query, key) pairs.

    Latent attention either folds the up-projections into the query (DeepSeek-V2, section 2.1.2) or
    expands the entries first; the cheaper of the two counts.
    """
    pairs = batch.pairs if kind.window is None else _least(batch.pairs, batch.tokens * kind.window)
    mla, heads = kind.mla, kind.heads
    if mla is None:
        return 2 * pairs * heads * (kind.key_dim + kind.value_dim)
    folded = 2 * pairs * heads * (2 * mla.kv_rank + mla.rope_dim)
    entries = _entries(kind, batch)
    expand = 2 * entries * mla.kv_rank * heads * (mla.nope_dim + mla.value_dim)
    expanded = expand + 2 * pairs * heads * (mla.nope_dim + mla.rope_dim + mla.value_dim)
    return _least(folded, expanded)


class _Weights(NamedTuple):
    """A number of weights and their stored bytes."""

    params: int
    nbytes: int

    @classmethod
    def of(cls, params: int, shape: ModelShape) -> _Weights:
        return cls(params, stored_bytes(params, shape.weight_bits))


class _Router(NamedTuple):
    """The sizes of a decoupled router from which its load follows."""

    params: int
    """Weights that each row is multiplied with."""
    pair_flops: int
    """Operations of one (query, key) pair."""
    nbytes: int
    """Bytes of these weights."""
    row_bytes: int
    """Bytes of one embedding row."""
    kv_bytes: int
    """Bytes of one KV entry."""

    @classmethod
    def of(cls, shape: ModelShape) -> _Router:
        assert shape.router is not None
        params = shape.router.multiplied_params(shape.num_experts)
        return cls(
            params,
            4 * shape.router.hidden,
            stored_bytes(params, shape.weight_bits),
            stored_bytes(shape.router.hidden, shape.weight_bits),
            shape.router_kv_bytes_per_token,
        )
