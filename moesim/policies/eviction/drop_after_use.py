"""Drop after use: an expert leaves GPU memory once its layer is computed, and nothing is cached.

Pre-gated MoE (arXiv 2308.12066) works like this: GPU memory holds the experts of the block that is
computed, and those that are copied for the next block. MoE-Lightning (arXiv 2411.11217) streams all
weights through GPU memory in the same way.

Only prefetched experts take a slot. Others are copied into staging buffers. Where the slots do not
suffice for a prefetch, the expert that was fetched first leaves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "drop_after_use")
class DropAfterUse(Eviction):
    """All experts of a layer leave once it is computed; without prefetch, nothing is ever hit."""

    by_bytes = True
    needs_bypass = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._experts = context.experts_per_layer

    def decide(self, view: View) -> Collection[Key]:
        leavers = [key for key in self.book if self._is_of(key, view.layer)]
        for key in leavers:
            del self.book[key]
        return [*leavers, *(key for key in view.union if key not in leavers)]

    def _is_of(self, key: Key, layer: int) -> bool:
        """Return whether a key is of a layer; a cache of one layer may not know which it is."""
        return not self._experts or key // self._experts == layer

    def victim(self, protected: Collection[Key]) -> Key | None:
        return next((key for key in self.book if key not in protected), None)
