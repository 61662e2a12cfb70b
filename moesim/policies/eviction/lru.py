"""Least recently used: what was touched longest ago leaves first.

The touch order inside a layer event is first appearance in the batch, then stored order. Used
per layer by mixtral-offloading (Eliseev & Mazur 2023, arXiv 2312.17238).
"""

from __future__ import annotations

from collections.abc import Collection

from moesim.policies.eviction.base import Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "lru")
class LRU(Eviction):
    """What was touched longest ago leaves first: the book is the order of recency."""

    stack = True

    def decide(self, view: View) -> Collection[Key]:
        book = self.book
        for key in view.union:
            if key in book:
                book.move_to_end(key)
            else:
                book[key] = None
        excess = len(book) - self.capacity
        if excess <= 0:
            return ()
        if excess == 1:
            return (book.popitem(last=False)[0],)
        return [book.popitem(last=False)[0] for _ in range(excess)]

    def victim(self, protected: Collection[Key]) -> Key | None:
        for key in self.book:
            if key not in protected:
                return key
        return None
