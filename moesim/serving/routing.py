"""The routing of one step: what each layer's routers decided for the rows of the batch.

Ids come from the trace, on every machine; only where text is generated do they come from the
model that runs. The view handed to policies is cut from here, and shows no more of the future
than the model's router really reveals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyViolation, TraceError
from moesim.policies.view import Key, View

if TYPE_CHECKING:
    from moesim.serving.request import Request
    from moesim.serving.step import Step
    from moesim.trace import Trace

_BLOCK_ROWS = 8
_VECTORISE_ABOVE = 96  # assignments a layer; below, plain lists are faster


class StepRouting(Protocol):
    """Unions and token counts of one step, layer by layer.

    `unions[l]`: distinct keys of layer l in order of first appearance (batch order, then stored
    order); `tokens[l]`: how many rows want each. Layer l is asked for once its ids have come back
    to the host, and not before.
    """

    @property
    def unions(self) -> Sequence[tuple[Key, ...]]: ...

    @property
    def tokens(self) -> Sequence[tuple[int, ...]]: ...

    @property
    def num_experts(self) -> int:
        """Experts of a layer, as keys count them."""

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        """Distinct keys of layer + depth that predictions made at `layer` name."""

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        """Summed gate weight of each key of `unions[layer]`; empty where they are unknown."""


class RoutingSource(Protocol):
    """Where a server gets the ids that a step's tokens are routed to."""

    num_layers: int
    num_experts: int
    top_k: int

    def step(self, step: Step) -> StepRouting:
        """The routing of a step that begins."""

    def unions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[Sequence[tuple[Key, ...]], Sequence[tuple[int, ...]]]:
        """Of rows whose tokens are known: per layer, distinct keys and rows wanting each."""

    def first_uses(self, rows: npt.NDArray[np.int64]) -> Mapping[Key, int]:
        """Of rows whose tokens are known: for each key that they want, the first that does."""

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        """For each of the next `tokens` rows of a request, its experts in the first layer."""

    def wants(self, request: Request) -> frozenset[Key]:
        """Of a request whose rows are all routed alike: the keys that each wants, of all layers."""


class TracedStep:
    """The routing of a step as a trace has it."""

    __slots__ = ("_guesses", "_source", "rows", "tokens", "unions")

    def __init__(self, source: TraceRouting, rows: npt.NDArray[np.int64]) -> None:
        self._source = source
        self.rows = rows
        self._guesses: list[list[list[list[int]]]] | None = None
        self.unions, self.tokens = source.unions(rows)

    @property
    def num_experts(self) -> int:
        return int(self._source.num_experts)

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        if self._guesses is None:
            self._guesses = self._source.predictions(self.rows) or []
        if layer + depth >= len(self.unions) or not self._guesses:
            return ()
        if depth > len(self._guesses[0][layer]):
            return ()
        guessed = [guesses[layer][depth - 1] for guesses in self._guesses]
        return self._source.keys_at(layer + depth, chain.from_iterable(guessed))

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        return self._source.gate_weights(self.rows, layer, self.unions[layer])


