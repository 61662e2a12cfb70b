"""SIEVE: a hand walks from the oldest key to the newest and evicts the first that was not reused.

Zhang, Yang, Yue, Vigfusson & Rashmi, "SIEVE is Simpler than LRU" (NSDI 2024). Keys queue in order
of admission. A hit marks a key. The hand takes the mark of each marked key that it passes. It stays
where it evicted, and starts again at the oldest key when it has passed the newest.

Layer events: see `replacing`. The hand also takes the marks of protected keys, without evicting
them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.replacing import Replacing, first_outside
from moesim.policies.registry import register
from moesim.policies.view import Key


@register("eviction", "sieve")
class Sieve(Replacing):
    """The first key without a reuse since the hand last passed it leaves."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._marked: set[Key] = set()
        # The queue is cut at the hand, which points at the first key of `_ahead`. The oldest keys
        # are behind the hand, the newest ahead of it.
        self._behind: OrderedDict[Key, None] = OrderedDict()
        self._ahead: OrderedDict[Key, None] = OrderedDict()

    def reuse(self, key: Key) -> None:
        self._marked.add(key)

    def place(self, key: Key, known: bool) -> None:
        self._ahead[key] = None

    def choose(self, protected: Collection[Key]) -> Key | None:
        queue = [*self._ahead, *self._behind]
        fresh = (key for key in queue if key not in self._marked)
        return first_outside(protected, fresh, queue)

    def displace(self, key: Key) -> None:
        if key in self._marked:  # the hand found no other, so it went all the way round
            self._marked.clear()
        while True:
            at, _ = self._ahead.popitem(last=False)
            if at != key:
                self._marked.discard(at)
                self._behind[at] = None
            if not self._ahead:  # past the newest key, the hand starts again at the oldest
                self._ahead, self._behind = self._behind, self._ahead
            if at == key:
                return
