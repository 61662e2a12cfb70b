"""Scores: the base of policies that weigh all residents anew at each layer event.

The key worth least leaves first. Among keys worth the same, the least recently used leaves; keys of
one event count as used one after the other, in the order of `View.union`. Hits and missing keys of
an event are weighed alike, after the whole event was recorded.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.view import Key, View

__all__ = ["Scored"]


class Scored(Ranked):
    """Base class of policies with a score that can change while a key is not used."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._used: dict[Key, int] = {}
        self._clock = 0

    @abstractmethod
    def record(self, view: View) -> None:
        """Learn from a layer event."""

    @abstractmethod
    def worth(self, key: Key) -> tuple[float, ...]:
        """Return what a key is worth now, compared from left to right.

        A key that was prefetched may never have been recorded.
        """

    def observe(self, view: View) -> None:
        self.record(view)
        for key in view.union:
            self._clock += 1
            self._used[key] = self._clock
        for key in {*self.book, *view.union}:
            self.rank[key] = self._rank(key)

    def insert(self, key: Key) -> None:
        super().insert(key)
        self.rank[key] = self._rank(key)

    def _rank(self, key: Key) -> tuple[float, ...]:
        return (*(-part for part in self.worth(key)), -self._used.get(key, 0), key)
