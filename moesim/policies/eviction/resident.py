"""Resident: every key of the cache has a slot from the start, and keeps it.

What holds a model's initial layers in GPU memory, where prefetch cannot hide their loads: before
the first layer there is nothing to compute (Read-ME, arXiv 2410.19123). Chosen by
`cache.initial_layers`, not by name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.view import Key, View


class Resident(Eviction):
    """Holds its whole universe, for which it must have the slots; nobody ever leaves."""

    name = "resident"

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.book.update(dict.fromkeys(context.universe))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        return ()

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None
