"""Each eviction policy equals its naive version, access by access, and keeps its contract."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import eviction as naive
from oracles import replacing
from paths import ROOT

from moesim.errors import InvariantError, UsageError
from moesim.policies import View, find, names, parse_options
from moesim.policies.eviction import MIN, CacheContext, Eviction
from moesim.simulate.curve import replay_hits, trace_popularity
from moesim.trace import Trace

EXPERTS = 7
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
REPLACING: dict[str, replacing.Make] = {
    "arc": replacing.ARC,
    "lirs": replacing.LIRS,
    "s3_fifo": replacing.S3FIFO,
    "sieve": replacing.Sieve,
}
DEMAND = sorted({*ORACLES, *REPLACING} - {"min", "min_window"} | {"random"})
ADMISSIONS = ["bypass", "always"]


def unions(experts: int = EXPERTS, most: int = 25) -> st.SearchStrategy[Events]:
    """Draw sequences of layer events, some of them larger than any cache, some empty."""
    union = st.lists(st.integers(0, experts - 1), unique=True, max_size=experts)
    return st.lists(union, max_size=most)


def build(
    name: str,
    events: Events,
    capacity: int,
    admission: str = "bypass",
    seed: int = 0,
    **options: Any,
) -> Eviction:
    policy = find("eviction", name)
    counts = Counter(key for event in events for key in event)
    context = CacheContext(
        capacity=capacity,
        universe=UNIVERSE,
        admission=admission,
        rng=np.random.default_rng(seed),
        popularity=lambda profile: counts,
        future=events,
    )
    return policy(context, parse_options(policy, options))


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
        found.append((hits, resident))
    return found


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", ORACLES)
@given(events=unions(), capacity=st.integers(0, EXPERTS + 1))
def test_a_policy_equals_its_naive_version_access_by_access(
    name: str, admission: str, events: Events, capacity: int
) -> None:
    policy = build(name, events, capacity, admission)
    expected = naive.replay(ORACLES[name](events), events, capacity, admission == "always")
    assert outcomes(policy, events) == expected


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", REPLACING)
@given(events=unions(most=40), capacity=st.integers(0, EXPERTS + 1))
def test_a_replacement_policy_equals_its_naive_version_access_by_access(
    name: str, admission: str, events: Events, capacity: int
) -> None:
    policy = build(name, events, capacity, admission)
    expected = replacing.replay(REPLACING[name], events, capacity, admission == "always")
    assert outcomes(policy, events) == expected


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", REPLACING)
def test_a_replacement_policy_equals_its_naive_version_on_long_traces(
    name: str, admission: str
) -> None:
    """Only long traces fill the ghost lists of a large cache."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        capacity = int(rng.integers(1, 14))
        chances = rng.dirichlet(np.full(24, 0.5))
        sizes = rng.choice([1, 1, 1, 2, 4], 200)
        events = [rng.choice(24, size, replace=False, p=chances).tolist() for size in sizes]
        expected = replacing.replay(REPLACING[name], events, capacity, admission == "always")
        assert outcomes(build(name, events, capacity, admission), events) == expected


@given(
    unions(most=40),
    st.integers(0, EXPERTS + 1),
    st.floats(0, 1),
    st.floats(0, 3),
    st.integers(1, 3),
    st.sampled_from(["small", "main"]),
)
def test_s3_fifo_obeys_its_options(
    events: Events, capacity: int, small: float, ghosts: float, promote: int, fill: str
) -> None:
    options: dict[str, Any] = {"small": small, "ghosts": ghosts, "promote": promote}
    policy = build("s3_fifo", events, capacity, fill=fill, **options)

    def make(slots: int) -> replacing.S3FIFO:
        return replacing.S3FIFO(slots, fill_main=fill == "main", **options)

    assert outcomes(policy, events) == replacing.replay(make, events, capacity, False)


@given(unions(most=40), st.integers(0, EXPERTS + 1), st.floats(0, 1), st.floats(1, 3))
def test_lirs_obeys_its_options(events: Events, capacity: int, hir: float, stack: float) -> None:
    policy = build("lirs", events, capacity, hir=hir, stack=stack)

    def make(slots: int) -> replacing.LIRS:
        return replacing.LIRS(slots, hir, stack)

    assert outcomes(policy, events) == replacing.replay(make, events, capacity, False)


@given(unions(), st.integers(0, EXPERTS), st.integers(1, 30))
def test_lfru_ages_by_its_ticks(events: Events, capacity: int, ticks: int) -> None:
    policy = build("lfru", events, capacity, ticks=ticks)
    assert outcomes(policy, events) == naive.replay(naive.lfru(ticks), events, capacity)


