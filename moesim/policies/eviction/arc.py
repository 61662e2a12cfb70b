"""ARC: two LRU lists, of keys used once and of keys used again, share the slots adaptively.

Megiddo & Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache" (FAST 2003). T1 holds keys
used once, T2 keys used more often. B1 and B2 hold the ghosts of keys that left T1 and T2. A missing
key with a ghost in B1 shows that T1 is too small, and one in B2 that T2 is. Each raises or lowers
`p`, the number of slots that T1 should have, by a ratio that the paper does not round.

Layer events: see `replacing`. If the list that should give up a key holds only protected keys, the
other list gives up one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.replacing import Replacing, first_outside
from moesim.policies.registry import register
from moesim.policies.view import Key


@register("eviction", "arc")
class ARC(Replacing):
    """The least recent key used once leaves, or the least recent one used again, as `p` says."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        # The least recent key comes first in all lists.
        self._once: OrderedDict[Key, None] = OrderedDict()  # T1
        self._again: OrderedDict[Key, None] = OrderedDict()  # T2
        self._once_ghosts: OrderedDict[Key, None] = OrderedDict()  # B1
        self._again_ghosts: OrderedDict[Key, None] = OrderedDict()  # B2
        self._p: float = 0
        self._for_again = False  # the slot that is freed next is for a key with a ghost in B2

    def reuse(self, key: Key) -> None:
        self._once.pop(key, None)
        self._again[key] = None
        self._again.move_to_end(key)

    def recall(self, key: Key, *, wanted: bool) -> bool:
        once, again = self._once_ghosts, self._again_ghosts
        known = key in once or key in again
        if wanted and key in once:
            self._p = min(self._p + max(1, len(again) / len(once)), self.capacity)
        if wanted and key in again:
            self._p = max(self._p - max(1, len(once) / len(again)), 0)
            self._for_again = True
        once.pop(key, None)
        again.pop(key, None)
        return known

    def place(self, key: Key, known: bool) -> None:
        self._for_again = False
        (self._again if known else self._once)[key] = None
        # The paper drops a ghost before it evicts, which leaves the same lists.
        if len(self._once) + len(self._once_ghosts) > self.capacity:
            self._once_ghosts.popitem(last=False)
        if len(self.book) + len(self._once_ghosts) + len(self._again_ghosts) > 2 * self.capacity:
            self._again_ghosts.popitem(last=False)

    def choose(self, protected: Collection[Key]) -> Key | None:
        above = len(self._once) > self._p or (self._for_again and len(self._once) == self._p)
        lists = (self._once, self._again) if above else (self._again, self._once)
        return first_outside(protected, *lists)

    def displace(self, key: Key) -> None:
        if key in self._once:
            del self._once[key]
            self._once_ghosts[key] = None
        else:
            del self._again[key]
            self._again_ghosts[key] = None
