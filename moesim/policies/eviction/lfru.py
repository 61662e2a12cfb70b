"""LFRU: the key with the fewest uses for the time since its last one leaves first.

Policy `lfru` of moe-cache-eval (github.com/shijiuzhang/moe-cache-eval): the score of a key is its
number of uses in the run, divided by its age. The age is one more than the number of layer events
since the last use. Ties are broken at random there, and by last use here.

There, the events of all layers count, also for a cache of one layer. A cache sees its own events
alone, so `ticks` says how far the clock advances at each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.scored import Scored
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class LFRUOptions:
    """`ticks`: by how much a key ages at each event of its cache.

    With one cache per layer, the number of layers gives the ages of moe-cache-eval.
    """

    ticks: Annotated[int, Ge(1), Le(1_000_000)] = 1


@register("eviction", "lfru")
class LFRU(Scored):
    """The key with the fewest uses, divided by the time since its last use, leaves first."""

    Options = LFRUOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._uses: dict[Key, int] = {}
        self._last: dict[Key, int] = {}
        self._now = 0

    def record(self, view: View) -> None:
        self._now += self.options.ticks
        for key in view.union:
            self._uses[key] = self._uses.get(key, 0) + 1
            self._last[key] = self._now

    def worth(self, key: Key) -> tuple[float, ...]:
        if key not in self._uses:
            return (0.0,)
        return (self._uses[key] / (self._now - self._last[key] + 1),)
