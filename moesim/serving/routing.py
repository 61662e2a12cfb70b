"""Routing: which experts the rows of a step want, in each layer.

Expert ids come from the trace on every machine. Only where text is generated, they come from the
model that runs. `StepView` shows a step's routing to policies, and reveals no more of the future
than the model's router does.

Shapes: B rows, L trace layers, K experts per row (top-k), E experts, N = B × K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyViolation, TraceError
from moesim.policies.view import Key, View
from moesim.serving.knowledge import EVERYTHING
from moesim.serving.unions import UnionMemo, Unions, unions_of

if TYPE_CHECKING:
    from moesim.serving.request import Request
    from moesim.serving.step import Step
    from moesim.trace import Trace

_BLOCK_ROWS = 8  # rows that are read together for a sequence that is decoded alone
_VECTORISE_ABOVE = 700  # assignments of all layers; below, plain lists are faster


class StepRouting(Protocol):
    """Unions and token counts of one step, layer by layer.

    `unions[l]` are the distinct keys of layer l in order of first appearance: by row of the batch,
    then as stored in the trace. `tokens[l]` are the numbers of rows that want each. The server
    reads layer l only when its ids have returned to the host.
    """

    @property
    def unions(self) -> Sequence[tuple[Key, ...]]: ...

    @property
    def tokens(self) -> Sequence[tuple[int, ...]]: ...

    @property
    def num_experts(self) -> int:
        """Number of experts per layer, with which keys are formed."""

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        """Return the distinct keys of layer + depth that predictions at `layer` name."""

    def predicted_tokens(self, layer: int, depth: int) -> tuple[int, ...]:
        """Return the number of rows of which `predicted` names each key, in its order."""

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        """Return the summed gate weight of each key of `unions[layer]`; empty if unknown."""

    def probabilities(self, layer: int) -> tuple[float, ...]:
        """Return the summed probability of each expert of a layer; empty if unknown."""


class RoutingSource(Protocol):
    """The interface of a source of routing: a trace, or a model that generates text."""

    num_layers: int
    num_experts: int
    top_k: int

    def step(self, step: Step) -> StepRouting:
        """Return the routing of a step that begins."""

    def unions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[Sequence[tuple[Key, ...]], Sequence[tuple[int, ...]]]:
        """Return, for each layer, the distinct keys of `rows` and the rows that want each.

        The tokens of the rows must exist.
        """

    def first_uses(self, rows: npt.NDArray[np.int64]) -> Mapping[Key, int]:
        """Return, for each key wanted by `rows`, the place in `rows` of the first that wants it.

        The tokens of the rows must exist.
        """

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        """Return the first layer's experts of each of the next `tokens` rows of a request."""

    def wants(self, request: Request) -> frozenset[Key]:
        """Return the keys of all layers that every row of a request wants.

        The router must be static, so that all rows of the request are routed alike.
        """


class TracedStep:
    """The routing of a step as recorded in a trace."""

    __slots__ = ("_predicted", "_predicted_tokens", "_source", "rows", "tokens", "unions")

    def __init__(self, source: TraceRouting, rows: npt.NDArray[np.int64]) -> None:
        self._source = source
        self.rows = rows
        self._predicted: dict[int, Sequence[tuple[Key, ...]]] = {}  # by depth, then layer
        self._predicted_tokens: dict[int, Sequence[tuple[int, ...]]] = {}
        self.unions, self.tokens = source.unions(rows)

    @property
    def num_experts(self) -> int:
        return int(self._source.num_experts)

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        keys = self._predicted.get(depth)
        if keys is None:  # read at the first use: most policies use no predictions
            keys = self._predicted[depth] = self._source.predictions(self.rows, depth)
        return keys[layer] if layer < len(keys) else ()

    def predicted_tokens(self, layer: int, depth: int) -> tuple[int, ...]:
        counts = self._predicted_tokens.get(depth)
        if counts is None:
            counts = self._predicted_tokens[depth] = self._source.prediction_counts(
                self.rows, depth
            )
        return counts[layer] if layer < len(counts) else ()

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        return self._source.gate_weights(self.rows, layer, self.unions[layer])

    def probabilities(self, layer: int) -> tuple[float, ...]:
        return self._source.probabilities(self.rows, layer)


