"""Eviction: which experts keep a slot in GPU memory after a layer event.

`Eviction.decide` is called once per layer event with the whole union of wanted keys. At most
`capacity` keys of residents ∪ union keep a slot. The policy returns the others, the *leavers*.

A key of the union may be a leaver, too: it is computed without ever having a slot (*bypass*).
With admission `always`, that happens only where the union exceeds the capacity.

Where experts have unequal sizes, the capacity is in bytes (`CacheContext.sizes`). Keys then leave
in the policy's order until the others fit. A key that is larger than the cache leaves at once.

Each policy lists its residents in `book`. An audit compares the book with the server's residency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, ClassVar

import numpy as np

from moesim.errors import UsageError
from moesim.policies.base import Policy
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class CacheContext:
    """What a policy is built with: one cache of `capacity` slots for the keys of `universe`.

    `sizes[key]` is the bytes of each key; then `capacity` is in bytes, too. None: all sizes are
    equal, and each key takes one slot.

    `experts_per_layer` is the number of experts by which a key is divided to get its layer; 0 if
    all keys are of one layer. `top_k` is the number of experts that a row chooses; 0 if unknown.

    `admission` is `always` or `bypass`. `popularity` returns the uses of each key in a profile
    trace, which must be one of the policy's `inputs`; None is the replayed trace. `future` holds
    the unions of all layer events of the cache; it is set for clairvoyant policies, and only where
    all requests arrive at once.
    """

    capacity: int
    universe: Sequence[Key]
    admission: str
    rng: np.random.Generator
    popularity: Callable[[Any], Mapping[Key, int]] | None = None
    future: Sequence[Sequence[Key]] | None = None
    sizes: Sequence[int] | None = None
    experts_per_layer: int = 0
    top_k: int = 0


class Eviction(Policy, ABC):
    """Base class of eviction policies. Subclasses keep the residents in `book`, in any order.

    Class attributes declare what a policy needs:

    - `clairvoyant`: sees the future, so it is a bound and no real policy;
    - `looks_ahead`: calls `View.next_use`;
    - `recent_rows`: number of a request's last rows that stand for its next ones in `View.next_use`
      while its next token does not exist; by default none. Options may set it for an instance;
    - `sees_requests`: reads `View.requests`, which is empty for other policies;
    - `stack`: ranks keys independently of capacity, so one pass over a trace gives the hit rate at
      every capacity (Mattson et al. 1970). Subclasses do not inherit this claim;
    - `by_bytes`: `decide` handles a capacity in bytes; other policies are refused where sizes are
      unequal;
    - `needs_scores`: weighs keys by `View.gate_weights` or `View.probabilities`, so a trace that
      records neither is refused;
    - `needs_bypass`: never admits a key on demand, so `admission: always` is refused;
    - `needs_future`: needs `CacheContext.future`, so requests that arrive over time are refused.
    """

    looks_ahead: ClassVar[bool] = False
    sees_requests: ClassVar[bool] = False
    recent_rows: int = 0
    stack: ClassVar[bool] = False
    by_bytes: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_bypass: ClassVar[bool] = False
    needs_future: ClassVar[bool] = False

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        self.capacity = context.capacity
        self.sizes = context.sizes
        if self.sizes is not None and not self.by_bytes:
            raise UsageError(
                f"{self.name} counts slots, and the experts of this model have unequal sizes; "
                "choose another policy, or leave model.expert_bits_by out"
            )
        self.always = context.admission == "always"
        if self.always and self.needs_bypass:
            raise UsageError(
                f"{self.name} never admits a missing expert, so `admission: always` cannot hold; "
                "write bypass, or choose another policy"
            )
        if self.needs_future and context.future is None:
            raise UsageError(self.without_future())
        self.options = self.Options() if options is None else options
        self.book: OrderedDict[Key, None] = OrderedDict()

    @classmethod
    def without_future(cls) -> str:
        """Return why a policy that `needs_future` cannot be used where the future is unknown."""
        return (
            f"{cls.name} needs to know all layer events in advance, which is possible only where "
            "all requests arrive at once; set workload.arrivals to all_at_once, or run another "
            "policy and read min_hit_rate"
        )

    def preload(self) -> Sequence[Key]:
        """Return the keys that are resident before the first event; by default none."""
        return ()

    @abstractmethod
    def decide(self, view: View) -> Collection[Key]:
        """Handle one layer event and return the leavers, a subset of residents ∪ union."""

    @abstractmethod
    def victim(self, protected: Collection[Key]) -> Key | None:
        """Return the resident that makes room for a prefetched key, or None to refuse.

        The victim must not be in `protected`. The server removes it with `remove`.
        """

    def victims(self, protected: Collection[Key], nbytes: int) -> Sequence[Key] | None:
        """Return residents that together free `nbytes` for a prefetched key, or None to refuse.

        Needed where sizes are unequal. Nothing is removed. The server removes each with `remove`.
        """
        assert self.sizes is not None
        chosen: list[Key] = []
        spared = set(protected)
        while nbytes > 0:
            key = self.victim(spared)
            if key is None:
                return None
            chosen.append(key)
            spared.add(key)
            nbytes -= self.sizes[key]
        return chosen

    def shrink(self, order: Iterable[Key]) -> list[Key]:
        """Remove keys of the book until their bytes fit the capacity, and return them.

        Keys larger than the cache leave first. Others leave in the order of `order`, which is not
        read if all fit.
        """
        assert self.sizes is not None
        sizes, capacity = self.sizes, self.capacity
        leavers = [key for key in self.book if sizes[key] > capacity]
        excess = sum(sizes[key] for key in self.book if sizes[key] <= capacity) - capacity
        if excess > 0:
            for key in order:
                if sizes[key] <= capacity:
                    leavers.append(key)
                    excess -= sizes[key]
                    if excess <= 0:
                        break
        for key in leavers:
            self.remove(key)
        return leavers

    def insert(self, key: Key) -> None:
        """Record that a prefetched key took a slot."""
        self.book[key] = None

    def remove(self, key: Key) -> None:
        """Record that a resident lost its slot, for example to a prefetched key."""
        del self.book[key]


class Ranked(Eviction):
    """An eviction policy by rank: keys with the highest `self.rank[key]` leave first.

    Subclasses update the ranks in `observe`. No two keys may have equal ranks.
    """

    by_bytes = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.rank: dict[Key, tuple[float, ...]] = {}

    @abstractmethod
    def observe(self, view: View) -> None:
        """Update the ranks of the keys of the union."""

    def decide(self, view: View) -> Collection[Key]:
        self.observe(view)
        book = self.book
        # Residents and union compete for the same slots, so all enter the book before any leaves.
        for key in view.union:
            book[key] = None
        if self.sizes is not None:
            return self.shrink(self._dispensable(view.union))
        excess = len(book) - self.capacity
        if excess <= 0:
            return ()
        leavers = self._most_dispensable(excess, view.union)
        for key in leavers:
            self.remove(key)
        return leavers

    def _dispensable(self, union: Sequence[Key]) -> Iterator[Key]:
        """Yield all keys of the book, the most dispensable first."""
        rank = self.rank.__getitem__
        wanted = set(union) if self.always else set()
        yield from sorted((key for key in self.book if key not in wanted), key=rank, reverse=True)
        yield from sorted(wanted, key=rank, reverse=True)

    def _most_dispensable(self, count: int, union: Sequence[Key]) -> list[Key]:
        rank = self.rank.__getitem__
        if not self.always:
            if count == 1:  # much the most frequent case, and faster than a heap
                return [max(self.book, key=rank)]
            return nlargest(count, self.book, key=rank)
        # Admission `always`: keys of the union leave only when no other key is left to leave.
        wanted = set(union)
        others = nlargest(count, (key for key in self.book if key not in wanted), key=rank)
        return others + nlargest(count - len(others), union, key=rank)

    def victim(self, protected: Collection[Key]) -> Key | None:
        rank = self.rank
        return max(
            (key for key in self.book if key not in protected), key=rank.__getitem__, default=None
        )
