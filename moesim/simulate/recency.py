"""The depths of LRU's stack, for all accesses of one cache at once.

LRU orders keys by their last use. An access is a hit in c slots if fewer than c other keys were
used since its key's last use: that number is its *stack depth* (Mattson et al., IBM Systems Journal
1970). A layer event is atomic, so depths are those before the event.

Small caches compare each access with the last use of every key, a vector operation for each key. In
larger ones the depth follows from a count of inversions: of the accesses since the last use, those
that are used again before the event are not distinct.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.simulate.accesses import Accesses

__all__ = ["recency_depths"]

Ints = npt.NDArray[Any]

_MOST_COMPARED: Final = 512
"""Keys up to which comparing is faster than counting."""
_COUNTED: Final = 2**16
"""Accesses that are counted at once."""
_CHUNK: Final = 2**20
"""Last uses (keys x events) that are compared at once: they fit into a processor's cache."""


def recency_depths(accesses: Accesses) -> Ints:
    """Return the stack depth of each access under LRU, `num_keys` for first uses, (accesses,)."""
    if accesses.num_keys > _MOST_COMPARED:
        return _counted(accesses)
    return _compared(accesses)


def _compared(accesses: Accesses) -> Ints:
    keys, starts, num_keys = accesses.keys, accesses.starts, accesses.num_keys
    depths = np.empty(len(keys), np.uint16)
    # Before any use a key has age 0. Only the order of ages matters.
    ages = np.zeros(num_keys, np.int64)
    step = max(1, _CHUNK // max(1, num_keys))
    for first in range(0, accesses.num_events, step):
        bounds = starts[first : first + step + 1]
        chunk = slice(bounds[0], bounds[-1])
        depths[chunk], ages = _chunk_depths(keys[chunk], bounds - bounds[0], ages)
    return depths


def _chunk_depths(keys: Ints, starts: npt.NDArray[np.int64], ages: Ints) -> tuple[Ints, Ints]:
    """Return the depths of some consecutive events, and the ages of all keys after them.

    `ages`: the rank of each key's last use before them, from 1; 0 is never.
    """
    num_keys, num_events = len(ages), len(starts) - 1
    sizes = np.diff(starts)
    width = int(sizes.max(initial=0))
    event = np.repeat(np.arange(num_events), sizes)
    # Times are small, and small integers are compared many at once.
    kind = np.int16 if num_keys + len(keys) < 2**15 - 1 else np.int32
    last_ET, before = _last_uses(keys, event, num_events, ages, kind)
    equal = len(keys) == width * num_events  # all events have the same size
    if equal:
        own_WT = np.ascontiguousarray(before.reshape(num_events, width).T)
    else:
        place = np.arange(len(keys)) - np.repeat(starts[:-1], sizes)
        own_WT = np.zeros((width, num_events), kind)
        own_WT[place, event] = before
    depth_WT = np.zeros((width, num_events), np.uint8 if num_keys < 256 else np.uint16)
    later_WT = np.empty((width, num_events), np.bool_)
    for last_T in last_ET[:, :num_events]:
        np.greater(last_T, own_WT, out=later_WT)
        np.add(depth_WT, later_WT, out=depth_WT)
    depth_WT[own_WT == 0] = num_keys
    depths = depth_WT.T.reshape(-1) if equal else depth_WT[place, event]
    after = last_ET[:, num_events]
    ranks = np.empty(num_keys, np.int64)
    ranks[np.argsort(after, kind="stable")] = np.arange(1, num_keys + 1)
    return depths, np.where(after > 0, ranks, 0)


def _last_uses(
    keys: Ints, event: Ints, num_events: int, ages: Ints, kind: Any
) -> tuple[Ints, Ints]:
    """Return the time of each key's last use before each event, and that before each access.

    The first has the shape (keys, events + 1); its last column is the time after all events.
    """
    num_keys = len(ages)
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=num_keys)
    # For each key its age, then the times of its uses: each holds until the next.
    heads = np.cumsum(counts) - counts + np.arange(num_keys)
    is_use = np.ones(len(keys) + num_keys, np.bool_)
    is_use[heads] = False
    uses = np.flatnonzero(is_use)
    times = np.empty(len(is_use), kind)
    times[heads], times[uses] = ages, order + (num_keys + 1)
    since = np.zeros(len(is_use), np.int64)
    since[uses] = event[order] + 1
    until = np.empty_like(since)
    until[:-1] = since[1:]
    until[heads[1:] - 1] = until[-1] = num_events + 1
    before = np.empty(len(keys), kind)
    before[order] = times[uses - 1]
    return np.repeat(times, until - since).reshape(num_keys, num_events + 1), before


