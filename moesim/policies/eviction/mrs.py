"""MRS: the key with the lowest fading mean of its gate scores leaves first.

"Minus Recent Score" of HybriMoE (arXiv 2504.05897, github.com/PKU-SEC-Lab/HybriMoE). At each event
of a layer, the mean S of each of its experts becomes a·s + (1 − a)·S. s is the score of the expert
if it is among the `keep` highest of the layer, else 0. Keys that were almost chosen are thus worth
more than others, which counts of uses do not show.

For several rows in one event, s is the expert's share of their summed scores. The source does not
say what it does then. A trace without the scores of all experts shows those of the chosen alone.

Hits and missing keys of an event are weighed alike. Ties: the least recently used, and keys of one
event in the order of `View.union`.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.gate_scores import gate_scores
from moesim.policies.eviction.scored import Scored
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class MRSOptions:
    """`weight`: the weight a of the newest scores.

    `keep`: number of scores of an event that count; by default twice the top-k of the router.
    """

    weight: Annotated[float, Gt(0), Le(1)] = 0.5
    keep: Annotated[int, Ge(1)] | None = None


@register("eviction", "mrs")
class MRS(Scored):
    """The key with the lowest fading mean of its gate scores leaves first."""

    needs_scores = True
    Options = MRSOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._experts = context.experts_per_layer or len(context.universe)
        self._keep = self.options.keep or 2 * context.top_k or self._experts
        self._means: dict[Key, float] = {}

    def record(self, view: View) -> None:
        scores = gate_scores(view, self._experts)
        best = nlargest(self._keep, scores, key=lambda key: (scores[key], -key))
        means, weight = self._means, self.options.weight
        for key in means:
            if key // self._experts == view.layer:
                means[key] *= 1 - weight
        for key in best:
            means[key] = means.get(key, 0.0) + weight * scores[key]

    def worth(self, key: Key) -> tuple[float, ...]:
        return (self._means.get(key, 0.0),)
