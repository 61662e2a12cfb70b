"""Half of the slots are pinned to the most popular experts; the rest is an LRU cache.

The rule of a published comparison (github.com/kekzl/imp, pull request 2061): the hottest half
stays, and LRU decides over the other slots. Popularity is that of a profile, as for `static`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from moesim.policies.base import Input
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.eviction.static import StaticOptions
from moesim.policies.view import Key, View


class HalfPinned(Eviction):
    """The most popular keys always hold half of the slots; others leave by last use."""

    name = "half_pinned"
    Options = StaticOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        return [Input(options.profile, "profile", trace=True)]

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        assert context.popularity is not None
        counts = context.popularity(self.options.profile)
        best = sorted(context.universe, key=lambda key: (-counts.get(key, 0), key))
        self._pinned = set(best[: self.capacity // 2])
        self.book.update(dict.fromkeys(best[: self.capacity // 2]))

    def preload(self) -> Sequence[Key]:
        return list(self._pinned)

    def decide(self, view: View) -> Collection[Key]:
        for key in view.union:
            self.book[key] = None
            self.book.move_to_end(key)
        excess = len(self.book) - self.capacity
        leavers = [key for key in self.book if key not in self._pinned][: max(excess, 0)]
        for key in leavers:
            del self.book[key]
        return leavers

    def victim(self, protected: Collection[Key]) -> Key | None:
        spared = {*protected, *self._pinned}
        return next((key for key in self.book if key not in spared), None)
