"""MIN with a short sight: Belady's rule over the next `window` layer events, then LRU.

What an approximate Belady with a queue of known references could do (Read-ME, arXiv 2410.19123,
leaves open how far its own looks). A window over the whole trace is MIN. Only a bound: the
`lookahead` policy sees what the router of the trace reveals, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from moesim.policies.eviction.base import CacheContext
from moesim.policies.eviction.min import MIN
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_UNSEEN = float("inf")


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """`window`: how many layer events of the cache, beyond the present one, it sees."""

    window: Annotated[int, Ge(1)] = 1


@register("eviction", "min_window", "belady_window")
class MINWindow(MIN):
    """What is wanted again latest within a window leaves after what is not; then as LRU."""

    stack = False
    Options = WindowOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self._due: dict[Key, float] = {key: rank[0] for key, rank in self.rank.items()}
        self._used: dict[Key, int] = {}
        self._clock = 0

    def observe(self, view: View) -> None:
        super().observe(view)
        for key in view.union:
            self._due[key] = self.rank[key][0]
            self._used[key] = self._clock = self._clock + 1
        horizon = self._event + self.options.window
        for key in {*self.book, *view.union}:
            due = self._due[key]
            self.rank[key] = (due if due < horizon else _UNSEEN, -self._used.get(key, 0))
