"""Which keys leave: the choice of the kernel of overlapping events, made for each policy."""

from __future__ import annotations

from typing import Any

from moesim.serving.compiled.order import lowest, part_wanted, sort_by_score
from moesim.serving.compiled.policies import KERNELS

__all__ = ["choose_leavers", "victim"]

# In the place of these, `compiled_with` puts the functions of each policy.
score = KERNELS["lru"].score
head: Any = KERNELS["lru"].head
following: Any = KERNELS["lru"].following
IN_ORDER = True


def choose_leavers(  # type: ignore[no-untyped-def]
    held, members, always, cache, excess, absent, missing, wanted, worst, room, first, second, ints,
    floats,
):  # fmt: skip
    """Write the `excess` keys that leave into `worst`, the first one first; return how many."""
    leaving = 0
    if IN_ORDER:
        for turn in range(2):  # `always`: wanted keys leave in the second turn
            key = head(cache, ints)
            while leaving < excess and key >= 0:
                if not always or wanted[key] == turn:
                    worst[leaving] = key
                    leaving += 1
                key = following(key, ints)
        return leaving
    rivals = held + missing
    for turn in range(held):
        room[turn] = members[turn]
    for place in range(missing):
        room[held + place] = absent[place]
    for turn in range(rivals):
        first[turn], second[turn] = score(room[turn], cache, ints, floats)
    others = rivals
    if always:
        others = part_wanted(room, first, second, rivals, wanted)
    early = min(excess, others)
    lowest(room, first, second, 0, others, early)
    lowest(room, first, second, others, rivals, excess - early)
    sort_by_score(room, first, second, 0, early)
    sort_by_score(room, first, second, others, others + excess - early)
    for place in range(early):
        worst[place] = room[place]
    for place in range(excess - early):
        worst[early + place] = room[others + place]
    return excess


def victim(held, members, cache, shielded, ints, floats):  # type: ignore[no-untyped-def]
    """Return the resident that leaves for a key copied ahead, or -1 if all are shielded."""
    if IN_ORDER:
        key = head(cache, ints)
        while key >= 0 and shielded[key]:
            key = following(key, ints)
        return key
    best = -1
    best_first, best_second = 0.0, 0
    for turn in range(held):
        key = members[turn]
        if shielded[key]:
            continue
        first, second = score(key, cache, ints, floats)
        if best < 0 or first < best_first or (first == best_first and second < best_second):
            best, best_first, best_second = key, first, second
    return best
