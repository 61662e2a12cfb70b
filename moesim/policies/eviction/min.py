"""MIN: the key whose next use is furthest in the future leaves (Belady 1966, Mattson et al. 1970).

Without prefetch no policy has fewer *misses* where all experts have the same size. With unequal
sizes MIN is no bound, neither on misses nor on bytes: several small experts may be worth more than
a large one that is used sooner. The best choice is then NP-hard (Chrobak, Woeginger, Makino & Xu
2012, Algorithmica 63). MIN does not minimise latency either, because overlap can hide a miss.

`min_hit_rate` scores MIN offline on a run's own layer events. As the policy of a run, MIN works
only where all requests arrive at once. Otherwise the layer events depend on its own decisions.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.errors import InvariantError
from moesim.policies.event_lists import EventLists
from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_NEVER: Final = int(np.iinfo(np.int32).max)  # later than all events


@register("eviction", "min", "belady")
class MIN(Ranked):
    """The key whose next use is furthest in the future leaves first: a bound on misses.

    The bound holds where all experts have the same size.
    """

    clairvoyant = True
    needs_future = True
    stack = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        assert context.future is not None, "a policy that needs the future is refused without"
        self.future = EventLists.of(context.future).filled()
        self._event = 0
        self.following, first = next_uses(self.future)
        self.rank = {key: (first.get(key, _NEVER), key) for key in context.universe}

    def observe(self, view: View) -> None:
        if not view.union:  # a router may choose no expert at all; `_future` has no such event
            return
        index = self._event
        # Ranks of another future would be wrong without any sign, so every event is compared.
        if index >= len(self.future) or self.future[index] != list(view.union):
            raise InvariantError(13, f"layer event {index} is not the one MIN was promised")
        self._event = index + 1
        for key, following in zip(view.union, self.following[index], strict=True):
            self.rank[key] = (following, key)


def next_uses(events: EventLists) -> tuple[EventLists, dict[Key, int]]:
    """Return the next use of every key at every event, and the first use of every key.

    `following[e][i]` is the index of the next event with the i-th key of event e, or `_NEVER`.
    """
    keys = events.flat
    order = np.argsort(keys, kind="stable")
    event = np.repeat(np.arange(len(events), dtype=np.int32), events.sizes)[order]
    ranked = keys[order]
    again = ranked[1:] == ranked[:-1]
    upcoming = np.full(len(keys), _NEVER, np.int32)
    upcoming[:-1][again] = event[1:][again]
    following = np.empty(len(keys), np.int32)
    following[order] = upcoming
    first = np.flatnonzero(np.concatenate([[len(keys) > 0], ~again]))
    uses = dict(zip(ranked[first].tolist(), event[first].tolist(), strict=True))
    return EventLists(following, events.sizes), uses
