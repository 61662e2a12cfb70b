"""Least frequently used (LFU): the key with the lowest count of uses leaves first.

The literature has three kinds of counts:

- `lfu`: since the start of the run, whether the key is resident or not;
- `lfu_in_cache`: since the key was admitted (the textbook cache);
- `lfu_decay`: fading by a factor per layer event, as in LRFU (Lee et al. 2001, IEEE Transactions
  on Computers 50(12)), so old popularity counts less.

A layer event counts once per key, however many tokens want it. Ties: the least recently used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Le

from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_RESCALE_ABOVE = 1e200  # far below the largest float, so no count overflows before rescaling


@register("eviction", "lfu", "lfu_cumulative")
class LFU(Ranked):
    """The key with the lowest count over the whole run leaves first; ties by recency."""

    stack = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.rank = dict.fromkeys(context.universe, (0, 0))
        self.clock = 0

    def observe(self, view: View) -> None:
        # The highest rank leaves first, so counts and times of use grow downwards from zero.
        clock = self.clock
        rank = self.rank
        for key in view.union:
            clock -= 1
            rank[key] = (rank[key][0] - 1, clock)
        self.clock = clock


@register("eviction", "lfu_in_cache")
class LFUInCache(LFU):
    """The key with the lowest count since it was admitted leaves first."""

    stack = False  # counts depend on admissions, and so on capacity

    def remove(self, key: Key) -> None:
        super().remove(key)
        self.rank[key] = (0, self.rank[key][1])


@dataclass(frozen=True, slots=True)
class DecayOptions:
    """`decay`: factor by which every count shrinks per layer event (0 < decay ≤ 1)."""

    decay: Annotated[float, Gt(0), Le(1)] = 0.99


@register("eviction", "lfu_decay")
class LFUDecay(Ranked):
    """The key with the lowest count leaves first; counts shrink by `decay` per layer event."""

    stack = True
    Options = DecayOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.rank = dict.fromkeys(context.universe, (0.0, 0))
        self.weight = 1.0
        self.clock = 0

    def observe(self, view: View) -> None:
        for key in view.union:
            self.clock -= 1
            self.rank[key] = (self.rank[key][0] - self.weight, self.clock)
        # Only the order of counts matters. So instead of shrinking every old count, the weight of
        # new ones grows, and the keys outside the union need no update.
        self.weight /= self.options.decay
        if self.weight > _RESCALE_ABOVE:
            self.rank = {key: (c / self.weight, t) for key, (c, t) in self.rank.items()}
            self.weight = 1.0
