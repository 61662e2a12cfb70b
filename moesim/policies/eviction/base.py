"""Eviction: which experts keep a slot after a layer event.

A cache is asked once per layer event, with the whole union. Of residents ∪ union at most
`capacity` keys keep a slot; the policy answers the others, the *leavers*. A just-used key may
be among them (bypass), unless admission is `always` and capacity allows. Each policy keeps its
own book of residents, and is audited: the book must equal the server's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, ClassVar

import numpy as np

from moesim.errors import UsageError
from moesim.policies.registry import NoOptions
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class CacheContext:
    """What a policy is built with: one cache of `capacity` slots for the keys of `universe`.

    `popularity` counts past uses per key in a named profile (for `static`); `future` is the
    cache's whole sequence of unions (for `min` alone, where all requests arrive at once).
    """

    capacity: int
    universe: Sequence[Key]
    admission: str
    rng: np.random.Generator
    popularity: Callable[[Any], Mapping[Key, int]] | None = None
    future: Sequence[Sequence[Key]] | None = None


class Eviction(ABC):
    """Base of all eviction policies; subclasses keep `book`, the residents in their own order.

    `clairvoyant` marks bounds that see the future, `looks_ahead` those that ask the view when a
    key is wanted again; `stack` marks ranks that do not depend on
    capacity, so that one pass gives the hit rate at every capacity (Mattson et al. 1970; a class
    says it for itself alone, not for those that inherit from it); `needs_bypass` marks those that
    never admit a key on demand, so that `admission: always` makes no sense.
    """

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    stack: ClassVar[bool] = False
    needs_bypass: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        self.capacity = context.capacity
        self.always = context.admission == "always"
        if self.always and self.needs_bypass:
            raise UsageError(
                f"{self.name} never admits anything: it cannot have `admission: always`"
            )
        self.options = self.Options() if options is None else options
        self.book: OrderedDict[Key, None] = OrderedDict()

    def preload(self) -> Sequence[Key]:
        """Keys that are resident before the first event; most policies start empty."""
        return ()

    @abstractmethod
    def decide(self, view: View) -> Collection[Key]:
        """See one layer event and answer the leavers, a subset of residents ∪ union."""

    @abstractmethod
    def victim(self, protected: Collection[Key]) -> Key | None:
        """Who leaves for a prefetched key, never one of `protected`; None refuses the prefetch."""

    def insert(self, key: Key) -> None:
        """A prefetched key took a slot."""
        self.book[key] = None

    def remove(self, key: Key) -> None:
        """The victim of a prefetch lost its slot."""
        del self.book[key]


class Ranked(Eviction):
    """Keeps the keys of lowest rank: `self.rank[key]` says how dispensable a key is.

    Subclasses only keep ranks up to date in `observe`; ranks must be a total order.
    """

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.rank: dict[Key, tuple[float, ...]] = {}

    @abstractmethod
    def observe(self, view: View) -> None:
        """Update the ranks of the keys of the union."""

    def decide(self, view: View) -> Collection[Key]:
        self.observe(view)
        book = self.book
        for key in view.union:
            book[key] = None
        excess = len(book) - self.capacity
        if excess <= 0:
            return ()
        leavers = self._most_dispensable(excess, view.union)
        for key in leavers:
            self.remove(key)
        return leavers

    def _most_dispensable(self, count: int, union: Sequence[Key]) -> list[Key]:
        rank = self.rank.__getitem__
        if not self.always:
            if count == 1:
                return [max(self.book, key=rank)]
            return nlargest(count, self.book, key=rank)
        wanted = set(union)
        others = nlargest(count, (key for key in self.book if key not in wanted), key=rank)
        return others + nlargest(count - len(others), union, key=rank)

    def victim(self, protected: Collection[Key]) -> Key | None:
        rank = self.rank
        return max(
            (key for key in self.book if key not in protected), key=rank.__getitem__, default=None
        )
