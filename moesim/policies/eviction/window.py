"""MIN within a window: Belady's rule for the next `window` layer events, and LRU beyond them.

Read-ME (arXiv 2410.19123) evicts by Belady's rule over the references it knows, and does not say
how many those are. This policy shows the effect of their number. A window over the whole trace
gives MIN.

It is a bound, because it reads the future from the trace. The real policy is `lookahead`, which
sees only what the router reveals.
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
    """`window`: number of the cache's later layer events that the policy sees."""

    window: Annotated[int, Ge(1)] = 1


@register("eviction", "min_window", "belady_window")
class MINWindow(MIN):
    """Keys not used within the window leave first, by LRU; then the key used latest in it."""

    stack = False  # ranks change with time, and `observe` updates those of residents alone
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
        # A key enters the window as time passes, so the ranks of all residents can change.
        horizon = self._event + self.options.window
        for key in {*self.book, *view.union}:
            due = self._due[key]
            self.rank[key] = (due if due < horizon else _UNSEEN, -self._used.get(key, 0))
