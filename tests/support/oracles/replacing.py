"""Naive replacement: the published rules on plain lists, one access at a time.

Each class has a set of residents and the method `access(key, protected)`, which handles a hit, or a
miss with its eviction. Protected keys are not evicted. At least one resident is not protected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

Event = Sequence[int]
Outcome = tuple[set[int], set[int]]
Make = Callable[[int], Any]


def replay(make: Make, events: Sequence[Event], capacity: int, always: bool) -> list[Outcome]:
    """Return the hits of each event and the residents after it: first all hits, then all misses."""
    cache = make(capacity)
    outcomes = []
    for event in events:
        before = set(cache.residents)
        for key in event:
            if key in before:
                cache.access(key, ())
        for key in event:
            if key not in before and capacity:
                protected = set(event) if always else set()
                cache.access(key, () if cache.residents <= protected else protected)
        outcomes.append((before.intersection(event), set(cache.residents)))
    return outcomes


class Sieve:
    """A list from the newest key to the oldest, and the position of the hand in it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: list[int] = []
        self.visited: dict[int, bool] = {}
        self.hand: int | None = None

    @property
    def residents(self) -> set[int]:
        return set(self.queue)

    def access(self, key: int, protected: Collection[int]) -> None:
        if key in self.queue:
            self.visited[key] = True
            return
        if len(self.queue) == self.capacity:
            self.evict(protected)
        self.queue.insert(0, key)
        self.visited[key] = False
        if self.hand is not None:
            self.hand += 1

    def evict(self, protected: Collection[int]) -> None:
        at = len(self.queue) - 1 if self.hand is None else self.hand
        while self.visited[self.queue[at]] or self.queue[at] in protected:
            self.visited[self.queue[at]] = False
            at = at - 1 if at else len(self.queue) - 1
        del self.queue[at]
        self.hand = at - 1 if at else None


class S3FIFO:
    """Lists of [key, uses], the oldest first."""

    def __init__(
        self,
        capacity: int,
        small: float = 0.1,
        ghosts: float = 0.9,
        promote: int = 2,
        fill_main: bool = False,
    ) -> None:
        self.small_slots = max(1, int(capacity * small))
        self.main_slots = capacity - self.small_slots
        self.most_ghosts = int(capacity * ghosts)
        self.promote = promote
        self.filling = fill_main
        self.small: list[list[int]] = []
        self.main: list[list[int]] = []
        self.ghosts: list[int] = []

    @property
    def residents(self) -> set[int]:
        return {key for key, _ in self.small + self.main}

    def access(self, key: int, protected: Collection[int]) -> None:
        for entry in self.small + self.main:
            if entry[0] == key:
                entry[1] = min(3, entry[1] + 1)
                return
        known = key in self.ghosts
        if known:
            self.ghosts.remove(key)
        if len(self.small) + len(self.main) == self.small_slots + self.main_slots:
            self.filling = False
            self.evict(protected)
        full = self.filling and len(self.small) >= self.small_slots
        (self.main if known or full else self.small).append([key, 0])

    def evict(self, protected: Collection[int]) -> None:
        def free(queue: list[list[int]]) -> list[list[int]]:
            return [entry for entry in queue if entry[0] not in protected]

        if len(self.main) <= self.main_slots:
            while free(self.small):
                entry = free(self.small)[0]
                self.small.remove(entry)
                if entry[1] < self.promote:
                    self.bury(entry[0])
                    return
                self.main.append([entry[0], 0])
        if not free(self.main):
            entry = free(self.small)[0]
            self.small.remove(entry)
            self.bury(entry[0])
            return
        while True:
            entry = free(self.main)[0]
            self.main.remove(entry)
            if not entry[1]:
                return
            self.main.append([entry[0], entry[1] - 1])

    def bury(self, key: int) -> None:
        self.ghosts = [*self.ghosts, key][-self.most_ghosts :] if self.most_ghosts else []


