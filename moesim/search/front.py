"""Which of several points are better: dominance, the Pareto front, and the better part.

A point *dominates* another if it is no worse in any objective and better in one. The *front* are
the points that no other dominates. Ranks and crowding are those of NSGA-II (Deb et al., IEEE Trans.
Evol. Comput. 6(2), 2002). Scores are worths: more is better in each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["better_part", "dominates", "front_of", "ranks_of"]

Scores = Sequence[Sequence[float]]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one point is no worse in any objective and better in one."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front_of(scores: Scores) -> list[int]:
    """Return the numbers of the points that no other dominates, in their order."""
    return [
        at for at, own in enumerate(scores) if not any(dominates(other, own) for other in scores)
    ]


def ranks_of(scores: Scores) -> list[int]:
    """Return the rank of each point: 0 on the front, 1 on the front of the others, and so on."""
    ranks = [-1] * len(scores)
    left, rank = list(range(len(scores))), 0
    while left:
        for at in (first := [left[i] for i in front_of([scores[i] for i in left])]):
            ranks[at] = rank
        left, rank = [at for at in left if at not in set(first)], rank + 1
    return ranks


def better_part(scores: Scores, excess: Sequence[float], count: int) -> list[int]:
    """Return the numbers of the best `count` points, in their order.

    Points that meet all conditions (`excess` 0 or less) are before those that do not; the latter
    are ranked by what they miss. Among the former the lower rank is better. Within a rank, the
    points at its ends and in its emptier parts are, so that a front keeps its width.
    """
    feasible = [at for at, miss in enumerate(excess) if miss <= 0]
    order: list[int] = []
    ranks = ranks_of([scores[at] for at in feasible])
    for rank in sorted(set(ranks)):
        members = [at for at, own in zip(feasible, ranks, strict=True) if own == rank]
        room = _crowding([scores[at] for at in members])
        order += [at for _, at in sorted(zip((-each for each in room), members, strict=True))]
    order += sorted(set(range(len(scores))) - set(feasible), key=lambda at: (excess[at], at))
    return sorted(order[:count])


def _crowding(scores: Scores) -> list[float]:
    """Return the crowding distance of each point of one rank; infinite at the ends."""
    room = [0.0] * len(scores)
    for objective in range(len(scores[0]) if scores else 0):
        order = sorted(range(len(scores)), key=lambda at: scores[at][objective])
        low, high = scores[order[0]][objective], scores[order[-1]][objective]
        room[order[0]] = room[order[-1]] = math.inf
        for before, at, after in zip(order, order[1:], order[2:], strict=False):
            gap = scores[after][objective] - scores[before][objective]
            room[at] += gap / (high - low) if high > low else 0.0
    return room
