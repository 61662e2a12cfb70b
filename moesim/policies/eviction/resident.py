"""Resident: every expert of the cache has a slot from the start and keeps it.

Read-ME (arXiv 2410.19123) keeps the experts of a model's first layers in GPU memory. Prefetch
cannot hide their loads, because nothing is computed before the first layer.

`cache.initial_layers` selects this policy; it has no name in the registry.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.view import Key, View


class Resident(Eviction):
    """All keys of the universe stay. The capacity must be at least their number."""

    name = "resident"
    by_bytes = True

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.book.update(dict.fromkeys(context.universe))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        return ()  # the union is always resident

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None