class ARC:
    """The four cases of the paper, on lists with the least recent key first."""

    def __init__(self, capacity: int) -> None:
        self.c = capacity
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p: float = 0

    @property
    def residents(self) -> set[int]:
        return {*self.t1, *self.t2}

    def access(self, key: int, protected: Collection[int]) -> None:
        t1, t2, b1, b2, c = self.t1, self.t2, self.b1, self.b2, self.c
        if key in t1 or key in t2:  # case I
            (t1 if key in t1 else t2).remove(key)
            t2.append(key)
        elif key in b1:  # case II
            self.p = min(c, self.p + max(1, len(b2) / len(b1)))
            b1.remove(key)
            self.replace(protected, in_b2=False)
            t2.append(key)
        elif key in b2:  # case III
            self.p = max(0, self.p - max(1, len(b1) / len(b2)))
            b2.remove(key)
            self.replace(protected, in_b2=True)
            t2.append(key)
        else:  # case IV
            if len(t1) + len(b1) == c:
                if len(t1) < c:
                    del b1[0]
                    self.replace(protected, in_b2=False)
                else:
                    t1.remove(next(other for other in t1 if other not in protected))
            elif len(t1) + len(t2) + len(b1) + len(b2) >= c:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * c:
                    del b2[0]
                self.replace(protected, in_b2=False)
            t1.append(key)

    def replace(self, protected: Collection[int], in_b2: bool) -> None:
        t1 = [key for key in self.t1 if key not in protected]
        t2 = [key for key in self.t2 if key not in protected]
        from_t1 = len(self.t1) > self.p or (in_b2 and len(self.t1) == self.p)
        if (from_t1 and t1) or not t2:
            self.t1.remove(t1[0])
            self.b1.append(t1[0])
        else:
            self.t2.remove(t2[0])
            self.b2.append(t2[0])


class LIRS:
    """Lists S (bottom first) and Q (front first), and the keys that are LIR or have a slot.

    `demote_early` does what libcachesim does where an HIR key of Q that is not in S is used: it
    demotes an LIR key, though none becomes LIR. If Q was full, its front then leaves. That may be
    the key that is used: it is in S then, and counts as resident though it has no slot.
    """

    def __init__(
        self,
        capacity: int,
        hir: float = 0.01,
        stack: float | None = None,
        demote_early: bool = False,
    ) -> None:
        self.capacity = capacity
        self.most_hir = max(1, int(capacity * hir))
        self.most_lir = capacity - self.most_hir
        self.most = None if stack is None else stack * capacity
        self.demote_early = demote_early
        self.s: list[int] = []
        self.q: list[int] = []
        self.lir: set[int] = set()
        self.num_lir = 0
        self.absent: set[int] = set()  # keys of S without a slot
        self.gone: list[int] = []  # the same, in the order in which they left

    @property
    def residents(self) -> set[int]:
        return {*self.lir, *self.q, *(key for key in self.s if key not in self.absent)}

    @property
    def lir_full(self) -> bool:
        return self.num_lir >= self.most_lir

    def access(self, key: int, protected: Collection[int]) -> None:
        in_s, in_q = key in self.s, key in self.q
        if in_s:
            self.s.remove(key)
        if key in self.lir:
            self.s.append(key)
            self.prune()
        elif in_q:
            self.q.remove(key)
            if self.most_lir and (in_s or not (self.demote_early or self.lir_full)):
                self.become_lir(key)
            else:
                self.q.append(key)
                if self.demote_early and self.lir_full:
                    self.demote()
                self.s.append(key)
        elif in_s and key not in self.absent:
            self.become_lir(key)  # only with `demote_early`
        else:
            self.miss(key, protected)
        while self.most is not None and self.gone and len(self.s) > self.most:
            key = self.gone.pop(0)
            self.absent.discard(key)
            if key in self.s:
                self.s.remove(key)

    def miss(self, key: int, protected: Collection[int]) -> None:
        if self.demote_early:  # `demote` makes room for a key that left a ghost
            full = key not in self.absent and self.lir_full and len(self.q) >= self.most_hir
        else:
            full = len(self.lir) + len(self.q) == self.capacity
        if full:
            self.evict(protected)
        known = key in self.absent
        if known and self.most_lir:
            self.become_lir(key)
        if known:
            self.forget(key)
        if known and self.most_lir:
            return
        self.s.append(key)
        if self.lir_full:
            self.q.append(key)
        else:
            self.lir.add(key)
            self.num_lir += 1

    def become_lir(self, key: int) -> None:
        self.s.append(key)
        self.lir.add(key)
        self.num_lir += 1
        if self.num_lir > self.most_lir:
            self.demote()

    def demote(self) -> None:
        bottom = self.s.pop(0)
        self.absent.discard(bottom)
        self.lir.discard(bottom)
        self.num_lir -= 1
        if len(self.q) >= self.most_hir and self.demote_early:
            self.evict(())
        self.q.append(bottom)
        self.prune()

    def evict(self, protected: Collection[int]) -> None:
        for key in self.q:
            if key not in protected:
                self.q.remove(key)
                if key in self.s:
                    self.gone.append(key)
                    self.absent.add(key)
                return
        key = next(key for key in self.s if key in self.lir and key not in protected)
        self.lir.remove(key)
        self.num_lir -= 1
        self.s.remove(key)
        self.prune()

    def prune(self) -> None:
        while len(self.s) > self.demote_early and self.s[0] not in self.lir:
            key = self.s.pop(0)
            if key in self.absent:
                self.forget(key)

    def forget(self, key: int) -> None:
        self.absent.remove(key)
        if key in self.gone:
            self.gone.remove(key)
