"""MIN: the key whose next use is furthest in the future leaves (Belady 1966, Mattson et al. 1970).

Without prefetch no policy has fewer *misses* where all experts have the same size. With unequal
sizes MIN is no bound, neither on misses nor on bytes: several small experts may be worth more than
a large one that is used sooner. The best choice is then NP-hard (Chrobak, Woeginger, Makino & Xu
2012, Algorithmica 63). MIN does not minimise latency either, because overlap can hide a miss.

`min_hit_rate` scores MIN offline on a run's own layer events. As the policy of a run, MIN works
only where all requests arrive at once. Otherwise the layer events depend on its own decisions.
"""

from __future__ import annotations

from typing import Any

from moesim.errors import InvariantError, UsageError
from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_NEVER = float("inf")


@register("eviction", "min", "belady")
class MIN(Ranked):
    """The key whose next use is furthest in the future leaves first: a bound on misses.

    The bound holds where all experts have the same size.
    """

    clairvoyant = True
    stack = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        if context.future is None:
            raise UsageError(
                "min needs to know all layer events in advance, which is possible only where all "
                "requests arrive at once; set workload.arrivals to all_at_once, or run another "
                "policy and read min_hit_rate"
            )
        self.future = [union for union in context.future if union]
        self._event = 0
        self.following, first = next_uses(self.future)
        self.rank = {key: (first.get(key, _NEVER), key) for key in context.universe}

    def observe(self, view: View) -> None:
        if not view.union:  # a router may choose no expert at all; `_future` has no such event
            return
        index = self._event
        # Ranks of another future would be wrong without any sign, so every event is compared.
        if index >= len(self.future) or list(self.future[index]) != list(view.union):
            raise InvariantError(13, f"layer event {index} is not the one MIN was promised")
        self._event = index + 1
        for key, following in zip(view.union, self.following[index], strict=True):
            self.rank[key] = (following, key)


def next_uses(
    events: Any,
) -> tuple[list[list[float]], dict[Key, float]]:
    """Return the next use of every key at every event, and the first use of every key.

    `following[e][i]` is the index of the next event with the i-th key of event e, or infinity.
    """
    upcoming: dict[Key, float] = {}
    following: list[list[float]] = [[]] * len(events)
    for index in range(len(events) - 1, -1, -1):
        union = events[index]
        following[index] = [upcoming.get(key, _NEVER) for key in union]
        for key in union:
            upcoming[key] = index
    return following, upcoming
