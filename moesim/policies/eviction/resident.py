"""Resident: given experts have a slot from the start and keep it; no other expert gets one.

Read-ME (arXiv 2410.19123) keeps the experts of a model's first layers in GPU memory. Prefetch
cannot hide their loads, because nothing is computed before the first layer.

`cache.initial_layers` selects this policy, and so do placements with a fixed set of experts in GPU
memory. It has no name in the registry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.view import Key, View


class Resident(Eviction):
    """The keys given stay, by default all of the universe. The capacity must hold them."""

    name = "resident"
    by_bytes = True

    def __init__(self, context: CacheContext, keys: Iterable[Key] | None = None) -> None:
        super().__init__(context)
        self.book.update(dict.fromkeys(context.universe if keys is None else keys))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        book = self.book  # never changes after `__init__`
        return [key for key in view.union if key not in book]

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None
