"""Eviction against libcachesim, an independent simulator, access by access.

It knows single accesses to objects of one size that are always admitted, so here every event is
one key and admission is `always`. What its policies mean, by measurement:

- LRU and FIFO are ours.
- LFU counts uses since the object came in and forgets them when it leaves; among equal counts the
  least recently used leaves. That is our `lfu_in_cache`, exactly. Our `lfu` counts over the whole
  run, and differs.
- Belady needs the time of each access's next one (1 is the first access, a huge number means
  never). Objects never used again are all alike, so its hits are those of `min`, each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.policies import View, find
from moesim.policies.eviction import CacheContext
from moesim.trace import Trace

lib = pytest.importorskip("libcachesim", reason="the oracle libcachesim is not installed")

SAME = {"lru": lib.LRU, "fifo": lib.FIFO, "lfu_in_cache": lib.LFU, "min": lib.Belady}
NEVER = 2**62


def their_hits(cache: Any, keys: Sequence[int]) -> list[bool]:
    upcoming: dict[int, int] = {}
    following = []
    for index in range(len(keys) - 1, -1, -1):
        following.append(upcoming.get(keys[index], NEVER))
        upcoming[keys[index]] = index + 1
    get = {"obj_size": 1, "op": lib.ReqOp.OP_GET}
    return [
        cache.get(lib.Request(obj_id=key, clock_time=time, next_access_vtime=later, **get))
        for time, (key, later) in enumerate(zip(keys, reversed(following), strict=True))
    ]


def our_hits(name: str, keys: Sequence[int], capacity: int) -> list[bool]:
    events = [[key] for key in keys]
    universe = range(max(keys) + 1)
    context = CacheContext(capacity, universe, "always", np.random.default_rng(0), future=events)
    policy = find("eviction", name)(context)
    resident: set[int] = set()
    hits = []
    for event in events:
        hits.append(event[0] in resident)
        resident = resident.union(event).difference(policy.decide(View(0, event)))
    return hits


def cache(name: str, capacity: int) -> Any:
    return SAME[name](capacity, hashpower=8)  # the default table takes a second to clear


@pytest.mark.parametrize("name", SAME)
@given(keys=st.lists(st.integers(0, 8), min_size=1, max_size=60), capacity=st.integers(1, 9))
def test_a_policy_equals_libcachesim_access_by_access(
    name: str, keys: list[int], capacity: int
) -> None:
    assert our_hits(name, keys, capacity) == their_hits(cache(name, capacity), keys)


@pytest.mark.parametrize("name", SAME)
def test_a_policy_equals_libcachesim_on_skewed_keys(name: str) -> None:
    keys = (np.random.default_rng(4).zipf(1.2, 4000) % 64).tolist()
    for capacity in (1, 2, 7, 16, 40, 63, 64):
        assert our_hits(name, keys, capacity) == their_hits(cache(name, capacity), keys)


@pytest.mark.parametrize("name", SAME)
def test_a_policy_equals_libcachesim_on_real_routing(
    name: str, esft: Callable[[str], Trace]
) -> None:
    keys = esft("law").expert_ids[:1000, 7].ravel().tolist()
    for capacity in (4, 16, 48):
        assert our_hits(name, keys, capacity) == their_hits(cache(name, capacity), keys)


def test_libcachesim_forgets_the_counts_of_what_left() -> None:
    keys = [0, 0, 1, 2, 1, 2, 0]
    # When 2 comes back, 1 has been used twice in all but once since it came in: where counts are
    # forgotten it leaves, where they are not 0 does, being as often and less recently used.
    assert their_hits(lib.LFU(2, hashpower=8), keys)[-1]
    assert our_hits("lfu_in_cache", keys, 2)[-1]
    assert not our_hits("lfu", keys, 2)[-1]
