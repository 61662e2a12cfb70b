"""Eviction against libcachesim, an independent simulator, access by access.

It knows single accesses to objects of one size that are always admitted, so here every event is
one key and admission is `always`. What its policies mean, by measurement:

- LRU and FIFO are ours.
- LFU counts uses since the object came in and forgets them when it leaves; among equal counts the
  least recently used leaves. That is our `lfu_in_cache`, exactly. Our `lfu` counts over the whole
  run, and differs.
- ARC and SIEVE are ours.
- S3-FIFO is ours with `fill: main`. Its small queue must have two slots or more: with one it
  admits no new key.
- LIRS is ours with `stack: 2`, but for a fault: see `test_libcachesim_lirs_demotes_early`. The
  naive version `replacing.LIRS` can do the same. Then it equals libcachesim, and without it, ours.
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
from oracles import replacing

from moesim.policies import View, find, parse_options
from moesim.policies.eviction import CacheContext
from moesim.simulate.curve import curve
from moesim.trace import Trace

lib = pytest.importorskip("libcachesim", reason="the oracle libcachesim is not installed")

SAME = {
    "lru": lib.LRU,
    "fifo": lib.FIFO,
    "lfu_in_cache": lib.LFU,
    "min": lib.Belady,
    "arc": lib.ARC,
    "sieve": lib.Sieve,
}
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


def our_hits(name: str, keys: Sequence[int], capacity: int, **options: Any) -> list[bool]:
    events = [[key] for key in keys]
    universe = range(max(keys) + 1)
    context = CacheContext(capacity, universe, "always", np.random.default_rng(0), future=events)
    kind = find("eviction", name)
    policy = kind(context, parse_options(kind, options))
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


def test_a_curve_of_ids_one_by_one_equals_libcachesim_at_every_capacity(
    esft: Callable[[str], Trace],
) -> None:
    ids = esft("law").expert_ids[:300, 5:7]
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[300], num_experts=64)
    rates = curve(trace, ["lru"], replay="sequential")["lru"]
    for capacity in range(1, 65):
        hits = sum(
            sum(their_hits(cache("lru", capacity), ids[:, layer].ravel().tolist()))
            for layer in range(2)
        )
        assert rates[capacity] * ids.size == pytest.approx(hits)


def test_libcachesim_forgets_the_counts_of_what_left() -> None:
    keys = [0, 0, 1, 2, 1, 2, 0]
    # When 2 comes back, 1 has been used twice in all but once since it came in: where counts are
    # forgotten it leaves, where they are not 0 does, being as often and less recently used.
    assert their_hits(lib.LFU(2, hashpower=8), keys)[-1]
    assert our_hits("lfu_in_cache", keys, 2)[-1]
    assert not our_hits("lfu", keys, 2)[-1]


# --- S3-FIFO and LIRS -----------------------------------------------------------------------------


@given(
    keys=st.lists(st.integers(0, 11), min_size=1, max_size=90),
    capacity=st.integers(4, 10),
    small=st.sampled_from([0.5, 0.75]),
    ghosts=st.sampled_from([0.5, 0.9, 2.0]),
    promote=st.integers(1, 3),
)
def test_s3_fifo_equals_libcachesim_access_by_access(
    keys: list[int], capacity: int, small: float, ghosts: float, promote: int
) -> None:
    theirs = lib.S3FIFO(
        capacity,
        hashpower=8,
        small_size_ratio=small,
        ghost_size_ratio=ghosts,
        move_to_main_threshold=promote,
    )
    options: dict[str, Any] = {"small": small, "ghosts": ghosts, "promote": promote}
    assert our_hits("s3_fifo", keys, capacity, fill="main", **options) == their_hits(theirs, keys)


@pytest.mark.parametrize("capacity", [20, 33, 48])
def test_s3_fifo_equals_libcachesim_on_real_routing(
    capacity: int, esft: Callable[[str], Trace]
) -> None:
    keys = esft("law").expert_ids[:1000, 7].ravel().tolist()
    ours = our_hits("s3_fifo", keys, capacity, fill="main")
    assert ours == their_hits(lib.S3FIFO(capacity, hashpower=8), keys)


def naive_lirs(keys: Sequence[int], capacity: int, **options: Any) -> list[bool]:
    def make(slots: int) -> replacing.LIRS:
        return replacing.LIRS(slots, stack=2, **options)

    events = [[key] for key in keys]
    return [bool(hits) for hits, _ in replacing.replay(make, events, capacity, always=True)]


@given(keys=st.lists(st.integers(0, 11), min_size=1, max_size=90), capacity=st.integers(2, 10))
def test_naive_lirs_equals_libcachesim_with_its_fault_and_ours_without(
    keys: list[int], capacity: int
) -> None:
    theirs = their_hits(lib.LIRS(capacity, hashpower=8), keys)
    assert naive_lirs(keys, capacity, demote_early=True) == theirs
    assert naive_lirs(keys, capacity) == our_hits("lirs", keys, capacity, stack=2)


def test_naive_lirs_equals_libcachesim_on_real_routing(esft: Callable[[str], Trace]) -> None:
    keys = esft("law").expert_ids[:300, 7].ravel().tolist()
    for capacity in (4, 16, 48):
        theirs = their_hits(lib.LIRS(capacity, hashpower=8), keys)
        assert naive_lirs(keys, capacity, demote_early=True) == theirs
        assert naive_lirs(keys, capacity) == our_hits("lirs", keys, capacity, stack=2)


def test_libcachesim_lirs_demotes_early() -> None:
    """Two slots, one of them for LIR keys. The fourth access finds 0 in Q and not in S.

    By the paper 0 stays HIR, and 1 stays LIR. Then 2 drives out 0. libcachesim moves 1 to Q, where
    it drives out 0 at once. Yet 0 stays in S as if it had a slot, and its next use is a hit.
    """
    keys = [0, 1, 1, 0, 2, 0]
    assert our_hits("lirs", keys, 2)[3:] == [True, False, False]
    assert their_hits(lib.LIRS(2, hashpower=8), keys)[3:] == [True, False, True]