def _counted(accesses: Accesses) -> Ints:
    keys, starts, num_keys = accesses.keys, accesses.starts, accesses.num_keys
    depths = np.empty(len(keys), np.int32)
    recent = keys[:0]  # the keys that were used, from the oldest last use
    first = 0
    while first < accesses.num_events:
        # At least one event, and others as long as they fit.
        end = int(np.searchsorted(starts, starts[first] + _COUNTED, side="right")) - 1
        bounds = starts[first : max(first + 1, end) + 1]
        chunk = slice(bounds[0], bounds[-1])
        # What was used before stands in front, each use as an event of its own.
        before = len(recent)
        own_keys = np.concatenate([recent, keys[chunk]])
        own_starts = np.concatenate([np.arange(before), bounds - bounds[0] + before])
        depths[chunk] = _count_distinct(own_keys, own_starts, num_keys)[before:]
        last = np.full(num_keys, -1, np.int64)
        last[own_keys] = np.arange(len(own_keys))
        used = np.flatnonzero(last >= 0)
        recent = used[np.argsort(last[used])].astype(keys.dtype)
        first += len(bounds) - 1
    return depths


def _count_distinct(keys: Ints, starts: npt.NDArray[np.int64], num_keys: int) -> Ints:
    """Return the distinct keys between each access and its key's last one, `num_keys` for none."""
    order = np.argsort(keys, kind="stable")
    again = keys[order[1:]] == keys[order[:-1]]
    last = np.full(len(keys), -1, np.int64)
    last[order[1:][again]] = order[:-1][again]
    hits = np.flatnonzero(last >= 0)
    sizes = np.diff(starts)
    event, last = np.repeat(np.arange(len(sizes)), sizes)[hits], last[hits]
    repeated = _larger_before(last)
    # Uses of this very event do not count, because all its keys are looked up together.
    for gap in range(1, int(sizes.max(initial=0))):
        together = (event[gap:] == event[:-gap]) & (last[:-gap] > last[gap:])
        repeated[gap:] -= together
    depths = np.full(len(keys), num_keys, np.int64)
    depths[hits] = starts[event] - 1 - last - repeated
    return depths


def _larger_before(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each of distinct values how many values before it are larger.

    The values are partitioned by the bits of their ranks, from the highest, and keep their order
    within each part. Each value with a 0 has behind it the values with a 1 of its part.
    """
    size = len(values)
    rank = np.empty(size, np.int64)
    rank[np.argsort(values)] = np.arange(size)
    larger = np.zeros(size, np.int64)
    place = np.arange(size)  # in `values`, of each rank where it now stands
    ones = np.zeros(size + 1, np.int64)
    for bit in reversed(range(max(0, size - 1).bit_length())):
        one = (rank >> bit) & 1
        np.cumsum(one, out=ones[1:])
        # Ranks are all the numbers below `size`, so a part begins at its lowest rank.
        start = rank >> (bit + 1) << (bit + 1)
        ones_before = ones[:-1] - ones[start]
        zeros = np.flatnonzero(one == 0)
        larger[place[zeros]] += ones_before[zeros]
        to = np.where(one == 1, start + (1 << bit) + ones_before, np.arange(size) - ones_before)
        moved, moved_place = np.empty_like(rank), np.empty_like(place)
        moved[to], moved_place[to] = rank, place
        rank, place = moved, moved_place
    return larger
