"""Least recently used (LRU): the key that was used longest ago leaves first.

Mixtral-offloading uses one LRU cache per layer (Eliseev & Mazur 2023, arXiv 2312.17238). Keys of
one layer event count as used one after the other, in the order of `View.union`.
"""

from __future__ import annotations

from collections.abc import Collection

from moesim.policies.eviction.base import Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "lru")
class LRU(Eviction):
    """The key that was used longest ago leaves first."""

    stack = True
    by_bytes = True

    def decide(self, view: View) -> Collection[Key]:
        book = self.book  # an OrderedDict, kept in order of last use
        for key in view.union:
            if key in book:
                book.move_to_end(key)
            else:
                book[key] = None
        if self.sizes is not None:
            return self.shrink(book)
        excess = len(book) - self.capacity
        if excess <= 0:
            return ()
        if excess == 1:  # the most frequent case: a tuple costs less than a list
            return (book.popitem(last=False)[0],)
        return [book.popitem(last=False)[0] for _ in range(excess)]

    def victim(self, protected: Collection[Key]) -> Key | None:
        for key in self.book:
            if key not in protected:
                return key
        return None
