"""Look-ahead Belady: who is wanted again latest, as far as the router has revealed, leaves.

Read-ME (arXiv 2410.19123) routes queued tokens before they are computed and evicts by Belady's
rule over what it knows. Beyond that nothing is known, and the least recently used leave first.
With a layer-wise router nothing is revealed beyond the layer at hand: then this is LRU, less
what the event itself wants.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_UNKNOWN = float("inf")


@register("eviction", "lookahead")
class LookAhead(Ranked):
    """What is wanted again latest, as far as is revealed, leaves first; then as LRU."""

    looks_ahead = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._clock = 0
        self._used: dict[Key, int] = {}
        self._view: View | None = None

    def observe(self, view: View) -> None:
        for place, key in enumerate(view.union):
            self._used[key] = self._clock + place
        self._clock += len(view.union)
        self._view = view
        self._rank({*self.book, *view.union})

    def victim(self, protected: Collection[Key]) -> Key | None:
        self._rank(self.book)
        return super().victim(protected)

    def _rank(self, keys: Collection[Key]) -> None:
        view = self._view
        for key in keys:
            known = None if view is None else view.next_use(key)
            self.rank[key] = (_UNKNOWN if known is None else known, -self._used.get(key, -1))
