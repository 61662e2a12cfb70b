"""S3-FIFO: three queues; a key must be reused in a small queue to enter the main one.

Yang, Zhang, Qiu, Yue & Rashmi, "FIFO Queues are All You Need for Cache Eviction" (SOSP 2023). New
keys enter a small queue. At its end, a key that was reused often enough moves to the main queue.
Other keys leave, and a queue of ghosts remembers them. A missing key with a ghost enters the main
queue directly. At the end of the main queue, a reused key goes round again with one use less.

The paper fills an empty cache through the small queue. It counts uses up to 3, and clears the count
of a key that moves to the main queue.

Layer events: see `replacing`. A protected key is passed over, and keeps its place and its count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.replacing import Replacing, first_outside
from moesim.policies.registry import register
from moesim.policies.view import Key

_MOST_USES = 3  # the count has two bits
_Queue = OrderedDict[Key, int]
_Walk = tuple[Key | None, _Queue, _Queue]


@dataclass(frozen=True, slots=True)
class S3FIFOOptions:
    """`small`: share of the slots for the small queue; it has at least one slot.

    `ghosts`: number of ghosts, as a share of the slots. `promote`: reuses that move a key to the
    main queue. `fill`: queue that takes the last keys while the cache is not full yet, once the
    small queue is full.
    """

    small: Annotated[float, Ge(0), Le(1)] = 0.1
    ghosts: Annotated[float, Ge(0)] = 0.9
    promote: Annotated[int, Ge(1), Le(_MOST_USES)] = 2
    fill: Literal["small", "main"] = "small"


@register("eviction", "s3_fifo", "s3fifo")
class S3FIFO(Replacing):
    """Keys leave a small queue unless reused there, then a main queue unless reused in that."""

    Options = S3FIFOOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._small_slots = max(1, int(self.capacity * self.options.small))
        self._most_ghosts = int(self.capacity * self.options.ghosts)
        self._small: _Queue = OrderedDict()  # the number of reuses of each key, oldest key first
        self._main: _Queue = OrderedDict()
        self._ghosts: OrderedDict[Key, None] = OrderedDict()
        self._filling = self.options.fill == "main"
        self._walk: _Walk | None = None

    def reuse(self, key: Key) -> None:
        self._walk = None
        queue = self._small if key in self._small else self._main
        queue[key] = min(queue[key] + 1, _MOST_USES)

    def recall(self, key: Key, *, wanted: bool) -> bool:
        return self._ghosts.pop(key, key) is None

    def place(self, key: Key, known: bool) -> None:
        self._walk = None
        spill = self._filling and len(self._small) >= self._small_slots
        (self._main if known or spill else self._small)[key] = 0

    def choose(self, protected: Collection[Key]) -> Key | None:
        self._walk = self._walked(protected)
        return self._walk[0]

    def displace(self, key: Key) -> None:
        if self._walk is not None and self._walk[0] == key:  # keys were moved to find the victim
            _, self._small, self._main = self._walk
        self._walk = None
        self._filling = False
        if key in self._main:
            del self._main[key]
            return
        del self._small[key]
        if self._most_ghosts:
            if len(self._ghosts) >= self._most_ghosts:
                self._ghosts.popitem(last=False)
            self._ghosts[key] = None

    def _walked(self, protected: Collection[Key]) -> _Walk:
        """Return the victim, and the queues as they are when it is found."""
        small, main = self._small.copy(), self._main.copy()
        if len(main) <= self.capacity - self._small_slots:
            for key, uses in self._small.items():
                if key not in protected:
                    if uses < self.options.promote:
                        return key, small, main
                    del small[key]
                    main[key] = 0
        for _ in range(_MOST_USES + 1):  # after these rounds, no count is above 0
            for key, uses in [*main.items()]:
                if key not in protected:
                    if not uses:
                        return key, small, main
                    main[key] = uses - 1
                    main.move_to_end(key)
        return first_outside(protected, small), small, main