@given(unions(), st.integers(0, EXPERTS), st.sampled_from(ADMISSIONS))
def test_least_stale_by_last_use_is_lru(events: Events, capacity: int, admission: str) -> None:
    policy = build("least_stale", events, capacity, admission, age="use")
    assert outcomes(policy, events) == outcomes(build("lru", events, capacity), events)


@given(unions(), st.integers(0, EXPERTS), st.sampled_from([0.5, 0.9, 1.0]))
def test_the_activation_matrix_fades(events: Events, capacity: int, fade: float) -> None:
    policy = build("activation_matrix", events, capacity, fade=fade)
    assert outcomes(policy, events) == naive.replay(naive.activation_share(fade), events, capacity)


@given(unions(), st.integers(0, EXPERTS), st.sampled_from([0.1, 0.9, 1.0]))
def test_mrs_weighs_the_newest_scores(events: Events, capacity: int, weight: float) -> None:
    policy = build("mrs", events, capacity, weight=weight)
    expected = naive.replay(naive.mean_recent_score(weight), events, capacity)
    assert outcomes(policy, events) == expected


@given(unions(), st.integers(0, EXPERTS), st.sampled_from([0.001, 0.5, 0.9, 1.0]))
def test_lfu_with_decay_equals_exact_fading_counts(
    events: Events, capacity: int, decay: float
) -> None:
    policy = build("lfu_decay", events, capacity, decay=decay)
    assert outcomes(policy, events) == naive.replay(naive.lfu_decay(decay), events, capacity)


@given(unions(), st.integers(0, EXPERTS), st.integers(1, 30), st.sampled_from(ADMISSIONS))
def test_a_window_sees_so_far_and_no_further(
    events: Events, capacity: int, window: int, admission: str
) -> None:
    policy = build("min_window", events, capacity, admission, window=window)
    worth = naive.seen_within(window, events)
    assert outcomes(policy, events) == naive.replay(worth, events, capacity, admission == "always")


@given(unions(), st.integers(0, EXPERTS))
def test_a_window_over_everything_hits_as_often_as_min(events: Events, capacity: int) -> None:
    wide, least = (
        sum(len(hits) for hits, _ in outcomes(build(*policy), events))
        for policy in (("min_window", events, capacity, "bypass", 0), ("min", events, capacity))
    )
    assert wide <= least
    whole = build("min_window", events, capacity, window=len(events) + 1)
    assert sum(len(hits) for hits, _ in outcomes(whole, events)) == least


@given(unions(), st.integers(0, EXPERTS), st.sampled_from([0.5, 0.9]))
def test_scaling_counts_back_before_they_overflow_changes_nothing(
    events: Events, capacity: int, decay: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moesim.policies.eviction.lfu._RESCALE_ABOVE", 3.0)
        found = outcomes(build("lfu_decay", events, capacity, decay=decay), events)
    assert found == naive.replay(naive.lfu_decay(decay), events, capacity)


@pytest.mark.parametrize("decay", [1e-3, 1e-199, 5e-324])
def test_counts_stay_finite_however_steep_the_decay(decay: float) -> None:
    policy: Any = build("lfu_decay", [], 2, decay=decay)
    for number in range(500):
        policy.decide(View(0, [number % 3]))
    assert all(np.isfinite(policy.rank[key]).all() for key in range(3))
    assert set(policy.book) == {499 % 3, 498 % 3}


@given(unions(), st.integers(0, EXPERTS))
def test_without_decay_counts_are_cumulative(events: Events, capacity: int) -> None:
    assert outcomes(build("lfu_decay", events, capacity, decay=1.0), events) == outcomes(
        build("lfu", events, capacity), events
    )


@given(unions(), st.integers(0, EXPERTS + 1))
def test_static_equals_its_naive_version_access_by_access(events: Events, capacity: int) -> None:
    expected = naive.static(events, UNIVERSE, capacity)
    assert outcomes(build("static", events, capacity), events) == expected


def test_static_keeps_what_its_profile_says(tmp_path: Path) -> None:
    asked: list[Any] = []

    def popularity(profile: Any) -> dict[int, int]:
        asked.append(profile)
        return {3: 5, 1: 9}

    context = CacheContext(
        capacity=2,
        universe=UNIVERSE,
        admission="bypass",
        rng=np.random.default_rng(0),
        popularity=popularity,
    )
    policy = find("eviction", "static")(context, parse_options(find("eviction", "static"), {}))
    assert list(policy.preload()) == [1, 3]
    options = parse_options(find("eviction", "static"), {"profile": "elsewhere"})
    find("eviction", "static")(context, options)
    assert asked == [None, Path("elsewhere")]


def test_popularity_counts_the_rows_that_use_each_key() -> None:
    trace = Trace.from_arrays(
        expert_ids=[[[0, 1], [2, -1]], [[0, 2], [2, 1]]], seq_len=[2], num_experts=3
    )
    assert trace_popularity(trace) == {0: 2, 1: 1, 2: 1, 3: 0, 4: 1, 5: 2}


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", [*DEMAND, "min"])
@given(events=unions(), capacity=st.integers(0, EXPERTS + 1), seed=st.integers(0, 9))
def test_no_key_leaves_without_need_nor_stays_beyond_capacity(
    name: str, admission: str, events: Events, capacity: int, seed: int
) -> None:
    policy = build(name, events, capacity, admission, seed)
    before: set[int] = set()
    for event, (hits, after) in zip(events, outcomes(policy, events), strict=True):
        assert hits == before.intersection(event)
        assert len(after) == min(capacity, len(before.union(event)))
        if admission == "always":
            assert len(after.intersection(event)) == min(capacity, len(event))
        before = after


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("name", [*DEMAND, "min", "static"])
@given(events=unions(), capacity=st.integers(0, EXPERTS), data=st.data())
def test_the_book_survives_prefetches_between_events(
    name: str, admission: str, events: Events, capacity: int, data: st.DataObject
) -> None:
    if name == "static":
        admission = "bypass"
    policy = build(name, events, capacity, admission)
    resident = set(policy.preload())
    for event in events:
        protected = data.draw(st.frozensets(st.integers(0, EXPERTS - 1), max_size=2))
        for key in data.draw(st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=2)):
            if key in resident:
                continue
            if len(resident) >= capacity:
                victim = policy.victim(protected)
                if victim is None:
                    assert name == "static" or resident <= protected
                    continue
                assert victim in resident - protected
                policy.remove(victim)
                resident.remove(victim)
            policy.insert(key)
            resident.add(key)
            assert set(policy.book) == resident
        leavers = policy.decide(View(0, event))
        assert resident.union(event).issuperset(leavers)
        resident = resident.union(event).difference(leavers)
        assert set(policy.book) == resident
        assert len(resident) <= capacity


