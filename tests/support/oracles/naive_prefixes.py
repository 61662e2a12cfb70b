"""A prefix cache in its plainest form: a set of whole prefixes, searched from scratch each time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Prefix = tuple[int, ...]


class NaivePrefixes:
    """Blocks of `total`, in units of `unit` tokens, each of `unit // block` blocks."""

    def __init__(self, total: int, block: int, unit: int) -> None:
        self.total = total
        self.block = block
        self.unit = unit
        self.cached: dict[Prefix, int] = {}  # the time of the last release
        self.held: dict[Hashable, Prefix] = {}
        self.mapped: dict[Hashable, int] = {}  # blocks of each request, shared ones too
        self.clock = 0

    def hits(self, ids: Sequence[int], prompt: int) -> int:
        """Return how many units a request would reuse now."""
        most = 0
        for count in range(1, (prompt - 1) // self.unit + 1):
            if tuple(ids[:count]) not in self.cached:
                break
            most = count
        return most

    def used(self) -> int:
        """Return the blocks that exist, cached or private."""
        per_unit = self.unit // self.block
        private = sum(self.mapped[key] - len(self.held[key]) * per_unit for key in self.mapped)
        return private + len(self.cached) * per_unit

    def in_use(self) -> int:
        """Return the blocks that some request needs."""
        return self.used() - len(self.idle()) * (self.unit // self.block)

    def idle(self) -> list[Prefix]:
        """Return the cached prefixes that no request holds."""
        return [p for p in self.cached if not any(q[: len(p)] == p for q in self.held.values())]

    def admit(self, key: Hashable, ids: Sequence[int], hits: int, rows: int) -> bool:
        """Give a request `rows` rows in all, of which `hits` units are cached."""
        prefix = tuple(ids[:hits])
        if hits and prefix not in self.cached:
            return False
        self.held[key] = prefix
        self.mapped[key] = -(-rows // self.block)
        if self.in_use() > self.total:
            del self.held[key], self.mapped[key]
            return False
        self.evict()
        return True

    def extend(self, key: Hashable, rows: int) -> bool:
        """Give a request `rows` rows in all."""
        before = self.mapped[key]
        self.mapped[key] = max(before, -(-rows // self.block))
        if self.in_use() > self.total:
            self.mapped[key] = before
            return False
        self.evict()
        return True

    def evict(self) -> None:
        """Evict leaves, of the oldest release first, until all blocks fit."""
        while self.used() > self.total:
            leaves = [
                prefix
                for prefix in self.idle()
                if not any(len(q) > len(prefix) and q[: len(prefix)] == prefix for q in self.cached)
            ]
            del self.cached[min(leaves, key=self.cached.__getitem__)]

    def publish(self, key: Hashable, ids: Sequence[int], rows: int) -> None:
        """Cache the full units of the first `rows` rows of a request."""
        for count in range(len(self.held[key]) + 1, rows // self.unit + 1):
            if count > len(ids):
                break
            self.cached.setdefault(tuple(ids[:count]), -1)
            self.held[key] = tuple(ids[:count])

    def release(self, key: Hashable) -> None:
        """Take all blocks from a request; its units stay cached."""
        self.clock += 1
        for count in range(1, len(self.held[key]) + 1):
            self.cached[self.held[key][:count]] = self.clock
        del self.held[key], self.mapped[key]
