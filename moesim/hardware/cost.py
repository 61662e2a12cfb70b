"""What an operation or a copy costs on a machine, in whole nanoseconds.

Compute follows the roofline (Williams, Waterman, Patterson 2009): an operation takes the longer
of its arithmetic at the reached compute rate and its bytes at the reached memory bandwidth,
plus a fixed overhead. A matrix product of an n × m weight with t rows is 2·t·n·m operations and
reads the weight once; activations are small beside weights and left out. Results are integers,
rounded up, so that no sum depends on the order in which it was made.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeVar

from moesim.hardware.hardware import Hardware, Link
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op
from moesim.hardware.shapes import ModelShape, stored_bytes

__all__ = ["CostModel", "Direction", "copy_ns", "remember"]

Direction = Literal["h2d", "d2h"]
_K = TypeVar("_K")

_SECOND_NS: Final = 10**9
_MEMO_LIMIT: Final = 1 << 16


class CostModel:
    """Prices of one model on one machine; pure, the same answer for the same question."""

    landing_ns: int = 0
    """From the landing of a copy until a computation that has waited for it may begin."""

    def __init__(self, hardware: Hardware, shape: ModelShape, *, pinned: bool = True) -> None:
        """`pinned`: the host copies of the experts lie in page-locked memory."""
        self.hardware = hardware
        self.shape = shape
        self.pinned = pinned
        self.expert_bytes = shape.expert_bytes
        self._flops_per_s = max(1, round(hardware.flops_per_s * hardware.compute_efficiency))
        self._bytes_per_s = max(1, round(hardware.memory_bytes_per_s * hardware.memory_efficiency))
        self._windowed = frozenset(shape.windowed_layers) if shape.window else frozenset()
        self._dense = frozenset(shape.dense_layers)
        kinds = [self._price_kind(layer) for layer in range(shape.num_layers)]
        self._alike = [kinds.index(kind) for kind in kinds]  # the first layer of the same price
        self._firsts = sorted(set(self._alike))
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
        """Nanoseconds that the GPU lane is busy with `op`."""
        if isinstance(op, Experts):
            tokens = op[2]
            known = self._experts_memo.get(tokens)
            return known if known is not None else self.experts_ns(tokens)
        if isinstance(op, Front):
            return self.front_ns(op.layer, op.batch)
        if isinstance(op, Dense):
            return self.dense_ns(op.layer, op.batch)
        return self.tail_ns(op.batch)

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """One grouped call, `tokens[i]` rows through its i-th expert.

        Expert by expert, the longer of reading its weights and 2·rows·(3·hidden·FFN) operations;
        their sum, and one overhead. No experts cost nothing.
        """
        known = self._experts_memo.get(tokens)
        if known is None:
            rows = sum(self._expert_ns(count) for count in tokens)
            known = rows + self.hardware.kernel_overhead_ns if tokens else 0
            remember(self._experts_memo, tokens, known)
        return known

    def front_ns(self, layer: int, batch: BatchShape) -> int:
        """Norms, attention, router and shared experts of one MoE layer.

        Weights read once and 2·tokens·weights operations, attention on top (`_attention`).
        """
        key = (layer in self._windowed, batch)
        known = self._front_memo.get(key)
        if known is None:
            known = self._layer_ns(key[0], batch, self._front_params, self._front_bytes)
            remember(self._front_memo, key, known)
        return known

    def dense_ns(self, layer: int, batch: BatchShape) -> int:
        """A whole layer without routed experts, priced as `front_ns` with its dense FFN."""
        key = (layer in self._windowed, batch)
        known = self._dense_memo.get(key)
        if known is None:
            known = self._layer_ns(key[0], batch, self._dense_params, self._dense_bytes)
            remember(self._dense_memo, key, known)
        return known

    def layers_ns(self, batch: BatchShape) -> list[int]:
        """Each model layer without its routed experts: its front, or all of it if dense."""
        prices = {}
        for first in self._firsts:
            dense = first in self._dense
            prices[first] = self.dense_ns(first, batch) if dense else self.front_ns(first, batch)
        return [prices[first] for first in self._alike]

    def tail_ns(self, batch: BatchShape) -> int:
        """Embedding rows, and the LM head (2·sampled·hidden·vocabulary) where rows are sampled;
        after them a decoupled router, if the model has one (`router_ns`)."""
        known = self._tail_memo.get(batch)
        if known is None:
            flops = 2 * batch.sampled * self._head_params
            nbytes = batch.tokens * self._row_bytes + (self._head_bytes if batch.sampled else 0)
            known = self._roofline_ns(flops, nbytes) + self.hardware.kernel_overhead_ns
            known += self.router_ns(batch)
            remember(self._tail_memo, batch, known)
        return known

    def router_ns(self, batch: BatchShape) -> int:
        """A decoupled router over all rows of a step, priced as one layer; 0 where there is none.

        Every row of a workload is routed once. Assumed: a prompt's rows in the step that computes
        them, though the router had their ids before; so its weights are read once a step, and
        its attention sees as many pairs and past tokens as a layer's.
        """
        router = self._router
        if router is None:
            return 0
        flops = 2 * batch.tokens * router.params + router.pair_flops * batch.pairs
        entries = batch.kv_tokens + batch.tokens
        nbytes = router.weight_bytes + batch.tokens * router.row_bytes + entries * router.kv_bytes
        return self._roofline_ns(flops, nbytes) + self.hardware.kernel_overhead_ns

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        """One copy of `nbytes` with the link to itself: latency + bytes / bandwidth."""
        link = self.hardware.h2d if direction == "h2d" else self.hardware.d2h
        return copy_ns(link, nbytes, pinned=self.pinned)

    def readback_ns(self, nbytes: int) -> int:
        """Bringing `nbytes` of ids to the host, until the host knows them."""
        return self.hardware.readback_latency_ns + self.copy_ns("d2h", nbytes)

    def chunk_bytes(self, direction: Direction) -> int | None:
        """Copies longer than this are cut; None: never."""
        link = self.hardware.h2d if direction == "h2d" else self.hardware.d2h
        return link.chunk_bytes

    def _price_kind(self, layer: int) -> tuple[bool, ...]:
        """Layers of one kind cost the same."""
        return layer in self._dense, layer in self._windowed

    def _expert_ns(self, count: int) -> int:
        known = self._expert_memo.get(count)
        if known is None:
            flops = 2 * count * self.shape.expert_params
            known = self._roofline_ns(flops, self.expert_bytes if count else 0)
            self._expert_memo[count] = known
        return known

    def _layer_ns(self, windowed: bool, batch: BatchShape, params: int, weight_bytes: int) -> int:
        flops, nbytes = self._attention(windowed, batch)
        flops += 2 * batch.tokens * params
        return self._roofline_ns(flops, weight_bytes + nbytes) + self.hardware.kernel_overhead_ns

    def _attention(self, windowed: bool, batch: BatchShape) -> tuple[int, int]:
        """Operations and KV bytes of one layer's attention beside its projections.

        Scores and weighted values take 2 operations for each (query, key) pair, head and
        dimension. KV entries are read once a sequence, and each token writes its own. A window
        bounds both by what its tokens can see. Latent attention either folds the up-projections
        into the query (DeepSeek-V2, section 2.1.2) or expands the entries first, whichever is less.
        """
        shape = self.shape
        pairs, entries = batch.pairs, batch.kv_tokens
        if windowed and shape.window is not None:
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
        compute = -(-flops * _SECOND_NS // self._flops_per_s)
        memory = -(-nbytes * _SECOND_NS // self._bytes_per_s)
        return max(compute, memory)


class _RouterWork(NamedTuple):
    """What the price of a decoupled router follows from: weights that are multiplied, operations
    of a (query, key) pair, and bytes of its weights, of an embedding row and of a KV entry."""

    params: int
    pair_flops: int
    weight_bytes: int
    row_bytes: int
    kv_bytes: int

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
    """Nanoseconds of one copy of `nbytes` over an idle `link`."""
    rate = link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s
    return link.latency_ns - (-nbytes * _SECOND_NS // rate)


def remember(memo: dict[_K, int], key: _K, value: int) -> None:
    """A memo that starts afresh when it is full: batches of a long run are seldom the same."""
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
