"""LFRU: uses per event of age. What is seldom used for its age leaves first.

`pip install ./examples/plugin` and `cache: {policy: lfru}` works in every scenario: the entry
point in pyproject.toml is all there is to it.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import nsmallest
from typing import Any

from moesim.policies import Key, View, register
from moesim.policies.eviction import CacheContext, Eviction


@register("eviction", "lfru")
class LFRU(Eviction):
    """The lowest (uses ÷ events since it came in) leaves first; ties: the lower key."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.events = 0
        self.uses: dict[Key, int] = {}
        self.since: dict[Key, int] = {}

    def decide(self, view: View) -> Collection[Key]:
        self.events += 1
        for key in view.union:
            if key not in self.book:
                self.insert(key)
            self.uses[key] += 1
        leavers = nsmallest(max(0, len(self.book) - self.capacity), self.book, key=self.worth)
        for key in leavers:
            self.remove(key)
        return leavers

    def victim(self, protected: Collection[Key]) -> Key | None:
        return min((key for key in self.book if key not in protected), key=self.worth, default=None)

    def insert(self, key: Key) -> None:
        super().insert(key)
        self.uses[key], self.since[key] = 0, self.events

    def worth(self, key: Key) -> tuple[float, Key]:
        return self.uses[key] / (self.events - self.since[key] + 1), key