class StepView(View):
    """The view of a step. The server moves it from layer to layer, so policies must not keep it.

    - `reach`: number of later layers whose routing is known.
    - `owner`: name of the policy, for messages.
    - `next_unions`: what is known of the next step; its layers follow the last one of this step.
    - `queue`: for each key, the place of the first queued row that wants it.
    - `requests`: numbers of the requests of the step.
    - `is_resident(key)`: whether a key is in GPU memory or on its way there.
    """

    __slots__ = (
        "_is_resident",
        "_next_unions",
        "_owner",
        "_queue",
        "_reach",
        "_requests",
        "_routing",
    )

    def __init__(
        self,
        routing: StepRouting,
        reach: int,
        owner: str,
        next_unions: Sequence[tuple[Key, ...]] = (),
        queue: Mapping[Key, int] | None = None,
        requests: Sequence[int] = (),
        is_resident: Callable[[Key], bool] | None = None,
    ) -> None:
        super().__init__(-1, ())
        self._is_resident = is_resident
        self._requests = requests
        self._next_unions = next_unions
        self._queue = queue or {}
        self._routing = routing
        self._reach = reach
        self._owner = owner

    @property
    def requests(self) -> Sequence[int]:
        return self._requests

    def move_to(self, layer: int) -> None:
        """Show the layer event of `layer`."""
        self._layer = layer
        self._union = self._routing.unions[layer]
        self._tokens = self._routing.tokens[layer]

    def layers(self) -> Iterator[StepView]:
        """Yield this view at each layer in turn."""
        # As `move_to`, but without a call and four lookups for each layer event.
        events = zip(self._routing.unions, self._routing.tokens, strict=True)
        for self._layer, (self._union, self._tokens) in enumerate(events):
            yield self

    def predicted(self, depth: int) -> tuple[Key, ...]:
        if depth < 1:
            raise PolicyViolation(
                self._owner, depth, "is no depth of a prediction; depths start at 1"
            )
        return self._routing.predicted(self._layer, depth) if self._layer >= 0 else ()

    def predicted_tokens(self, depth: int) -> tuple[int, ...]:
        if depth < 1 or self._layer < 0:
            return ()
        return self._routing.predicted_tokens(self._layer, depth)

    def resident(self, key: Key) -> bool:
        return self._is_resident is not None and self._is_resident(key)

    def exact(self, depth: int) -> tuple[Key, ...]:
        if not 0 <= depth <= self._reach:
            raise PolicyViolation(
                self._owner,
                f"layer {self._layer} + {depth}",
                f"looks past the view: this router reveals {self._reach} layers ahead; depths "
                f"are 0 to {self._reach}",
            )
        if self._layer < 0 and self._reach < EVERYTHING:
            return ()  # no router of this step has run
        layer = self._layer + depth
        unions: Sequence[tuple[Key, ...]] = self._routing.unions
        if layer >= len(unions):
            layer, unions = layer - len(unions), self._next_unions
        return unions[layer] if 0 <= layer < len(unions) else ()

    def next_use(self, key: Key) -> int | None:
        unions = self._routing.unions
        here, layer = self._layer, key // self._routing.num_experts
        if here < layer <= here + self._reach and key in unions[layer]:
            return layer - here
        row = self._queue.get(key)
        return None if row is None else (row + 1) * len(unions) + layer - here

    def gate_weights(self) -> tuple[float, ...]:
        return self._routing.gate_weights(self._layer) if self._layer >= 0 else ()

    def probabilities(self) -> tuple[float, ...]:
        return self._routing.probabilities(self._layer) if self._layer >= 0 else ()