VICTIMS: dict[str, int] = {
    "lru": 1,
    "fifo": 0,
    "lfu": 1,
    "lfu_in_cache": 1,
    "lfu_decay": 1,
    "min": 2,
    "lfru": 1,
    "least_stale": 1,
    "activation_matrix": 1,
    "mrs": 1,
    "fmoe": 1,
    "arc": 1,
    "lirs": 0,  # 2 was reused while it was in the stack, so it took the place of 0
    "s3_fifo": 0,  # one reuse is not enough to enter the main queue
    "sieve": 1,
}


@pytest.mark.parametrize("name", VICTIMS)
def test_the_victim_of_a_prefetch_is_the_key_that_an_event_would_evict(name: str) -> None:
    events = [[0, 1, 2], [2], [0], [1, 0]]
    policy = build(name, events, 3)
    for event in events[:3]:
        assert not policy.decide(View(0, event))
    assert policy.victim(()) == VICTIMS[name]
    assert policy.victim({VICTIMS[name]}) not in (None, VICTIMS[name])
    assert policy.victim({0, 1, 2}) is None


@pytest.mark.parametrize("admission", ADMISSIONS)
@settings(max_examples=60)
@given(events=unions(experts=5, most=8), capacity=st.integers(0, 5))
def test_min_equals_the_best_of_all_keep_sets(
    admission: str, events: Events, capacity: int
) -> None:
    always = admission == "always"
    hits = sum(len(hit) for hit, _ in outcomes(build("min", events, capacity, admission), events))
    assert hits == naive.most_hits(events, capacity, always)


@pytest.mark.parametrize("name", DEMAND)
@given(events=unions(), capacity=st.integers(0, EXPERTS), seed=st.integers(0, 9))
def test_min_hits_at_least_as_often_as_any_demand_policy(
    name: str, events: Events, capacity: int, seed: int
) -> None:
    best = {
        admission: replay_hits(build("min", events, capacity, admission), events)
        for admission in ADMISSIONS
    }
    assert best["bypass"] >= best["always"]
    for admission in ADMISSIONS:
        policy = build(name, events, capacity, admission, seed)
        assert replay_hits(policy, events) <= best[admission]


def test_min_refuses_another_future_than_the_promised_one() -> None:
    policy = build("min", [[0, 1], [2]], 2)
    policy.decide(View(0, [0, 1]))
    with pytest.raises(InvariantError, match="event 1 is not the one MIN was promised"):
        policy.decide(View(0, [3]))
    policy.decide(View(0, [2]))
    with pytest.raises(InvariantError, match="event 2 is not"):
        policy.decide(View(0, [2]))


