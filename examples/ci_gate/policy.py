"""The policy that the gate guards: least recently used first."""

from __future__ import annotations

from typing import Any

from moesim.policies import Key, View
from moesim.policies.eviction import CacheContext, Ranked

RECENCY = 1
"""The weight of recency: 1 is LRU, and -1 evicts what was used last."""


class Guarded(Ranked):
    """The key that was used least recently leaves first."""

    name = "guarded"

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.events = 0

    def observe(self, view: View) -> None:
        self.events += 1
        for key in view.union:
            if key not in self.book:
                self.insert(key)
            self.rank[key] = (-RECENCY * self.events, -key)  # the highest rank leaves first

    def insert(self, key: Key) -> None:
        super().insert(key)
        self.rank[key] = (-RECENCY * self.events, -key)
