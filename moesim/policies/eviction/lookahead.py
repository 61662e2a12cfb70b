"""Look-ahead Belady: of the uses that the router has revealed, the latest next use leaves.

Read-ME (arXiv 2410.19123) routes queued tokens before they are computed, so it can apply Belady's
rule to them. Keys without a revealed use leave first, the least recently used before the others.

A layer-wise router reveals no later layer. Then the policy is LRU, if nothing is prefetched.
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
    """Keys without a revealed next use leave first, by LRU; then the latest next use."""

    looks_ahead = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._clock = 0
        self._used: dict[Key, int] = {}
        self._view: View | None = None

    def observe(self, view: View) -> None:
        # Times of use differ within an event, so that no two keys have equal ranks.
        for place, key in enumerate(view.union):
            self._used[key] = self._clock + place
        self._clock += len(view.union)
        self._view = view  # for `victim`, which gets no view; the server updates this one
        self._rank({*self.book, *view.union})

    def victim(self, protected: Collection[Key]) -> Key | None:
        self._rank(self.book)  # prefetches since the last event may have brought in unranked keys
        return super().victim(protected)

    def _rank(self, keys: Collection[Key]) -> None:
        view = self._view
        for key in keys:
            next_use = None if view is None else view.next_use(key)
            self.rank[key] = (_UNKNOWN if next_use is None else next_use, -self._used.get(key, -1))
