"""Routing as a running model reveals it, and the texts that grow meanwhile.

The ids of each layer come from the model itself, once they are on the host; those of a decoupled
model as soon as a token exists. The tokens that a step begins with are those that the step before
it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from moesim.errors import InvariantError
from moesim.machine.real.batch import Batch, Span
from moesim.machine.real.executor import Executor
from moesim.machine.real.run import spans_of
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
    """The routing of a step as it becomes known; layers that nobody could know yet have none."""

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
        executor = self._executor
        if layer + depth >= executor.num_layers:
            return ()
        guessed = executor.predicted(layer, depth)
        return tuple(_count(guessed, (layer + depth) * executor.num_experts))

    def gate_weights(self, layer: int) -> tuple[float, ...]:
        return ()  # they stay on the device


class LiveRouting:
    """Where ids come from when a model generates: from the model. It also keeps the texts, since
    the tokens of a step are those that the step before it chose."""

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
        """Take what the step that is over has chosen."""
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
    """The routing of a step that was known before it: a prediction is the truth."""

    def predicted(self, layer: int, depth: int) -> tuple[Key, ...]:
        if layer + depth >= self._executor.num_layers:
            return ()
        return tuple(self.unions[layer + depth])


class RevealedRouting(LiveRouting):
    """Where ids come from when a decoupled model generates: from its router, for a prompt when it
    arrives, for every other token when it is sampled. Rows of a request keep theirs when it is
    preempted; of rows whose token does not exist yet nothing is said."""

    knowledge = KNOWLEDGE["decoupled"]

    def __init__(
        self, executor: Executor, prompts: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> None:
        """`requests` of these prompts have arrived, each with rows of its own."""
        super().__init__(executor, prompts)
        self._routes_R2 = np.full((sum(len(r.rows) for r in requests), 2), np.nan)
        for request, prompt in zip(requests, prompts, strict=True):
            span = Span(request.index, 0, len(prompt), request.max_kv_tokens, False)
            known = executor.route(Batch((span,), prompt))
            self._routes_R2[request.rows[: len(prompt)]] = known

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
            self._routes_R2[request.rows[row : row + 1]] = route  # none for the last token

    def unions(self, rows: Rows) -> Unions:
        counts = [_count(self._paths(rows)[:, None], base) for base in self._bases]
        return [tuple(c) for c in counts], [tuple(c.values()) for c in counts]

    def first_uses(self, rows: Rows) -> Mapping[Key, int]:
        paths, first = np.unique(self._paths(rows), return_index=True)
        pairs = list(zip(paths.tolist(), first.tolist(), strict=True))
        return {base + path: row for base in self._bases for path, row in pairs}

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        """Asked between two steps, when what the first has sampled is known."""
        self.collect()
        return [[path] for path in self._paths(request.next_rows(tokens)).tolist()]

    def _begin(self, step: Step, tokens: Sequence[int]) -> None:
        ids = np.repeat(self._paths(step.rows)[:, None, None], self.num_layers, axis=1)
        weights: Any = np.repeat(self._routes_R2[step.rows, 1, None, None], self.num_layers, axis=1)
        if (weights == 1).all():
            weights = None  # nothing to copy: this is what it means
        self._executor.begin(Batch(spans_of(step), tokens, ids, weights))

    @property
    def _bases(self) -> range:
        """The first key of each layer."""
        return range(0, self.num_layers * self.num_experts, self.num_experts)

    def _paths(self, rows: Rows) -> npt.NDArray[np.int64]:
        """The expert of each row, the same in all layers."""
        paths: Any = self._routes_R2[rows, 0]
        if np.isnan(paths).any():
            row = rows[np.isnan(paths)][0]
            raise InvariantError(12, f"the token of row {row} does not exist yet: no expert is its")
        return np.asarray(paths, dtype=np.int64)


class _AsKnown(Sequence[Any]):
    """One thing a layer, worked out when it is asked for."""

    def __init__(self, num_layers: int, make: Callable[[int], Any]) -> None:
        self._made: list[Any] = [None] * num_layers
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, layer: Any) -> Any:
        if self._made[layer] is None:
            self._made[layer] = self._make(layer)
        return self._made[layer]


def _count(ids: npt.NDArray[np.int64], base: int) -> dict[Key, int]:
    """Rows that want each key of a layer whose first key is `base`."""
    return count_keys(np.where(ids < 0, -1, ids + base).reshape(-1).tolist())
