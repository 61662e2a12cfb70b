"""Routing of a running model, and the texts that it generates.

The ids of each layer come from the model itself, once they are on the host. Those of a decoupled
model are known as soon as a token exists. A step begins with the tokens that the step before it
chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from moesim.errors import InvariantError
from moesim.executor.batch import Batch, Span
from moesim.executor.executor import Executor
from moesim.executor.run import spans_of
from moesim.policies import Key
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.layers import LayerPlan
from moesim.serving.request import Request
from moesim.serving.routing import StepRouting, count_keys
from moesim.serving.step import Step

__all__ = ["LiveRouting", "RevealedRouting"]

Rows = npt.NDArray[np.int64]
Unions = tuple[Sequence[tuple[Key, ...]], Sequence[tuple[int, ...]]]

_NOTHING: Final = "routers in each layer reveal nothing of tokens to come"


class LiveStep:
    """The routing of a step, layer by layer as it becomes known."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.num_experts = executor.num_experts
        self.unions = _AsKnown(executor.num_layers, lambda layer: tuple(self._counts(layer)))
        self.tokens = _AsKnown(
            executor.num_layers, lambda layer: tuple(self._counts(layer).values())
        )

    def _counts(self, layer: int) -> dict[Key, int]:
        return _count(self._executor.ids(layer), layer * self._executor.num_experts)

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        return tuple(self._guesses(layer, depth))

    def predicted_tokens(self, layer: int, depth: int) -> tuple[int, ...]:
        return tuple(self._guesses(layer, depth).values())

    def _guesses(self, layer: int, depth: int) -> dict[Key, int]:
        """Return the predicted keys of layer + depth, and the rows of each."""
        executor = self._executor
        if layer + depth >= executor.num_layers:
            return {}
        return _count(executor.predicted(layer, depth), (layer + depth) * executor.num_experts)

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        return ()  # unknown to the host: they stay on the device

    def probabilities(self, layer: int) -> tuple[float, ...]:
        return ()  # as the gate weights


class LiveRouting:
    """The routing source of a model that generates: ids come from the model.

    It also keeps the texts, because the tokens of a step are those that the step before it chose.
    """

    knowledge = KNOWLEDGE["layerwise"]

    def __init__(self, executor: Executor, prompts: Sequence[Sequence[int]]) -> None:
        self.num_layers = executor.num_layers
        self.num_experts = executor.num_experts
        self.top_k = executor.top_k
        self.expert_bytes = executor.expert_bytes
        self.layer_plan = LayerPlan.of(executor.model_layers, executor.num_model_layers)
        self.texts = [list(prompt) for prompt in prompts]
        self.logits: list[list[Tensor]] = [[] for _ in prompts]
        self._executor = executor
        self._last: Step | None = None

    def step(self, step: Step) -> StepRouting:
        self.collect()
        self._last = step
        tokens = [
            token
            for request, position, count, _ in step.parts
            for token in self.texts[request.index][position : position + count]
        ]
        self._begin(step, tokens)
        return LiveStep(self._executor)

    def _begin(self, step: Step, tokens: Sequence[int]) -> None:
        self._executor.begin(Batch(spans_of(step), tokens))

    def collect(self) -> None:
        """Take the tokens that the finished step has chosen."""
        if self._last is None:
            return
        logits = self._executor.logits.to("cpu", copy=True)
        sampled = zip(self._last.emitting, self._executor.sampled(), strict=True)
        for row, (request, token) in enumerate(sampled):
            self.texts[request.index].append(token)
            self.logits[request.index].append(logits[row])
        for request in self._last.finished:
            self._executor.release(request.index)
        self._last = None

    def unions(self, rows: Rows) -> Unions:
        raise InvariantError(12, _NOTHING)

    def first_uses(self, rows: Rows) -> Mapping[Key, int]:
        raise InvariantError(12, _NOTHING)

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        raise InvariantError(12, _NOTHING)

    def wants(self, request: Request) -> frozenset[Key]:
        raise InvariantError(12, "no model that generates knows the routing of tokens to come")


