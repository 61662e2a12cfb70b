"""Static placement: the most popular experts keep their slots for the whole run.

All other experts are computed by bypass. Where sizes are unequal, an expert that no longer fits is
passed over for less popular ones that do. Popularity is counted in a profile trace, as in Fiddler
(arXiv 2402.07033) and in KTransformers' `frequency` placement. Without a profile it is counted in
the replayed trace itself. That is hindsight, so reports label such a run an oracle. With `train` it
is counted in requests that the run may not serve, which is none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le

from moesim.errors import UsageError
from moesim.policies.base import Input, hindsight_note
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """`profile`: trace folder in which uses are counted; by default the replayed trace.

    `train`: the share of its requests to count in, the first ones; the run may not serve these. By
    default all count, and a run may serve them.
    """

    profile: Path | None = None
    train: Annotated[float, Gt(0), Le(1)] | None = None


@register("eviction", "static")
class Static(Eviction):
    """The keys with the highest counts in a profile trace always stay; ties: the lower key."""

    stack = True
    by_bytes = True
    needs_bypass = True
    Options = StaticOptions

    @classmethod
    def inputs(cls, options: Any) -> Sequence[Input]:
        part = None if options.train is None else (0.0, options.train)
        return [Input(options.profile, "profile", trace=True, part=part)]

    @classmethod
    def note(cls, options: Any) -> str | None:
        if options.train is None and options.profile is None:
            return hindsight_note(cls.name)
        trace = "replayed trace" if options.profile is None else f"trace {options.profile}"
        if options.train is None:
            return f"{cls.name} was learnt on the {trace}"
        return (
            f"{cls.name} was learnt on the first {options.train:.0%} of the requests of the {trace}"
        )

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
