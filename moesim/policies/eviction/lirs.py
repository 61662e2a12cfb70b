"""LIRS: keys that were used twice within a short time stay; a few slots serve all other keys.

Jiang & Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy" (SIGMETRICS
2002). A stack S holds keys by recency. Most slots belong to *LIR* keys, whose last two uses were
close together. The other slots belong to *HIR* keys, which wait in the queue Q and leave first. An
HIR key that is used while it is in S becomes LIR, and the LIR key at the bottom of S becomes HIR. S
also holds HIR keys that have left. It is pruned so that an LIR key is at its bottom.

Until there are enough LIR keys, every new key becomes one. The paper lets S grow without limit.

Layer events: see `replacing`. A protected key is passed over in Q. If Q has no other key, the
lowest LIR key of S leaves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.replacing import Replacing, first_outside
from moesim.policies.registry import register
from moesim.policies.view import Key


@dataclass(frozen=True, slots=True)
class LIRSOptions:
    """`hir`: share of the slots for HIR keys; they have at least one slot.

    `stack`: most keys in S, as a multiple of the slots. Above it, the key that left longest ago
    leaves S. By default there is no limit.
    """

    hir: Annotated[float, Ge(0), Le(1)] = 0.01
    stack: Annotated[float, Ge(1)] | None = None


@register("eviction", "lirs")
class LIRS(Replacing):
    """The oldest resident key whose last two uses were far apart leaves."""

    Options = LIRSOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._most_lir = self.capacity - max(1, int(self.capacity * self.options.hir))
        self._lir: set[Key] = set()
        self._stack: OrderedDict[Key, None] = OrderedDict()  # S, from its bottom to its top
        self._queue: OrderedDict[Key, None] = OrderedDict()  # Q, the first to leave comes first
        self._left: OrderedDict[Key, None] = OrderedDict()  # keys of S without a slot

    def reuse(self, key: Key) -> None:
        if key in self._lir:
            self._stack.move_to_end(key)
            self._prune()
        else:
            del self._queue[key]
            self.place(key, known=key in self._stack)

    def recall(self, key: Key, *, wanted: bool) -> bool:
        if key not in self._left:
            return False
        del self._left[key], self._stack[key]
        return True

    def place(self, key: Key, known: bool) -> None:
        self._stack[key] = None
        self._stack.move_to_end(key)
        if (known and self._most_lir) or len(self._lir) < self._most_lir:
            self._lir.add(key)
            if len(self._lir) > self._most_lir:
                self._demote()
        else:
            self._queue[key] = None
        self._limit()

    def _demote(self) -> None:
        """Make the LIR key at the bottom of S an HIR key at the end of Q."""
        bottom, _ = self._stack.popitem(last=False)
        self._lir.remove(bottom)
        self._queue[bottom] = None
        self._prune()

    def _prune(self) -> None:
        """Remove HIR keys from the bottom of S."""
        while self._stack and (bottom := next(iter(self._stack))) not in self._lir:
            del self._stack[bottom]
            self._left.pop(bottom, None)

    def _limit(self) -> None:
        """Forget keys that have left, if S is too large."""
        stack = self.options.stack
        while stack is not None and self._left and len(self._stack) > stack * self.capacity:
            del self._stack[self._left.popitem(last=False)[0]]

    def choose(self, protected: Collection[Key]) -> Key | None:
        return first_outside(protected, self._queue, (k for k in self._stack if k in self._lir))

    def displace(self, key: Key) -> None:
        if key in self._lir:
            self._lir.remove(key)
            del self._stack[key]
            self._prune()
            return
        del self._queue[key]
        if key in self._stack:
            self._left[key] = None