class RevealedStep(LiveStep):
    """The routing of a step that was known before it, so predictions are always true."""

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        if layer + depth >= self._executor.num_layers:
            return ()
        return tuple(self.unions[layer + depth])

    def predicted_tokens(self, layer: int, depth: int) -> tuple[int, ...]:
        if layer + depth >= self._executor.num_layers:
            return ()
        return tuple(self.tokens[layer + depth])


class RevealedRouting(LiveRouting):
    """The routing source of a decoupled model that generates: ids come from its router.

    A prompt is routed when it arrives, every other token when it is sampled. A preempted request
    keeps the ids of its rows. Rows whose token does not exist yet have no ids.
    """

    knowledge = KNOWLEDGE["decoupled"]

    def __init__(
        self, executor: Executor, prompts: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> None:
        """Route the prompts of `requests`, which have arrived; no two requests share rows."""
        super().__init__(executor, prompts)
        self._routes_R2 = np.full((sum(len(r.rows) for r in requests), 2), np.nan)
        for request, prompt in zip(requests, prompts, strict=True):
            span = Span(request.index, 0, len(prompt), request.max_kv_tokens, False)
            routes = executor.route(Batch((span,), prompt))
            self._routes_R2[request.rows[: len(prompt)]] = routes

    def step(self, step: Step) -> StepRouting:
        super().step(step)
        return RevealedStep(self._executor)

    def collect(self) -> None:
        emitting = [] if self._last is None else self._last.emitting
        super().collect()
        if not emitting:
            return
        for request, route in zip(emitting, self._executor.sampled_routes(), strict=True):
            row = len(self.texts[request.index]) - 1
            # The last token has a route but no row, and the slice is then empty.
            self._routes_R2[request.rows[row : row + 1]] = route

    def unions(self, rows: Rows) -> Unions:
        counts = [_count(self._paths(rows)[:, None], base) for base in self._bases]
        return [tuple(c) for c in counts], [tuple(c.values()) for c in counts]

    def first_uses(self, rows: Rows) -> Mapping[Key, int]:
        paths, first = np.unique(self._paths(rows), return_index=True)
        pairs = list(zip(paths.tolist(), first.tolist(), strict=True))
        return {base + path: row for base in self._bases for path, row in pairs}

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        """Return the experts of the next tokens; batching asks between two steps."""
        self.collect()  # the tokens that the last step sampled are in the queue now
        return [[path] for path in self._paths(request.next_rows(tokens)).tolist()]

    def _begin(self, step: Step, tokens: Sequence[int]) -> None:
        ids = np.repeat(self._paths(step.rows)[:, None, None], self.num_layers, axis=1)
        weights: Any = np.repeat(self._routes_R2[step.rows, 1, None, None], self.num_layers, axis=1)
        if (weights == 1).all():
            weights = None  # None means 1, so nothing needs to be copied
        self._executor.begin(Batch(spans_of(step), tokens, ids, weights))

    @property
    def _bases(self) -> range:
        """Return the first key of each layer."""
        return range(0, self.num_layers * self.num_experts, self.num_experts)

    def _paths(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the expert of each row, the same in all layers.

        Raise `InvariantError` for a row whose token does not exist yet.
        """
        paths: Any = self._routes_R2[rows, 0]
        if np.isnan(paths).any():
            row = rows[np.isnan(paths)][0]
            raise InvariantError(12, f"the token of row {row} does not exist yet: it has no expert")
        return np.asarray(paths, dtype=np.int64)


class _AsKnown(Sequence[Any]):
    """One value a layer, computed on first access, because later layers are not known yet."""

    def __init__(self, num_layers: int, make: Callable[[int], Any]) -> None:
        self._values: list[Any] = [None] * num_layers
        self._make = make

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, layer: Any) -> Any:
        if self._values[layer] is None:
            self._values[layer] = self._make(layer)
        return self._values[layer]


def _count(ids: npt.NDArray[np.int64], base: int) -> dict[Key, int]:
    """Count the rows that want each key of a layer whose first key is `base`."""
    return count_keys(np.where(ids < 0, -1, ids + base).reshape(-1).tolist())