class StepView(View):
    """The view of a step, moved from layer to layer: what it shows holds until the server moves
    on. `reach` is how many layers ahead routing is known; past the last layer it goes on with
    `next_unions`, what is known of the step after. `queue` tells of each key the first of the
    queued rows that wants it."""

    __slots__ = ("_next_unions", "_owner", "_queue", "_reach", "_routing")

    def __init__(
        self,
        routing: StepRouting,
        reach: int,
        owner: str,
        next_unions: Sequence[tuple[Key, ...]] = (),
        queue: Mapping[Key, int] | None = None,
    ) -> None:
        super().__init__(-1, ())
        self._next_unions = next_unions
        self._queue = queue or {}
        self._routing = routing
        self._reach = reach
        self._owner = owner

    def move_to(self, layer: int) -> None:
        """Show the layer event of `layer`."""
        self._layer = layer
        self._union = self._routing.unions[layer]
        self._tokens = self._routing.tokens[layer]

    def layers(self) -> Iterator[StepView]:
        """Itself, moved to layer after layer."""
        events = zip(self._routing.unions, self._routing.tokens, strict=True)
        for self._layer, (self._union, self._tokens) in enumerate(events):
            yield self

    def predicted(self, depth: int) -> tuple[Key, ...]:
        if depth < 1:
            raise PolicyViolation(self._owner, depth, "predictions start one layer ahead")
        return self._routing.predicted(self._layer, depth) if self._layer >= 0 else ()

    def exact(self, depth: int) -> tuple[Key, ...]:
        if not 0 <= depth <= self._reach:
            raise PolicyViolation(
                self._owner,
                f"layer {self._layer} + {depth}",
                f"looks past the view: this router reveals {self._reach} layers ahead",
            )
        layer = self._layer + depth
        unions: Sequence[tuple[Key, ...]] = self._routing.unions
        if layer >= len(unions):
            layer, unions = layer - len(unions), self._next_unions
        return unions[layer] if 0 <= layer < len(unions) else ()

    def next_use(self, key: Key) -> int | None:
        unions = self._routing.unions
        here, its = self._layer, key // self._routing.num_experts
        if here < its <= here + self._reach and key in unions[its]:
            return its - here
        row = self._queue.get(key)
        return None if row is None else (row + 1) * len(unions) + its - here

    def gate_weights(self) -> tuple[float, ...]:
        return self._routing.gate_weights(self._layer) if self._layer >= 0 else ()


