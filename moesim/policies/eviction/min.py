"""MIN: whoever is needed again furthest in the future leaves (Belady 1966, Mattson et al. 1970).

A bound on *misses* for sets of equal-sized experts with bypass, never "optimal": with unequal
sizes, prefetch and overlap it does not minimise latency. In a run, the run's own logged layer
events are scored again offline; as a live policy it exists only where all requests arrive at once.
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
    """What is wanted again furthest in the future leaves first: a bound on misses."""

    clairvoyant = True
    stack = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        if context.future is None:
            raise UsageError(
                "min needs to know all layer events beforehand, which is possible only where all "
                "requests arrive at once; every report scores MIN offline anyway"
            )
        self._future = [union for union in context.future if union]
        self._event = 0
        self._next, first = next_uses(self._future)
        self.rank = {key: (first.get(key, _NEVER), key) for key in context.universe}

    def observe(self, view: View) -> None:
        if not view.union:  # a router may leave all its places unused: nobody is promised such
            return
        index = self._event
        if index >= len(self._future) or list(self._future[index]) != list(view.union):
            raise InvariantError(13, f"layer event {index} is not the one MIN was promised")
        self._event = index + 1
        for key, following in zip(view.union, self._next[index], strict=True):
            self.rank[key] = (following, key)


def next_uses(
    events: Any,
) -> tuple[list[list[float]], dict[Key, float]]:
    """For each event and each of its keys the index of the next event with that key (infinity if
    none), and for each key the index of its first event."""
    upcoming: dict[Key, float] = {}
    following: list[list[float]] = [[]] * len(events)
    for index in range(len(events) - 1, -1, -1):
        union = events[index]
        following[index] = [upcoming.get(key, _NEVER) for key in union]
        for key in union:
            upcoming[key] = index
    return following, upcoming
