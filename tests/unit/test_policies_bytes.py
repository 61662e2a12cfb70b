"""Each eviction policy handles a capacity in bytes, for experts of unequal sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import eviction as naive

from moesim.errors import PolicyViolation, UsageError
from moesim.policies import View, find, parse_options
from moesim.policies.eviction import LRU, CacheContext, Eviction, Resident
from moesim.policies.guard import make_eviction
from moesim.serving.budget import split_bytes, split_slots
from moesim.simulate.curve import replay_hits

EXPERTS = 6
UNIVERSE = range(EXPERTS)
Events = list[list[int]]

ORACLES: dict[str, Callable[[Events], naive.Worth]] = {
    "lru": lambda events: naive.lru,
    "fifo": lambda events: naive.fifo,
    "lfu": lambda events: naive.lfu,
    "lfu_in_cache": lambda events: naive.lfu_in_cache,
    "lfu_decay": lambda events: naive.lfu_decay(0.99),
    "min": naive.furthest_next_use,
    "min_window": lambda events: naive.seen_within(1, events),
    "lookahead": lambda events: naive.lru,  # a view that reveals nothing
    "lfru": lambda events: naive.lfru(),
    "least_stale": lambda events: naive.least_stale(naive.fifo),
    "activation_matrix": lambda events: naive.activation_share(0.99),
    "mrs": lambda events: naive.mean_recent_score(0.5),
    "fmoe": lambda events: naive.probability_times_frequency,
}
ADMISSIONS = ["bypass", "always"]
UNIONS = st.lists(st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS), max_size=25)
SIZES = st.lists(st.integers(1, 9), min_size=EXPERTS, max_size=EXPERTS)


def build(
    name: str,
    events: Events,
    capacity: int,
    sizes: Sequence[int] | None,
    admission: str = "bypass",
) -> Eviction:
    policy = find("eviction", name)
    counts = Counter(key for event in events for key in event)
    context = CacheContext(
        capacity=capacity,
        universe=UNIVERSE,
        admission=admission,
        rng=np.random.default_rng(0),
        popularity=lambda profile: counts,
        future=events,
        sizes=sizes,
    )
    return make_eviction(policy, context, parse_options(policy, {}))


def outcomes(policy: Eviction, events: Events) -> list[naive.Outcome]:
    """Return the hits of each event and the residents after it; audit the policy at each."""
    resident = set(policy.preload())
    found = []
    for event in events:
        hits = resident.intersection(event)
        leavers = list(policy.decide(View(0, event)))
        assert len(leavers) == len(set(leavers))
        assert resident.union(event).issuperset(leavers)
        resident = resident.union(event).difference(leavers)
        assert set(policy.book) == resident
        if policy.sizes is not None:
            assert sum(policy.sizes[key] for key in resident) <= policy.capacity
        found.append((hits, resident))
    return found


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", ORACLES)
@given(events=UNIONS, capacity=st.integers(0, 30), sizes=SIZES)
def test_a_policy_equals_its_naive_version_in_bytes(
    name: str, admission: str, events: Events, capacity: int, sizes: list[int]
) -> None:
    policy = build(name, events, capacity, sizes, admission)
    worth, always = ORACLES[name](events), admission == "always"
    assert outcomes(policy, events) == naive.replay_bytes(worth, events, capacity, sizes, always)


@pytest.mark.parametrize("name", [*ORACLES, "static"])
@given(
    events=UNIONS, slots=st.integers(0, EXPERTS), nbytes=st.integers(1, 5), spare=st.floats(0, 1)
)
def test_bytes_equal_slots_if_all_sizes_are_equal(
    name: str, events: Events, slots: int, nbytes: int, spare: float
) -> None:
    capacity = slots * nbytes + int(spare * (nbytes - 1))
    in_bytes = build(name, events, capacity, [nbytes] * EXPERTS)
    assert outcomes(in_bytes, events) == outcomes(build(name, events, slots, None), events)


@given(UNIONS, st.integers(0, 30), SIZES, st.sampled_from(ADMISSIONS))
def test_random_evicts_no_more_than_must_leave(
    events: Events, capacity: int, sizes: list[int], admission: str
) -> None:
    policy = build("random", events, capacity, sizes, admission)
    resident: set[int] = set()
    for event in events:
        leavers = [*policy.decide(View(0, event))]
        kept = resident.union(event).difference(leavers)
        fitting = [key for key in leavers if sizes[key] <= capacity]
        held = sum(sizes[key] for key in kept)
        assert held <= capacity
        if fitting:  # without the last of them, the rest would not have fitted
            assert held + sizes[fitting[-1]] > capacity
        if admission == "always" and set(event).intersection(fitting):
            assert kept <= set(event)
        resident = kept


@given(UNIONS, st.integers(0, 30), SIZES)
def test_static_keeps_the_most_popular_that_fit(
    events: Events, capacity: int, sizes: list[int]
) -> None:
    counts = Counter(key for event in events for key in event)
    kept: list[int] = []
    for key in sorted(UNIVERSE, key=lambda key: (-counts[key], key)):
        if sum(sizes[other] for other in kept) + sizes[key] <= capacity:
            kept.append(key)
    policy = build("static", events, capacity, sizes)
    assert list(policy.preload()) == kept
    assert all(resident == set(kept) for _, resident in outcomes(policy, events))


@pytest.mark.parametrize("name", [*ORACLES, "random"])
@given(UNIONS, st.integers(1, 30), SIZES, st.integers(1, 30), st.sets(st.integers(0, EXPERTS - 1)))
def test_victims_free_enough_for_a_prefetch_and_spare_what_is_protected(
    name: str,
    events: Events,
    capacity: int,
    sizes: list[int],
    needed: int,
    protected: set[int],
) -> None:
    policy = build(name, events, capacity, sizes)
    outcomes(policy, events)
    resident = set(policy.book)
    victims = policy.victims(protected, needed)
    free = {key: sizes[key] for key in resident - protected}
    assert set(policy.book) == resident  # the server removes them
    if victims is None:
        assert sum(free.values()) < needed
        return
    assert len(set(victims)) == len(victims)
    assert set(victims) <= set(free)
    freed = sum(sizes[key] for key in victims)
    assert freed >= needed
    assert freed - sizes[victims[-1]] < needed
    for key in victims:
        policy.remove(key)
    assert set(policy.book) == resident.difference(victims)


def test_a_static_cache_and_one_that_never_evicts_have_no_victims() -> None:
    context = CacheContext(10, UNIVERSE, "bypass", np.random.default_rng(0), sizes=[1] * EXPERTS)
    assert Resident(context).victims((), 1) is None
    assert build("static", [[0]], 10, [1] * EXPERTS).victims((), 1) is None


def test_an_expert_larger_than_the_cache_drives_nothing_out() -> None:
    for name in ("lru", "fifo", "lfu", "random"):
        found = outcomes(build(name, [], 5, [2, 3, 6, 1, 1, 1]), [[0, 1], [2], [0, 2]])
        assert [resident for _, resident in found] == [{0, 1}] * 3


def test_a_policy_that_counts_slots_is_refused_where_sizes_are_unequal() -> None:
    class Counting(LRU):
        name = "counting"
        by_bytes = False

    context = CacheContext(3, UNIVERSE, "bypass", np.random.default_rng(0), sizes=[1] * EXPERTS)
    with pytest.raises(UsageError, match="counting counts slots, and the experts of this model"):
        Counting(context)
    assert Eviction.by_bytes is False


def test_a_policy_that_keeps_too_many_bytes_is_blamed() -> None:
    class Hoarder(LRU):
        name = "hoarder"

        def decide(self, view: View) -> Any:
            self.book.update(dict.fromkeys(view.union))
            return ()

    context = CacheContext(3, UNIVERSE, "bypass", np.random.default_rng(0), sizes=[2] * EXPERTS)
    with pytest.raises(PolicyViolation, match="keeps more than 3 bytes"):
        replay_hits(Hoarder(context), [[0], [1]])
    assert replay_hits(LRU(context), [[0], [0], [1], [0]]) == 1


def test_min_is_no_bound_where_sizes_are_unequal() -> None:
    """MIN keeps a large expert that is wanted soon in place of three small ones."""
    events = [[0, 1, 2, 3], [0], [1], [2], [3], [0], [1], [2], [3]]
    sizes = [3, 1, 1, 1, 1, 1]
    small = CacheContext(
        capacity=3,
        universe=UNIVERSE,
        admission="bypass",
        rng=np.random.default_rng(0),
        popularity=lambda profile: {1: 1, 2: 1, 3: 1},
        sizes=sizes,
    )
    assert replay_hits(build("min", events, 3, sizes), events) < 6
    assert replay_hits(find("eviction", "static")(small), events[1:]) == 6


@given(
    st.integers(0, 200),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=5),
)
def test_layers_share_bytes_in_proportion_and_lose_less_than_an_expert_each(
    total: int, sizes: list[list[int]]
) -> None:
    shares = split_bytes(total, sizes)
    assert sum(shares) <= total
    for share, layer in zip(shares, sizes, strict=True):
        exact = min(total, sum(map(sum, sizes))) * sum(layer) / sum(map(sum, sizes))
        assert exact - max(layer) < share <= min(sum(layer), exact + max(layer))
    if total >= sum(map(sum, sizes)):
        assert shares == [sum(layer) for layer in sizes]


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.data())
def test_equal_sizes_share_bytes_as_slots(
    slots: int, layers: int, experts: int, nbytes: int, data: st.DataObject
) -> None:
    total = slots * nbytes + data.draw(st.integers(0, nbytes - 1))
    expected = [count * nbytes for count in split_slots(slots, layers, experts)]
    assert split_bytes(total, [[nbytes] * experts] * layers) == expected