class TraceRouting:
    """Reads rows of a trace as keys, `layer * num_experts + expert`.

    With a `memo`, runs that compute the same rows share the unions of large steps.
    """

    def __init__(self, trace: Trace, memo: UnionMemo | None = None) -> None:
        self.memo = memo
        self.num_layers = trace.num_layers
        self.num_experts = trace.num_experts
        self.top_k = trace.top_k
        self._trace = trace
        self._ids = trace.expert_ids
        self._unused = trace.meta.unused
        self._each_one_row = [(1,) * self.top_k] * self.num_layers
        self._block_number = -1
        self._block: list[list[tuple[Key, ...]]] | None = None
        self._wants: dict[int, frozenset[Key]] = {}  # by row, since batching reads them every step
        self._base_L1 = (np.arange(self.num_layers) * self.num_experts)[:, None]
        self._base_N = np.repeat(self._base_L1, self.top_k)

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
        """Return, for each layer, the distinct keys of `rows` and the rows that want each."""
        if len(rows) == 1 and (alone := self._alone(int(rows[0]))) is not None:
            return alone, self._each_one_row
        if len(rows) * self.num_layers * self.top_k > _VECTORISE_ABOVE:
            return self._columns(rows).by_layer()
        keys_BLK = self._keys(rows)
        flat_LN = keys_BLK.transpose(1, 0, 2).reshape(self.num_layers, -1).tolist()
        counts = [count_keys(keys) for keys in flat_LN]
        return [tuple(c) for c in counts], [tuple(c.values()) for c in counts]

    def _columns(self, rows: npt.NDArray[np.int64]) -> Unions:
        """Return the unions of `rows` as columns."""
        if self.memo is None:
            return unions_of(self._keys(rows), self.num_experts)
        name = self.memo.name_of(rows)
        unions = self.memo.get(name)
        if unions is None:
            unions = unions_of(self._keys(rows), self.num_experts)
            self.memo.keep(name, unions)
        return unions

    def _alone(self, row: int) -> list[tuple[Key, ...]] | None:
        """Return the keys of one row by layer, or None if its block has unused places."""
        # A sequence decoded alone reads row after row, so a block of rows is read at a time.
        number, place = divmod(row, _BLOCK_ROWS)
        if number != self._block_number:
            self._block_number = number
            ids_BLK = self._ids[number * _BLOCK_ROWS : (number + 1) * _BLOCK_ROWS]
            usual = int(ids_BLK.max()) < self.num_experts
            self._block = self._by_layer(ids_BLK + self._base_L1) if usual else None
        return self._block[place] if self._block is not None else None

    def _by_layer(self, keys_BLK: npt.NDArray[np.int64]) -> list[list[tuple[Key, ...]]]:
        """Return the keys of each row and layer."""
        layers = self.num_layers
        # `zip` builds the tuples directly, which is faster than to convert lists.
        keys = list(zip(*keys_BLK.reshape(-1, self.top_k).T.tolist(), strict=True))
        return [keys[start : start + layers] for start in range(0, len(keys), layers)]

    def _keys(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the keys of rows, of shape [rows, layers, top_k], -1 where a place is unused.

        Raise `TraceError` for ids out of range.
        """
        # The marker of unused places is larger than every id, so one maximum finds both cases.
        ids_BLK: Any = self._ids[rows]
        if int(ids_BLK.max()) < self.num_experts:
            # Along one long axis, because a loop over K places alone is slow.
            keys_BN = ids_BLK.reshape(len(ids_BLK), -1) + self._base_N
            return np.asarray(keys_BN.reshape(ids_BLK.shape))
        return self._keys_with_gaps(ids_BLK, rows)

    def _keys_with_gaps(
        self, ids_BLK: npt.NDArray[Any], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return keys where some places may be unused or out of range; see `_keys`."""
        check_ids(self._trace, ids_BLK, rows)
        return np.where(ids_BLK == self._unused, -1, ids_BLK + self._base_L1)

    def predictions(self, rows: npt.NDArray[np.int64], depth: int) -> list[tuple[Key, ...]]:
        """Return, for each layer that has a prediction, the distinct keys of layer + depth.

        Empty if the trace records none so deep.
        """
        keys_LN = self._predicted(rows, depth)
        return [tuple([k for k in dict.fromkeys(keys) if k >= 0]) for keys in keys_LN]

    def prediction_counts(self, rows: npt.NDArray[np.int64], depth: int) -> list[tuple[int, ...]]:
        """Return the rows of each key of `predictions`, in its order."""
        return [tuple(count_keys(keys).values()) for keys in self._predicted(rows, depth)]

    def _predicted(self, rows: npt.NDArray[np.int64], depth: int) -> list[list[Key]]:
        """Return, for each layer that has a prediction, the keys of all rows; -1 is unused."""
        recorded = self._trace.predictions
        if recorded is None or depth > recorded.shape[2]:
            return []
        layers = max(0, self.num_layers - depth)
        # As a plain array, because each view of a mapped file costs a call in Python.
        guesses_BLK: Any = np.asarray(recorded[rows])[:, :layers, depth - 1]
        keys_LBK = (guesses_BLK + self._base_L1[depth:]).transpose(1, 0, 2)
        if int(guesses_BLK.max(initial=0)) >= self.num_experts:
            keys_LBK = np.where(guesses_BLK.transpose(1, 0, 2) == self._unused, -1, keys_LBK)
        keys_LN: list[list[Key]] = keys_LBK.reshape(layers, -1).tolist()
        return keys_LN

    def gate_weights(
        self, rows: npt.NDArray[np.int64], layer: int, union: Sequence[Key]
    ) -> tuple[float, ...]:
        """Return the summed gate weight of each key of `union`; empty if not recorded."""
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

    def probabilities(self, rows: npt.NDArray[np.int64], layer: int) -> tuple[float, ...]:
        """Return the router's probability of each expert, summed over rows; empty if unknown."""
        recorded = self._trace.probabilities
        if recorded is None:
            return ()
        scores_BE: Any = recorded[rows][:, layer].astype(np.float64)
        return tuple(scores_BE.sum(axis=0).tolist())


def check_ids(trace: Trace, ids_BLK: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
    """Raise `TraceError` for the highest expert id of some rows, if it is out of range."""
    worst_B = np.where(ids_BLK == trace.meta.unused, 0, ids_BLK).max(axis=(1, 2))
    row = int(np.argmax(worst_B))
    if worst_B[row] >= trace.num_experts:
        raise TraceError(
            trace.path or "trace",
            f"row {int(rows[row])}",
            f"expert id {int(worst_B[row])} is out of range for {trace.num_experts} experts",
        )


def count_keys(keys: list[Key]) -> dict[Key, int]:
    """Return how often each key occurs, in order of first appearance, without -1 (unused)."""
    counts: dict[Key, int] = {}
    for key in keys:
        if key >= 0:
            counts[key] = counts.get(key, 0) + 1
    return counts
