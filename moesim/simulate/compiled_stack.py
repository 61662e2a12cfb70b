"""The priority stack of one cache as a compiled loop, for long replays; needs numba.

`moesim/simulate/priority.py` says what it computes, and has the way without numba.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moesim.serving.compiled.keep import kept

__all__ = ["stack_depths"]

_RESCALE_ABOVE: Final = 1e200  # as the policy does


@kept
def _worse(first: Any, first_tie: Any, second: Any, second_tie: Any) -> Any:
    """Return whether the first rank is worse: later by its number, or by its tie."""
    return first > second or (first == second and first_tie > second_tie)


@kept
def stack_depths(
    keys: Any, starts: Any, following: Any, decay: Any, num_keys: Any, levels: Any, new: Any
) -> Any:
    """Return the stack depth of each access, `new` for those that are in no level of the stack.

    `following`: the event of each access's next use, which is its rank if `decay` is 0. Otherwise
    the rank is minus the count of uses, which fades by `decay` per event; ties go to the later use.
    """
    depths = np.full(len(keys), new, np.int32)
    rank, tie = np.zeros(num_keys), np.zeros(num_keys, np.int64)
    stack, height = np.zeros(levels, np.int64), 0
    wanted = np.full(num_keys, -1, np.int64)  # the access of this event that wants a key
    left = np.zeros(num_keys, np.int64)  # candidates, the best first
    weight = 1.0
    for event in range(len(starts) - 1):
        first, end, count = starts[event], starts[event + 1], 0
        for access in range(first, end):
            key = keys[access]
            if decay > 0:
                rank[key], tie[key] = rank[key] - weight, -access
            else:
                rank[key], tie[key] = following[access], key
            wanted[key] = access
            place = count
            while place and _worse(
                rank[left[place - 1]], tie[left[place - 1]], rank[key], tie[key]
            ):
                left[place] = left[place - 1]
                place -= 1
            left[place] = key
            count += 1
        if decay > 0:
            weight /= decay
            if weight > _RESCALE_ABOVE:
                rank /= weight
                weight = 1.0
        level = 0
        while count and level < levels:
            best = left[0]
            key = -1 if level == height else stack[level]
            if key >= 0 and wanted[key] < 0:
                if _worse(rank[key], tie[key], rank[best], tie[best]):
                    place = 1
                    while place < count and _worse(
                        rank[key], tie[key], rank[left[place]], tie[left[place]]
                    ):
                        left[place - 1] = left[place]
                        place += 1
                    left[place - 1] = key
                    stack[level] = best
            else:
                if key >= 0:
                    depths[wanted[key]] = level
                else:
                    height += 1
                stack[level] = best
                count -= 1
                for place in range(count):
                    left[place] = left[place + 1]
            level += 1
        for access in range(first, end):
            wanted[keys[access]] = -1
    return depths