class TraceRouting:
    """Reads a trace row by row as keys, `layer * experts + expert`."""

    def __init__(self, trace: Trace) -> None:
        self.num_layers = trace.num_layers
        self.num_experts = trace.num_experts
        self.top_k = trace.top_k
        self._trace = trace
        self._ids = trace.expert_ids
        self._unused = trace.meta.unused
        self._each_one_row = [(1,) * self.top_k] * self.num_layers
        self._block_number = -1
        self._block: list[list[tuple[Key, ...]]] | None = None
        self._wants: dict[int, frozenset[Key]] = {}  # by row: batching asks for them every step
        self._base_L1 = (np.arange(self.num_layers) * self.num_experts)[:, None]

    def step(self, step: Step) -> StepRouting:
        return TracedStep(self, step.rows)

    def first_uses(self, rows: npt.NDArray[np.int64]) -> Mapping[Key, int]:
        if not len(rows):
            return {}
        keys, first = np.unique(self._keys(rows), return_index=True)
        places = first // (self.num_layers * self.top_k)
        return dict(zip(keys.tolist(), places.tolist(), strict=True))

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        unused = self._unused
        ids_Bk: Any = self._ids[request.next_rows(tokens)][:, 0].tolist()
        return [[expert for expert in ids if expert != unused] for ids in ids_Bk]

    def wants(self, request: Request) -> frozenset[Key]:
        row = int(request.first_row[0])
        if row not in self._wants:
            self._wants[row] = frozenset(chain.from_iterable(self.unions(request.first_row)[0]))
        return self._wants[row]

    def unions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[list[tuple[Key, ...]], list[tuple[int, ...]]]:
        """Per layer: distinct keys in order of first appearance, and rows wanting each."""
        if len(rows) == 1 and (alone := self._alone(int(rows[0]))) is not None:
            return alone, self._each_one_row
        keys_BLK = self._keys(rows)
        if len(rows) * self.top_k > _VECTORISE_ABOVE:
            return self._vectorised(keys_BLK)
        flat_LN = keys_BLK.transpose(1, 0, 2).reshape(self.num_layers, -1).tolist()
        counts = [count_keys(keys) for keys in flat_LN]
        return [tuple(c) for c in counts], [tuple(c.values()) for c in counts]

    def _alone(self, row: int) -> list[tuple[Key, ...]] | None:
        """Keys of one row, by layer; None if some of its block is unusual. A sequence decoded
        alone reads row after row, so they are fetched a few at a time."""
        number, place = divmod(row, _BLOCK_ROWS)
        if number != self._block_number:
            self._block_number = number
            ids_BLK = self._ids[number * _BLOCK_ROWS : (number + 1) * _BLOCK_ROWS]
            usual = int(ids_BLK.max()) < self.num_experts
            self._block = self._by_layer(ids_BLK + self._base_L1) if usual else None
        return self._block[place] if self._block is not None else None

    def _by_layer(self, keys_BLK: npt.NDArray[np.int64]) -> list[list[tuple[Key, ...]]]:
        """Keys of each row and layer. `zip` makes the tuples, faster than lists made into them."""
        layers = self.num_layers
        keys = list(zip(*keys_BLK.reshape(-1, self.top_k).T.tolist(), strict=True))
        return [keys[start : start + layers] for start in range(0, len(keys), layers)]

    def _keys(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Keys of rows, -1 where a place is unused. Raises `TraceError` for ids out of range."""
        ids_BLK: Any = self._ids[rows]
        if int(ids_BLK.max()) < self.num_experts:
            return np.asarray(ids_BLK + self._base_L1)
        return self._keys_with_gaps(ids_BLK, rows)

    def _keys_with_gaps(
        self, ids_BLK: npt.NDArray[Any], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Keys where some places are unused (-1). Raises `TraceError` for ids out of range."""
        unused = ids_BLK == self._unused
        worst_B = np.where(unused, 0, ids_BLK).max(axis=(1, 2))
        row = int(np.argmax(worst_B))
        if worst_B[row] >= self.num_experts:
            raise TraceError(
                self._trace.path or "trace",
                f"row {int(rows[row])}",
                f"expert id {int(worst_B[row])} is out of range for {self.num_experts} experts",
            )
        return np.where(unused, -1, ids_BLK + self._base_L1)

    def _vectorised(
        self, keys_BLK: npt.NDArray[np.int64]
    ) -> tuple[list[tuple[Key, ...]], list[tuple[int, ...]]]:
        layers, experts = self.num_layers, self.num_experts
        flat_LN = keys_BLK.transpose(1, 0, 2).reshape(layers, -1)
        flat = flat_LN.reshape(-1)
        used = np.flatnonzero(flat >= 0)
        counts_LE = np.bincount(flat[used], minlength=layers * experts).reshape(layers, experts)
        first = np.full(layers * experts, flat.size, np.int64)
        first[flat[used[::-1]]] = used[::-1]  # the last write wins: the first appearance
        order_LE = np.argsort(first.reshape(layers, experts), axis=1, kind="stable")
        sizes = (counts_LE > 0).sum(axis=1).tolist()
        tokens_LE = np.take_along_axis(counts_LE, order_LE, axis=1).tolist()
        keys_LE = (order_LE + self._base_L1).tolist()
        return (
            [tuple(keys[:size]) for keys, size in zip(keys_LE, sizes, strict=True)],
            [tuple(tokens[:size]) for tokens, size in zip(tokens_LE, sizes, strict=True)],
        )

    def predictions(self, rows: npt.NDArray[np.int64]) -> list[list[list[list[int]]]] | None:
        """Experts predicted by each of the rows: by row, layer and depth; None: not recorded."""
        recorded = self._trace.predictions
        return None if recorded is None else recorded[rows].tolist()

    def keys_at(self, layer: int, experts: Iterable[int]) -> tuple[Key, ...]:
        """Distinct keys of these experts of a layer, unused places left out."""
        base = layer * self.num_experts
        unused = self._unused
        return tuple([base + expert for expert in dict.fromkeys(experts) if expert != unused])

    def gate_weights(
        self, rows: npt.NDArray[np.int64], layer: int, union: Sequence[Key]
    ) -> tuple[float, ...]:
        recorded = self._trace.gate_weights
        if recorded is None:
            return ()
        base = layer * self.num_experts
        sums: dict[Key, float] = dict.fromkeys(union, 0.0)
        ids: Any = self._ids[rows][:, layer].reshape(-1).tolist()
        weights: Any = recorded[rows][:, layer].reshape(-1).tolist()
        for expert, weight in zip(ids, weights, strict=True):
            if expert != self._unused:
                sums[base + expert] += weight
        return tuple(sums.values())


def count_keys(keys: list[Key]) -> dict[Key, int]:
    """How often each key occurs, in order of first appearance; unused places (-1) do not."""
    counts: dict[Key, int] = {}
    for key in keys:
        if key >= 0:
            counts[key] = counts.get(key, 0) + 1
    return counts
