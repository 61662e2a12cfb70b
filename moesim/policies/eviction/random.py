"""Random: all keys are equally likely to leave.

A policy with a rule should do better, so this one is the floor of a comparison. Belady (1966)
uses it in the same role.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("eviction", "random")
class Random(Eviction):
    """All keys, resident or just wanted, are equally likely to leave: a floor."""

    by_bytes = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._rng = context.rng

    def decide(self, view: View) -> Collection[Key]:
        book = self.book
        for key in view.union:
            book[key] = None
        if self.sizes is not None:
            return self.shrink(self._shuffled(view.union))
        excess = len(book) - self.capacity
        if excess <= 0:
            return ()
        # With admission `always`, keys of this event leave only when no other key is left.
        wanted = set(view.union) if self.always else frozenset[Key]()
        first = self._draw([key for key in book if key not in wanted], excess)
        leavers = first + self._draw([key for key in view.union if wanted], excess - len(first))
        for key in leavers:
            del book[key]
        return leavers

    def _shuffled(self, union: Collection[Key]) -> Iterator[Key]:
        """Yield the keys of the book in random order; with `always`, those of the union last."""
        wanted = set(union) if self.always else set()
        for pool in ([key for key in self.book if key not in wanted], sorted(wanted)):
            yield from (pool[i] for i in self._rng.permutation(len(pool)).tolist())

    def _draw(self, pool: list[Key], count: int) -> list[Key]:
        if count >= len(pool):
            return pool
        if count == 1:  # a single draw is much cheaper than a permutation
            return [pool[int(self._rng.integers(len(pool)))]]
        return [pool[i] for i in self._rng.permutation(len(pool))[:count].tolist()]

    def victim(self, protected: Collection[Key]) -> Key | None:
        pool = [key for key in self.book if key not in protected]
        return self._draw(pool, 1)[0] if pool else None
