"""Activation matrix: the key with the lowest share of its layer, weighed by depth, leaves first.

MoE-Infinity (arXiv 2401.14361, github.com/EfficientMoE/MoE-Infinity). The matrix counts the tokens
that each expert of each layer got. A key is worth its share of its layer, times 1 − layer/layers:
nothing can hide the copies of the first layers. Keys without tokens are ordered by layer alone.
Keys of the layer that is computed leave last. The open code also multiplies by the uses since the
key was admitted (`visits`).

MoE-Infinity clears the matrix for each sequence. Here it starts anew where an event serves no
request of the event before. Requests that overlap share one matrix, whose counts can fade by `fade`
at each event of their layer. Sequential replay shows no requests, so the matrix is never cleared.

Hits and missing keys of an event are weighed alike. Ties: the least recently used, and keys of one
event in the order of `View.union`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Le

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.scored import Scored
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class ActivationMatrixOptions:
    """`fade`: factor by which the counts of a layer shrink at each of its events.

    `visits`: multiply by the number of uses since the key was admitted.
    """

    fade: Annotated[float, Gt(0), Le(1)] = 0.99
    visits: bool = False


@register("eviction", "activation_matrix", "eam")
class ActivationMatrix(Scored):
    """The key with the lowest share of its layer's tokens, weighed by depth, leaves first."""

    sees_requests = True
    Options = ActivationMatrixOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._experts = context.experts_per_layer or len(context.universe)
        self._layers = len(context.universe) // self._experts
        self._now = -1
        self._matrix: dict[int, dict[Key, float]] = {}
        self._totals: dict[int, float] = {}
        self._visits: dict[Key, int] = {}
        self._requests: frozenset[int] = frozenset()

    def record(self, view: View) -> None:
        requests = frozenset(view.requests)
        if requests and requests.isdisjoint(self._requests):
            self._matrix.clear()
            self._totals.clear()
            self._visits = dict.fromkeys(self._visits, 0)
        self._requests = requests
        self._now = view.layer
        row = self._matrix.setdefault(view.layer, {})
        for key in row:
            row[key] *= self.options.fade
        tokens = view.tokens or (1,) * len(view.union)
        for key, count in zip(view.union, tokens, strict=True):
            row[key] = row.get(key, 0.0) + count
            self._visits[key] = self._visits.get(key, 0) + 1
        self._totals[view.layer] = sum(row.values())

    def worth(self, key: Key) -> tuple[float, ...]:
        layer = key // self._experts
        # A cache of one layer has one weight for all of its keys.
        nearness = self._layers - layer if self._layers > 1 else 1
        count = self._matrix[layer].get(key, 0.0) if layer in self._matrix else 0.0
        share = count / self._totals[layer] if count else 0.0
        visits = self._visits.get(key, 0) if self.options.visits else 1
        return (layer == self._now, visits * nearness * share, nearness)

    def remove(self, key: Key) -> None:
        super().remove(key)
        self._visits.pop(key, None)
