"""Least-Stale: keys that the present forward pass has not touched leave first, then the oldest.

SpecMD (Hoang, Jaiswal, Samragh & Cho 2026, arXiv 2602.03921). A pass visits the layers in order. So
a key of an earlier pass is stale, and one of this pass was used or prefetched for this pass. A pass
begins where the layer of an event is not after that of the event before.

The age within each group is the time since the key was loaded (`age: load`) or last used (`use`).
With `use` the order is that of LRU. A cache of one layer sees one event a pass, so all keys outside
the event are stale. With sequential replay, each access of the same layer counts as a pass.

Keys of one event count as loaded and used one after the other, in the order of `View.union`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.scored import Scored
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class LeastStaleOptions:
    """`age`: since when a key ages: since it was loaded (`load`) or last used (`use`)."""

    age: Literal["load", "use"] = "load"


@register("eviction", "least_stale")
class LeastStale(Scored):
    """Keys that this pass has not touched leave first; among equals, the oldest."""

    Options = LeastStaleOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._layer = -1
        self._pass = 0
        self._touches = 0
        self._touched_in: dict[Key, int] = {}  # pass
        self._since: dict[Key, int] = {}

    def record(self, view: View) -> None:
        self._pass += view.layer <= self._layer
        self._layer = view.layer
        for key in view.union:
            self._touch(key, loaded=key not in self.book)

    def insert(self, key: Key) -> None:
        self._touch(key, loaded=True)
        super().insert(key)

    def _touch(self, key: Key, loaded: bool) -> None:
        self._touches += 1
        self._touched_in[key] = self._pass
        if loaded or self.options.age == "use":
            self._since[key] = self._touches

    def worth(self, key: Key) -> tuple[float, ...]:
        return (self._touched_in[key] == self._pass, self._since[key])
