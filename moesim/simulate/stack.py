"""Stack depths: at how many slots an access begins to hit, for policies whose caches are nested.

If a policy's ranks do not depend on capacity, the keys of c slots are the first c of one stack
(Mattson et al., IBM Systems Journal 1970). An access at depth d hits in all caches of more than d
slots. Policies of moesim have fast ways over arrays (`array_depths`). For all others the policy
itself ranks (`walked_depths`), and it is the reference for the fast ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappushpop
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.policies import Key, View
from moesim.policies.eviction import LFU, LRU, MIN, LFUDecay, Static
from moesim.policies.eviction.base import CacheContext, Eviction, Ranked
from moesim.policies.guard import without_foresight
from moesim.simulate.accesses import Accesses, from_unions
from moesim.simulate.popularity import Popularity
from moesim.simulate.priority import Ranking, counted_uses, next_use, priority_depths
from moesim.simulate.recency import recency_depths
from moesim.simulate.streams import Stream, cache_context

__all__ = ["array_depths", "stack_hits", "walked_depths"]

Ints = npt.NDArray[np.int64]
Told = Callable[[int], None] | None


def stack_hits(policy: type[Eviction], options: Any, stream: Stream, deepest: int) -> list[int]:
    """Return the hits at every capacity from 0 to `deepest`, in one pass.

    The first c keys of the stack are those that a cache of c slots holds. Walking down, level c
    adds one key to the candidates (residents of c ∪ union). The best candidate left takes level c.
    """
    accesses = from_unions(stream.unions, stream.universe)
    levels = min(deepest, accesses.num_keys)
    full = cache_context(stream, accesses.num_keys, "bypass")
    assert full.popularity is not None
    found = array_depths(policy, options, [accesses], levels, lambda _: full.popularity)
    if found is None:
        depths = np.fromiter(walked_depths(policy, options, stream), np.int64)
    else:
        depths = found[0]
    counts = np.bincount(depths[depths < accesses.num_keys], minlength=deepest + 1)
    return [0, *np.cumsum(counts)[:deepest].tolist()]


def array_depths(
    policy: type[Eviction],
    options: Any,
    caches: Sequence[Accesses],
    deepest: int,
    popularity: Callable[[Accesses], Any],
    told: Told = None,
) -> list[npt.NDArray[Any]] | None:
    """Return the stack depth of each access of each cache by operations on arrays.

    `popularity(accesses)` counts uses, as in a `CacheContext`. Accesses that are deeper than all
    keys, or than `deepest`, miss in all caches. Return None for a policy that has no such way.
    """
    if policy is LRU:
        depths = []
        for number, each in enumerate(caches):
            depths.append(recency_depths(each))
            if told is not None:
                told(number + 1)
        return depths
    if policy is Static:
        return [_fixed_depths(each, options, popularity(each)) for each in caches]
    rankings: dict[type[Eviction], Ranking] = {MIN: next_use, LFU: counted_uses}
    ranking = Ranking(options.decay) if policy is LFUDecay else rankings.get(policy)
    if ranking is None:
        return None
    return priority_depths(caches, ranking, deepest, told=told)


def _fixed_depths(accesses: Accesses, options: Any, popularity: Popularity) -> Ints:
    """Return the stack depth of each access under a policy that keeps the keys it starts with."""
    first, count = accesses.first_key, accesses.num_keys
    universe = range(first, first + count)
    rng = np.random.default_rng(0)  # unused
    context = CacheContext(count, universe, "bypass", rng, popularity=popularity)
    # Its `preload` lists the best key first, so c slots hold the first c keys.
    best = np.array(Static(context, options).preload(), np.int64) - first
    depth = np.empty(count, np.int64)
    depth[best] = np.arange(count)
    return depth[accesses.keys]


def walked_depths(policy: type[Eviction], options: Any, stream: Stream) -> Iterator[int]:
    """Return the stack depth of each access, in order; the number of keys for new ones."""
    context = cache_context(stream, len(stream.universe), "bypass")
    full = policy(without_foresight(policy, context), options)
    return _rank_depths(full, stream) if isinstance(full, Ranked) else _fixed(full, stream)


def _fixed(policy: Eviction, stream: Stream) -> Iterator[int]:
    """Return the stack depth of each use under a policy that keeps the keys it starts with."""
    # Its `preload` lists the best key first, so c slots hold the first c keys.
    depth = {key: place for place, key in enumerate(policy.preload())}
    return (depth[key] for union in stream.unions for key in union)


def _rank_depths(policy: Ranked, stream: Stream) -> Iterator[int]:
    """Yield the stack depth of each use under a policy whose ranks do not depend on capacity."""
    stack: list[Key] = []
    unused = len(stream.universe)
    for union in stream.unions:
        policy.observe(View(0, union))
        rank = policy.rank  # again, because a policy may replace its ranks when it observes
        left = [(rank[key], key) for key in union]
        heapify(left)
        found = dict.fromkeys(union, unused)
        for depth, key in enumerate(stack):
            if key in found:
                found[key] = depth
                stack[depth] = heappop(left)[1]
                if not left:
                    break
            else:
                stack[depth] = heappushpop(left, (rank[key], key))[1]
        while left:
            stack.append(heappop(left)[1])
        yield from found.values()
