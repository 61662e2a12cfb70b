"""Static placement: the most popular experts stay for ever, everything else passes through.

Popularity comes from a named profile trace (Fiddler, arXiv 2402.07033; KTransformers'
`frequency`). Without one it is learnt on the replayed trace itself, which is hindsight: reports
call that an oracle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import UsageError
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """`profile`: folder of the trace whose counts decide; default the replayed one (hindsight)."""

    profile: Path | None = None


@register("eviction", "static")
class Static(Eviction):
    """The keys with the highest counts in a profile trace stay for ever; ties: the lower key."""

    stack = True
    needs_bypass = True
    Options = StaticOptions

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        if context.popularity is None:
            raise UsageError("static needs popularity counts, and there are none here")
        counts = context.popularity(self.options.profile)
        best = sorted(context.universe, key=lambda key: (-counts.get(key, 0), key))
        self.book.update(dict.fromkeys(best[: self.capacity]))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        book = self.book
        return [key for key in view.union if key not in book]

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None
