"""Policies of two designs that Pre-gated MoE compares (arXiv 2308.12066): nothing is cached.

cache: {policy: studies/published/streaming.py:DropUsed, scope: global}
prefetch: {policy: studies/published/streaming.py:StreamAll}
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.prefetch.base import Prefetch, PrefetchContext
from moesim.policies.view import Key, View

__all__ = ["DropUsed", "StreamAll"]


class StreamAll(Prefetch):
    """Fetch all experts of the next layer, whichever the router will choose."""

    def prepare(self, context: PrefetchContext) -> None:
        self._layers, self._experts = context.num_layers, context.num_experts

    def wanted(self, view: View) -> Sequence[Key]:
        layer = view.layer + 1
        if layer >= self._layers:  # as in the open code, the first layer is not fetched ahead
            return ()
        return range(layer * self._experts, (layer + 1) * self._experts)


class DropUsed(Eviction):
    """Every expert of a layer loses its slot when the layer was computed, used or not.

    Experts of other layers stay, because a prefetch just brought them.
    """

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._experts = context.experts_per_layer or len(context.universe)

    def decide(self, view: View) -> Collection[Key]:
        for key in view.union:
            self.book[key] = None
        leavers = [key for key in self.book if key // self._experts == view.layer]
        for key in leavers:
            self.remove(key)
        return leavers

    def victim(self, protected: Collection[Key]) -> Key | None:
        return next((key for key in self.book if key not in protected), None)
