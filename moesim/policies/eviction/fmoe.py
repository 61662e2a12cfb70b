"""fMoE: the key with the lowest product of probability and frequency leaves first.

fMoE, later FineMoE (arXiv 2502.05370, github.com/IntelliSys-Lab/FineMoE-EuroSys26), evicts by the
priority 1/(p·f), the highest first. f counts the uses of an expert since the start. p is its gate
probability, which fMoE takes from a stored map of a similar iteration.

An eviction policy here is not told what a prefetch policy has matched. So p is the mean over all
iterations so far: what a store of maps gives if all maps match alike.

Hits and missing keys of an event are weighed alike. Ties: the least recently used, and keys of one
event in the order of `View.union`. FineMoE breaks ties by the lower key.
"""

from __future__ import annotations

from typing import Any

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.gate_scores import gate_scores
from moesim.policies.eviction.scored import Scored
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "fmoe", "finemoe")
class FMoE(Scored):
    """The key with the lowest mean gate probability times number of uses leaves first."""

    needs_scores = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._experts = context.experts_per_layer or len(context.universe)
        self._uses: dict[Key, int] = {}
        self._sums: dict[Key, float] = {}
        self._events: dict[int, int] = {}  # by layer

    def record(self, view: View) -> None:
        self._events[view.layer] = self._events.get(view.layer, 0) + 1
        for key in view.union:
            self._uses[key] = self._uses.get(key, 0) + 1
        for key, score in gate_scores(view, self._experts).items():
            self._sums[key] = self._sums.get(key, 0.0) + score

    def worth(self, key: Key) -> tuple[float, ...]:
        uses = self._uses.get(key, 0)
        if not uses:
            return (0.0,)
        return (self._sums.get(key, 0.0) * uses / self._events[key // self._experts],)