def test_policies_without_the_data_they_need_say_so() -> None:
    nothing = CacheContext(2, UNIVERSE, "bypass", np.random.default_rng(0))
    with pytest.raises(UsageError, match="min needs to know all layer events"):
        MIN(nothing)
    with pytest.raises(UsageError, match="static needs popularity counts"):
        find("eviction", "static")(nothing)
    with pytest.raises(UsageError, match="static never admits"):
        build("static", [], 2, "always")


def test_random_draws_its_victims_uniformly() -> None:
    drawn = Counter(
        tuple(sorted(build("random", [], 4, seed=seed).decide(View(0, [0, 1, 2, 3, 4, 5]))))
        for seed in range(3000)
    )
    assert len(drawn) == 15
    # Chi-square with 14 degrees of freedom exceeds 36.1 once in a thousand times.
    assert sum((count - 200) ** 2 / 200 for count in drawn.values()) < 36.1


@given(unions(), st.integers(0, EXPERTS), st.integers(0, 9), st.sampled_from(ADMISSIONS))
def test_random_is_decided_by_its_stream_alone(
    events: Events, capacity: int, seed: int, admission: str
) -> None:
    twice = [outcomes(build("random", events, capacity, admission, seed), events) for _ in "ab"]
    assert twice[0] == twice[1]


def test_only_bounds_are_clairvoyant() -> None:
    seers = [name for name in names("eviction") if find("eviction", name).clairvoyant]
    assert seers == ["min", "min_window"]


@pytest.mark.parametrize("name", DEMAND)
@given(events=unions(), capacity=st.integers(0, EXPERTS), other=unions())
def test_a_demand_policy_decides_without_the_future(
    name: str, events: Events, capacity: int, other: Events
) -> None:
    promised, replaced = (build(name, future, capacity) for future in (events, other))
    assert outcomes(promised, events) == outcomes(replaced, events)


class Serving(View):
    """Shows the requests of its step."""

    def __init__(self, event: list[int], requests: set[int]) -> None:
        super().__init__(0, event, [1] * len(event))
        self._requests = tuple(sorted(requests))

    @property
    def requests(self) -> tuple[int, ...]:
        return self._requests


@given(
    events=unions(),
    capacity=st.integers(0, EXPERTS),
    served=st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=2), min_size=25, max_size=25),
)
def test_an_activation_matrix_starts_anew_where_no_request_goes_on(
    events: Events, capacity: int, served: list[set[int]]
) -> None:
    def starts(now: int) -> int:
        anew = [at for at in range(1, now + 1) if served[at].isdisjoint(served[at - 1])]
        return anew[-1] if anew else 0

    policy = build("activation_matrix", events, capacity, fade=1.0)
    expected = naive.replay(naive.activation_share(1.0, starts), events, capacity)
    resident: set[int] = set()
    for event, requests, (hits, after) in zip(events, served, expected, strict=False):
        assert resident.intersection(event) == hits
        resident = resident.union(event).difference(policy.decide(Serving(event, requests)))
        assert resident == after


@given(
    capacity=st.integers(0, 6),
    moves=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 11), min_size=1)), max_size=20),
)
def test_drop_after_use_keeps_what_was_prefetched_until_its_layer_is_computed(
    capacity: int, moves: list[tuple[bool, set[int]]]
) -> None:
    """Three layers of four experts; a move prefetches keys, or is an event of one layer."""
    policy = build("drop_after_use", [], capacity)
    policy._experts = 4  # type: ignore[attr-defined]
    kept: list[int] = []
    for prefetches, keys in moves:
        if not prefetches:
            layer = min(keys) // 4
            union = [key for key in keys if key // 4 == layer]
            gone = {key for key in kept if key // 4 == layer}
            assert set(policy.decide(View(layer, union))) == gone | set(union)
            kept = [key for key in kept if key not in gone]
        for key in sorted(keys) if prefetches else ():
            if key in kept:
                continue
            if len(kept) == capacity:
                victim = policy.victim(keys)
                assert victim == next((old for old in kept if old not in keys), None)
                if victim is None:
                    continue
                policy.remove(victim)
                kept.remove(victim)
            policy.insert(key)
            kept.append(key)
        assert list(policy.book) == kept


def test_the_document_lists_every_policy() -> None:
    table = (ROOT / "docs/eviction.md").read_text(encoding="utf-8").split("\n## ")[0]
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(listed) == names("eviction")


def test_every_policy_has_an_oracle() -> None:
    assert set(names("eviction")) == {*ORACLES, *REPLACING, "static", "random", "drop_after_use"}
