"""The cost model: how long an operation or a copy takes on a machine, in whole nanoseconds.

Operations follow the roofline (Williams, Waterman, Patterson 2009). An operation takes the longer
of two times: its arithmetic at the reached compute rate, or its bytes at the reached memory
bandwidth. A fixed overhead is added. A matrix product of an n × m weight with t rows has 2·t·n·m
operations and reads the weight once. Activations are small beside weights and are left out.
Results are integers, rounded up, so that a sum does not depend on the order of its terms.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar

from moesim.hardware.hardware import Hardware, Link
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.hardware.shapes import ModelShape, stored_bytes
from moesim.hardware.topology import D2H, H2D

__all__ = ["CostModel", "copy_ns", "remember"]

_K = TypeVar("_K")

_SECOND_NS: Final = 10**9
_MEMO_LIMIT: Final = 1 << 16  # entries of one memo


class CostModel:
    """Durations of the operations and copies of one model on one machine.

    Durations depend on the arguments alone; the memos change none.
    """

    landing_ns: int = 0
    """Nanoseconds from the end of a copy until a computation that waited for it may start."""

    def __init__(self, hardware: Hardware, shape: ModelShape, *, pinned: bool = True) -> None:
        """Prepare the sums that no batch changes.

        `pinned`: the experts lie in page-locked host memory.
        """
        self.hardware = hardware
        self.shape = shape
        self.pinned = pinned
        self.expert_bytes = shape.expert_bytes
        self._flops_per_s = max(1, round(hardware.flops_per_s * hardware.compute_efficiency))
        self._bytes_per_s = max(1, round(hardware.memory_bytes_per_s * hardware.memory_efficiency))
        self._windowed = frozenset(shape.windowed_layers) if shape.window else frozenset()
        self._dense = frozenset(shape.dense_layers)
        kinds = [self._layer_kind(layer) for layer in range(shape.num_layers)]
        self._first_of_kind = [kinds.index(kind) for kind in kinds]  # for each layer
        self._first_layers = sorted(set(self._first_of_kind))
        self._front_params = shape.front_params
        self._dense_params = shape.dense_params
        self._front_bytes = stored_bytes(self._front_params, shape.weight_bits)
        self._dense_bytes = stored_bytes(self._dense_params, shape.weight_bits)
        self._head_params = shape.hidden * shape.vocabulary
        self._head_bytes = stored_bytes(self._head_params, shape.weight_bits)
        self._row_bytes = stored_bytes(shape.hidden, shape.weight_bits)
        self._router = _RouterWork.of(shape) if shape.router else None
        self._experts_memo: dict[tuple[int, ...], int] = {}
        self._expert_memo: dict[int, int] = {}
        self._front_memo: dict[tuple[bool, BatchShape], int] = {}
        self._dense_memo: dict[tuple[bool, BatchShape], int] = {}
        self._tail_memo: dict[BatchShape, int] = {}

    def compute_ns(self, op: Op) -> int:
        """Return how long the GPU is busy with `op`, in nanoseconds."""
        if isinstance(op, Experts):
            tokens = op[2]  # by number: this is the most frequent call, and a name takes longer
            duration_ns = self._experts_memo.get(tokens)
            return duration_ns if duration_ns is not None else self.experts_ns(tokens)
        if isinstance(op, Front):
            return self.front_ns(op.layer, op.batch)
        if isinstance(op, Dense):
            return self.dense_ns(op.layer, op.batch)
        assert isinstance(op, Tail), f"{op} is no computation"
        return self.tail_ns(op.batch)

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """Return the nanoseconds of one grouped call, whose i-th expert computes `tokens[i]` rows.

        Each expert takes the longer of reading its weights and 2·rows·(3·hidden·FFN) operations.
        The call takes their sum and one overhead; without experts it takes 0.
        """
        duration_ns = self._experts_memo.get(tokens)
        if duration_ns is None:
            sum_ns = sum(self._expert_ns(count) for count in tokens)
            duration_ns = sum_ns + self.hardware.kernel_overhead_ns if tokens else 0
            remember(self._experts_memo, tokens, duration_ns)
        return duration_ns

    def front_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of norms, attention, router and shared experts of an MoE layer.

        Weights are read once and take 2·tokens·weights operations; `_attention` adds the rest.
        """
        key = (layer in self._windowed, batch)
        duration_ns = self._front_memo.get(key)
        if duration_ns is None:
            duration_ns = self._layer_ns(key[0], batch, self._front_params, self._front_bytes)
            remember(self._front_memo, key, duration_ns)
        return duration_ns

    def dense_ns(self, layer: int, batch: BatchShape) -> int:
        """Return the nanoseconds of a layer without routed experts: as `front_ns`, with its FFN."""
        key = (layer in self._windowed, batch)
        duration_ns = self._dense_memo.get(key)
        if duration_ns is None:
            duration_ns = self._layer_ns(key[0], batch, self._dense_params, self._dense_bytes)
            remember(self._dense_memo, key, duration_ns)
        return duration_ns

    def layers_ns(self, batch: BatchShape) -> list[int]:
        """Return the nanoseconds of each model layer without its routed experts."""
        durations_ns = {}
        for first in self._first_layers:
            dense = first in self._dense
            durations_ns[first] = (
                self.dense_ns(first, batch) if dense else self.front_ns(first, batch)
            )
        return [durations_ns[first] for first in self._first_of_kind]

    def tail_ns(self, batch: BatchShape) -> int:
        """Return the nanoseconds of the work that a step does once.

        This is reading the embedding rows, the LM head (2·sampled·hidden·vocabulary operations) if
        rows are sampled, and a decoupled router if the model has one (`router_ns`).
        """
        duration_ns = self._tail_memo.get(batch)
        if duration_ns is None:
            flops = 2 * batch.sampled * self._head_params
            nbytes = batch.tokens * self._row_bytes + (self._head_bytes if batch.sampled else 0)
            duration_ns = self._roofline_ns(flops, nbytes) + self.hardware.kernel_overhead_ns
            duration_ns += self.router_ns(batch)
            remember(self._tail_memo, batch, duration_ns)
        return duration_ns

    def router_ns(self, batch: BatchShape) -> int:
        """Return the nanoseconds of a decoupled router over all rows of a step; 0 without one.

        The router takes as long as a layer of its sizes: its weights are read once a step, and its
        attention has as many pairs and past tokens as that of a layer. Each row is assumed to be
        routed in the step that computes it, although the ids of a prompt are there earlier.
        """
        router = self._router
        if router is None:
            return 0
        flops = 2 * batch.tokens * router.params + router.pair_flops * batch.pairs
        entries = batch.kv_tokens + batch.tokens
        nbytes = router.weight_bytes + batch.tokens * router.row_bytes + entries * router.kv_bytes
        return self._roofline_ns(flops, nbytes) + self.hardware.kernel_overhead_ns

    def copy_ns(self, lane: str, nbytes: int) -> int:
        """Return the nanoseconds of one copy of `nbytes` over a link that is otherwise idle."""
        link = self.hardware.h2d if lane == H2D else self.hardware.d2h
        return copy_ns(link, nbytes, pinned=self.pinned)

    def readback_ns(self, nbytes: int) -> int:
        """Return the nanoseconds until `nbytes` of ids from the GPU can be read on the host."""
        return self.hardware.readback_latency_ns + self.copy_ns(D2H, nbytes)

    def chunk_bytes(self, lane: str) -> int | None:
        """Return the largest piece of a copy in bytes; None: copies are never cut."""
        link = self.hardware.h2d if lane == H2D else self.hardware.d2h
        return link.chunk_bytes

    def _layer_kind(self, layer: int) -> tuple[bool, ...]:
        """Return the kind of a layer; layers of one kind take the same time."""
        return layer in self._dense, layer in self._windowed

    def _expert_ns(self, count: int) -> int:
        duration_ns = self._expert_memo.get(count)
        if duration_ns is None:
            flops = 2 * count * self.shape.expert_params
            duration_ns = self._roofline_ns(flops, self.expert_bytes if count else 0)
            # No limit: there are at most as many keys as a step has rows.
            self._expert_memo[count] = duration_ns
        return duration_ns

    def _layer_ns(self, windowed: bool, batch: BatchShape, params: int, weight_bytes: int) -> int:
        flops, nbytes = self._attention(windowed, batch)
        flops += 2 * batch.tokens * params
        return self._roofline_ns(flops, weight_bytes + nbytes) + self.hardware.kernel_overhead_ns

    def _attention(self, windowed: bool, batch: BatchShape) -> tuple[int, int]:
        """Return operations and KV bytes of one layer's attention without its projections.

        Scores and weighted values each take 2 operations for a (query, key) pair, head and
        dimension. KV entries are read once a sequence, and each token writes its own. Latent
        attention either folds the up-projections into the query (DeepSeek-V2, section 2.1.2) or
        expands the entries first; the cheaper of the two counts.
        """
        shape = self.shape
        pairs, entries = batch.pairs, batch.kv_tokens
        if windowed and shape.window is not None:
            # An upper bound: tokens of one sequence share most of their windows.
            pairs = min(pairs, batch.tokens * shape.window)
            entries = min(entries, batch.tokens * shape.window)
        nbytes = (entries + batch.tokens) * shape.kv_bytes_per_token_layer
        if shape.mla is None:
            return 4 * pairs * shape.num_heads * shape.head_dim, nbytes
        mla, heads = shape.mla, shape.num_heads
        folded = 2 * pairs * heads * (2 * mla.kv_rank + mla.rope_dim)
        expand = 2 * entries * mla.kv_rank * heads * (mla.nope_dim + mla.value_dim)
        expanded = expand + 2 * pairs * heads * (mla.nope_dim + mla.rope_dim + mla.value_dim)
        return min(folded, expanded), nbytes

    def _roofline_ns(self, flops: int, nbytes: int) -> int:
        # `-(-a // b)` rounds up, exactly also for integers that a float cannot hold.
        compute = -(-flops * _SECOND_NS // self._flops_per_s)
        memory = -(-nbytes * _SECOND_NS // self._bytes_per_s)
        return max(compute, memory)


class _RouterWork(NamedTuple):
    """The work of a decoupled router, from which its duration follows."""

    params: int
    """Weights that each row is multiplied with."""
    pair_flops: int
    """Operations of one (query, key) pair."""
    weight_bytes: int
    row_bytes: int
    """Bytes of one embedding row."""
    kv_bytes: int
    """Bytes of one KV entry."""

    @classmethod
    def of(cls, shape: ModelShape) -> _RouterWork:
        assert shape.router is not None
        params = shape.router.multiplied_params(shape.num_experts)
        return cls(
            params,
            4 * shape.router.hidden,
            stored_bytes(params, shape.weight_bits),
            stored_bytes(shape.router.hidden, shape.weight_bits),
            shape.router_kv_bytes_per_token,
        )


def copy_ns(link: Link, nbytes: int, *, pinned: bool) -> int:
    """Return the nanoseconds of one copy over an idle `link`: latency + bytes / bandwidth."""
    rate = link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s
    return link.latency_ns - (-nbytes * _SECOND_NS // rate)


def remember(memo: dict[_K, int], key: _K, value: int) -> None:
    """Store `value` under `key`; empty the memo first if it is full."""
    # Batches of a long run seldom repeat, so keeping the newest entries would help little.
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
