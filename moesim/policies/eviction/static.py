"""Static placement: the most popular experts keep their slots for the whole run.

All other experts are computed by bypass. Where sizes are unequal, an expert that no longer fits is
passed over for less popular ones that do. Popularity is counted in a profile trace, as in Fiddler
(arXiv 2402.07033) and in KTransformers' `frequency` placement. Without a profile it is counted in
the replayed trace itself. That is hindsight, so reports label such a run an oracle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import UsageError
from moesim.policies.base import Input, hindsight_note
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """`profile`: trace folder in which uses are counted; by default the replayed trace."""

    profile: Path | None = None


@register("eviction", "static")
class Static(Eviction):
    """The keys with the highest counts in a profile trace always stay; ties: the lower key."""

    stack = True
    by_bytes = True
    needs_bypass = True
    Options = StaticOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        return [Input(options.profile, "profile", trace=True)]

    @classmethod
    def note(cls, options: Any) -> str | None:
        if options.profile is None:
            return hindsight_note(cls.name)
        return f"{cls.name} was learnt on the trace {options.profile}"

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        if context.popularity is None:
            raise UsageError(
                "static needs popularity counts, and this cache has none; "
                "set `popularity` in its CacheContext"
            )
        counts = context.popularity(self.options.profile)
        best = sorted(context.universe, key=lambda key: (-counts.get(key, 0), key))
        kept = best[: self.capacity] if self.sizes is None else self._that_fit(best)
        self.book.update(dict.fromkeys(kept))

    def _that_fit(self, keys: Sequence[Key]) -> list[Key]:
        """Return each key that fits beside those before it."""
        assert self.sizes is not None
        left, kept = self.capacity, []
        for key in keys:
            if self.sizes[key] <= left:
                left -= self.sizes[key]
                kept.append(key)
        return kept

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        book = self.book  # never changes after `__init__`
        return [key for key in view.union if key not in book]

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None
