"""Replacement: the base of policies that give each missing key the slot of one victim.

The published rules of these policies handle one access at a time. A layer event is one access of a
whole union, so `Replacing.decide` applies the rules in this order:

1. Hits and misses are found against the residents at the start of the event.
2. Hits are handled in the order of `View.union`.
3. Then each missing key, in the same order, evicts one key if the cache is full and takes a slot.

So a hit is never missed because of another key of its event. A missing key always enters, also with
admission `bypass`; a later key of the same event may evict it again. With admission `always`, keys
of the event are evicted only when no other key is left. An event of one key is handled exactly as
published.

A prefetched key is placed as a missing key is. Its first use then changes nothing, because it is
the access that the copy was for. A prefetch itself is no access, and teaches the policy nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.view import Key, View

__all__ = ["Replacing", "first_outside"]


class Replacing(Eviction):
    """Base class of policies that evict one victim for each missing key. They count slots."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._unused: set[Key] = set()  # prefetched, and not wanted since

    @abstractmethod
    def reuse(self, key: Key) -> None:
        """Handle a hit."""

    def recall(self, key: Key, *, wanted: bool) -> bool:
        """Return whether an absent key left a ghost, which is forgotten then.

        `wanted`: the key was missed, and is not prefetched. Only then may the policy adapt.
        """
        return False

    @abstractmethod
    def place(self, key: Key, known: bool) -> None:
        """Record that a key took a slot. `known`: it had left a ghost."""

    @abstractmethod
    def choose(self, protected: Collection[Key]) -> Key | None:
        """Return the resident that leaves next and is not protected, or None. Evict nothing."""

    @abstractmethod
    def displace(self, key: Key) -> None:
        """Record that a key lost its slot."""

    def decide(self, view: View) -> Collection[Key]:
        book, leavers = self.book, []
        missing = [key for key in view.union if key not in book]
        for key in view.union:
            if key in self._unused:
                self._unused.remove(key)
            elif key in book:
                self.reuse(key)
        if not self.capacity:
            return missing
        spared = set(view.union) if self.always else frozenset[Key]()
        for key in missing:
            known = self.recall(key, wanted=True)
            if len(book) >= self.capacity:
                leavers.append(self._evict(spared))
            book[key] = None
            self.place(key, known)
        return leavers

    def _evict(self, spared: Collection[Key]) -> Key:
        key = self.choose(spared)
        if key is None:
            key = self.choose(())
        assert key is not None
        self.remove(key)
        return key

    def victim(self, protected: Collection[Key]) -> Key | None:
        return self.choose(protected)

    def insert(self, key: Key) -> None:
        super().insert(key)
        self._unused.add(key)
        self.place(key, self.recall(key, wanted=False))

    def remove(self, key: Key) -> None:
        super().remove(key)
        self._unused.discard(key)
        self.displace(key)


def first_outside(protected: Collection[Key], *orders: Iterable[Key]) -> Key | None:
    """Return the first key of the orders that is not protected, or None."""
    return next((key for order in orders for key in order if key not in protected), None)
