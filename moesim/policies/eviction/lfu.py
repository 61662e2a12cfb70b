"""Least frequently used, in the three meanings found in the field.

`lfu` counts since the start of the run, resident or not; `lfu_in_cache` forgets a key's count
when it leaves (the textbook cache); `lfu_decay` lets counts fade by a factor per layer event, so
that old popularity is forgotten. A count is one per layer event, however many tokens want the
expert. Ties: the least recently used leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Le

from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_RESCALE_ABOVE = 1e200


@register("eviction", "lfu", "lfu_cumulative")
class LFU(Ranked):
    """The lowest count over the whole run leaves first, resident or not; ties by recency."""

    stack = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.rank = dict.fromkeys(context.universe, (0, 0))
        self.clock = 0

    def observe(self, view: View) -> None:
        clock = self.clock
        rank = self.rank
        for key in view.union:
            clock -= 1
            rank[key] = (rank[key][0] - 1, clock)
        self.clock = clock


@register("eviction", "lfu_in_cache")
class LFUInCache(LFU):
    """The lowest count since it came in leaves first; a key that leaves is forgotten."""

    stack = False

    def remove(self, key: Key) -> None:
        super().remove(key)
        self.rank[key] = (0, self.rank[key][1])


@dataclass(frozen=True, slots=True)
class DecayOptions:
    """`decay`: what one layer event leaves of every older count (0 < decay ≤ 1)."""

    decay: Annotated[float, Gt(0), Le(1)] = 0.99


@register("eviction", "lfu_decay")
class LFUDecay(Ranked):
    """The lowest count leaves first, where counts fade by `decay` per layer event.

    Growing the weight of the newest count instead leaves the ranks of untouched keys alone.
    """

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
        self.weight /= self.options.decay
        if self.weight > _RESCALE_ABOVE:
            self.rank = {key: (c / self.weight, t) for key, (c, t) in self.rank.items()}
            self.weight = 1.0
