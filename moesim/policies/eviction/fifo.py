"""First in, first out: what came in longest ago leaves first, used or not."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from moesim.policies.eviction.base import Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "fifo")
class FIFO(Eviction):
    """What came in longest ago leaves first: the book is the order of arrival."""

    def decide(self, view: View) -> Collection[Key]:
        book = self.book
        for key in view.union:
            book.setdefault(key)
        leavers = list(islice(book, max(0, len(book) - self.capacity)))
        if self.always and leavers:
            wanted = set(view.union)
            older = [key for key in book if key not in wanted]
            leavers = (older + [key for key in book if key in wanted])[: len(leavers)]
        for key in leavers:
            del book[key]
        return leavers

    def victim(self, protected: Collection[Key]) -> Key | None:
        return next((key for key in self.book if key not in protected), None)
