"""Look-ahead Belady: of the uses that the router has revealed, the latest next use leaves.

Read-ME (arXiv 2410.19123) routes queued tokens before they are computed, so it can apply Belady's
rule to them. Keys without a revealed use leave first, the least recently used before the others.

A layer-wise router reveals no later layer. Then the policy is LRU, if nothing is prefetched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from moesim.policies.eviction.base import CacheContext, Ranked
from moesim.policies.registry import register
from moesim.policies.view import Key, View

_UNKNOWN = float("inf")


@dataclass(frozen=True, slots=True)
class LookAheadOptions:
    """`recent_rows`: number of a request's last rows that stand for its next ones. 0: as published.

    The next token of a request that decodes does not exist yet, so its experts are not revealed.
    By the published rule they leave first, before experts that a prompt far back in the queue will
    want. Routing repeats itself, so the experts of the last rows are a guess, though they may never
    be wanted. This is not in the paper.

    The guesses follow the revealed rows of running requests, and precede those of waiting requests.
    The newest rows of all requests come first, then the second newest of all, and so on. A guess
    ranks as a revealed use at the same place does.
    """

    recent_rows: Annotated[int, Ge(0)] = 0


@register("eviction", "lookahead")
class LookAhead(Ranked):
    """Keys without a revealed next use leave first, by LRU; then the latest next use.
    Equals LRU if the router reveals nothing ahead and nothing is prefetched.
    """

    looks_ahead = True
    Options = LookAheadOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.recent_rows = self.options.recent_rows
        self._clock = 0
        self._used: dict[Key, int] = {}
        self._view: View | None = None

    def observe(self, view: View) -> None:
        # Times of use differ within an event, so that no two keys have equal ranks.
        for place, key in enumerate(view.union):
            self._used[key] = self._clock + place
        self._clock += len(view.union)
        self._view = view  # for `victim`, which gets no view; the server updates this one
        self._rank({*self.book, *view.union})

    def victim(self, protected: Collection[Key]) -> Key | None:
        self._rank(self.book)  # prefetches since the last event may have brought in unranked keys
        return super().victim(protected)

    def _rank(self, keys: Collection[Key]) -> None:
        view = self._view
        for key in keys:
            next_use = None if view is None else view.next_use(key)
            self.rank[key] = (_UNKNOWN if next_use is None else next_use, -self._used.get(key, -1))
