"""What MIN is promised where all steps of a run are known in advance.

A run keeps its steps, so that other evictions can decide and time the same ones: nothing is formed,
routed or logged twice.

Shapes: K keys of all layers, A accesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.kernel import Steps

__all__ = ["promises"]


def promises(
    parts: Sequence[Steps], cache_of: npt.NDArray[np.int64], keys: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the first use of each key, [K], the next use of each access, [A], and where the
    accesses of each cache begin.

    `cache_of` [layers] is the cache of each layer, `keys` the number K. A use is the number of an
    event of its cache; infinity stands for none. The accesses of one cache follow those of another.
    """
    layers = len(cache_of)
    caches = int(cache_of.max()) + 1
    events, accesses = np.zeros(caches, np.int64), np.zeros(caches, np.int64)
    for part in parts:
        sizes = part.sizes.reshape(-1, layers)
        np.add.at(events, cache_of, np.count_nonzero(sizes, axis=0))
        np.add.at(accesses, cache_of, sizes.sum(axis=0, dtype=np.int64))
    ends = np.cumsum(accesses)
    begins = ends - accesses
    first, given = np.full(keys, np.inf), np.empty(int(accesses.sum()))
    for part in reversed(parts):
        _promise(part.keys, part.sizes, cache_of, first, given, ends, events)
    return first, given, begins


@kept
def _promise(
    keys: Any, sizes: Any, cache_of: Any, first: Any, given: Any, ends: Any, events: Any
) -> Any:
    """Walk back through some events, and write the next use of each access.

    `first` [K] are the uses after these events, `ends` where the accesses of each cache end and
    `events` their numbers; all of them move back.
    """
    place = len(keys)
    for event in range(len(sizes) - 1, -1, -1):
        size = sizes[event]
        if size == 0:
            continue
        cache = cache_of[event % len(cache_of)]
        events[cache] -= 1
        place -= size
        ends[cache] -= size
        for number in range(size):
            key = keys[place + number]
            given[ends[cache] + number] = first[key]
            first[key] = events[cache]
