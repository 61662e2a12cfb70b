"""First in, first out (FIFO): the key that was admitted longest ago leaves first.

Uses of a resident key change nothing. Belady (1966) compares this rule with MIN and with random.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from moesim.policies.eviction.base import Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "fifo")
class FIFO(Eviction):
    """The key that was admitted longest ago leaves first, whether it was used since or not."""

    by_bytes = True

    def decide(self, view: View) -> Collection[Key]:
        book = self.book  # in order of admission: `setdefault` leaves residents where they are
        for key in view.union:
            book.setdefault(key)
        if self.sizes is not None:
            return self.shrink(self._oldest_first(view.union))
        leavers = list(islice(book, max(0, len(book) - self.capacity)))
        if self.always and leavers:  # keys of this event leave last, even if they are the oldest
            wanted = set(view.union)
            older = [key for key in book if key not in wanted]
            leavers = (older + [key for key in book if key in wanted])[: len(leavers)]
        for key in leavers:
            del book[key]
        return leavers

    def _oldest_first(self, union: Collection[Key]) -> Iterator[Key]:
        """Yield the keys of the book as they leave; with `always`, those of the union last."""
        wanted = set(union) if self.always else set()
        yield from (key for key in self.book if key not in wanted)
        yield from (key for key in self.book if key in wanted)

    def victim(self, protected: Collection[Key]) -> Key | None:
        return next((key for key in self.book if key not in protected), None)
