"""Curves by arrays and compiled loops: against the policies themselves, plain replay and runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import eviction as naive
from tiny_traces import tiny_trace
from workloads import plan_of, run_on, tiny_scenario
from workloads import tiny_trace as tiny_workload

from moesim.policies import find, parse_options
from moesim.simulate import priority, recency
from moesim.simulate.accesses import Accesses, cache_accesses, from_unions
from moesim.simulate.curve import curve, curve_hits
from moesim.simulate.priority import Ranking, counted_uses, next_use, priority_depths
from moesim.simulate.stack import walked_depths
from moesim.simulate.streams import Stream
from moesim.trace import Trace

KEYS = 7
Unions = list[list[int]]
unions_of_a_cache = st.lists(
    st.lists(st.integers(0, KEYS - 1), unique=True, max_size=KEYS), max_size=30
)
RANKINGS: dict[str, tuple[str, dict[str, float], Ranking]] = {
    "min": ("min", {}, next_use),
    "lfu": ("lfu", {}, counted_uses),
    "slow fading": ("lfu_decay", {"decay": 0.99}, Ranking(0.99)),
    "fast fading": ("lfu_decay", {"decay": 0.3}, Ranking(0.3)),
}
compiled_or_not = pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "numba"])


def needs_numba(compiled: bool) -> None:
    if compiled:
        pytest.importorskip("numba", reason="the extra `fast` is not installed")


def recency_by_hand(unions: Unions) -> list[int]:
    """Return the depth of each use in a list of keys, the last used first."""
    stack: list[int] = []
    depths = []
    for union in unions:
        depths += [stack.index(key) if key in stack else KEYS for key in union]
        for key in union:
            if key in stack:
                stack.remove(key)
            stack.insert(0, key)
    return depths


@given(unions=unions_of_a_cache, chunk=st.sampled_from([1, 3 * KEYS, 2**20]))
def test_depths_of_lru_are_places_in_a_list_by_last_use(unions: Unions, chunk: int) -> None:
    accesses, expected = from_unions(unions, range(KEYS)), recency_by_hand(unions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recency, "_CHUNK", chunk)
        assert recency.recency_depths(accesses).tolist() == expected
        patch.setattr(recency, "_COUNTED", chunk)
        patch.setattr(recency, "_MOST_COMPARED", 0)
        assert recency.recency_depths(accesses).tolist() == expected


def test_both_ways_to_the_depths_of_lru_agree_on_real_routing(
    esft: Callable[[str], Trace],
) -> None:
    accesses = cache_accesses(esft("intent"), "per_layer", 4, "atomic")[3]
    found = recency.recency_depths(accesses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recency, "_MOST_COMPARED", 0)
        patch.setattr(recency, "_COUNTED", 10_000)
        assert (recency.recency_depths(accesses) == found).all()


def walked(name: str, options: dict[str, float], unions: Unions, deepest: int) -> list[int]:
    """Return the depths that the policy itself gives, cut at `deepest`."""
    policy = find("eviction", name)
    stream = Stream(unions, range(KEYS), 0)
    depths = walked_depths(policy, parse_options(policy, options), stream)
    return [min(deepest, depth) for depth in depths]


@compiled_or_not
@pytest.mark.parametrize("ranking", RANKINGS)
@given(caches=st.lists(unions_of_a_cache, min_size=1, max_size=3), deepest=st.integers(0, KEYS))
def test_depths_by_arrays_are_those_that_the_policy_s_own_ranks_give(
    ranking: str, compiled: bool, caches: list[Unions], deepest: int
) -> None:
    needs_numba(compiled)
    name, options, how = RANKINGS[ranking]
    found = priority_depths(
        [from_unions(unions, range(KEYS)) for unions in caches], how, deepest, compiled=compiled
    )
    assert found is not None
    expected = [walked(name, options, unions, deepest) for unions in caches]
    assert [depths.tolist() for depths in found] == expected


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("ranking", ["min", "lfu", "slow fading"])
def test_numpy_and_numba_agree_on_real_routing(
    ranking: str, batch: int, esft: Callable[[str], Trace]
) -> None:
    needs_numba(True)
    caches = cache_accesses(esft("intent"), "per_layer", batch, "atomic")[:4]
    part = [
        Accesses(each.keys[: each.starts[600]], each.starts[:601], each.num_keys)
        for each in caches
        if each.num_events > 600
    ]
    how = RANKINGS[ranking][2]
    ways = [priority_depths(part, how, 40, compiled=compiled) for compiled in (False, True)]
    assert ways[0] is not None
    assert ways[1] is not None
    for depths, others in zip(*ways, strict=True):
        assert (depths == others).all()


def test_caches_are_taken_in_groups_that_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches = cache_accesses(tiny_trace(), "per_layer", 1, "atomic")
    whole = priority_depths(caches, next_use, 5, compiled=False)
    monkeypatch.setattr(priority, "_GROUP", 1)
    told: list[int] = []
    parts = priority_depths(caches, next_use, 5, compiled=False, told=told.append)
    assert whole is not None
    assert parts is not None
    assert [each.tolist() for each in parts] == [each.tolist() for each in whole]
    assert told == sorted(told)
    assert told[-1] == len(caches)


def long_trace() -> Trace:
    """Return a trace so long that weights of uses that grow by 1/0.9 an event would overflow."""
    ids = np.random.default_rng(5).zipf(1.4, (8000, 1, 1)) % 6
    return Trace.from_arrays(expert_ids=ids, seq_len=[8000], num_experts=6)


@compiled_or_not
def test_counts_that_were_scaled_down_rank_as_those_of_the_policy(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_numba(compiled)
    if not compiled:
        monkeypatch.setattr(priority, "_compiled_loop", lambda: None)
    trace, policy = long_trace(), ("lfu_decay", {"decay": 0.9})
    accesses = cache_accesses(trace, "per_layer", 1, "atomic")
    assert (priority_depths(accesses, Ranking(0.9), 6) is None) is not compiled
    found = curve(trace, [policy])["lfu_decay"]
    monkeypatch.setattr("moesim.simulate.curve.array_depths", lambda *_: None)
    monkeypatch.setattr("moesim.simulate.curve._REPLAYS_PER_STACK_PASS", 0)
    assert curve(trace, [policy])["lfu_decay"] == found


def test_a_curve_without_numba_is_that_with_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_numba(True)
    policies = ["lru", "lfu", "lfu_decay", "static", "min"]
    monkeypatch.setattr(priority, "_pays", lambda *_: True)
    compiled = curve(tiny_trace(), policies)
    monkeypatch.setattr(priority, "_compiled_loop", lambda: None)
    assert curve(tiny_trace(), policies) == compiled


def test_a_numba_that_cannot_be_loaded_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moesim.simulate.compiled_stack", None)
    assert priority._compiled_loop() is None
    assert priority._pays([], 5)  # as if it was loaded before
    assert curve(tiny_trace(), ["min"])["min"][5] > 0


def test_a_short_replay_does_not_load_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "moesim.simulate.compiled_stack", raising=False)
    short = cache_accesses(tiny_trace(), "per_layer", 1, "atomic")
    assert not priority._pays(short, 5)
    assert priority._pays([Accesses(np.zeros(0), np.zeros(10**6, np.int64), 64)], 64)


def test_a_loop_is_compiled_where_no_folder_can_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_numba(True)
    from moesim.serving.compiled import keep

    def njit(*functions: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        assert options in ({}, {"error_model": "numpy"})
        return functions[0]

    def number(values: list[int]) -> int:
        return len(values)

    monkeypatch.setattr(keep, "njit", njit)
    assert keep.kept(number, error_model="numpy")([1, 2]) == 2
    assert keep.kept(number)([1, 2]) == 2


# --- against replay and runs ----------------------------------------------------------------------

ORACLES: dict[str, Callable[..., Any]] = {
    "lru": lambda events: naive.lru,
    "lfu": lambda events: naive.lfu,
    "lfu_decay": lambda events: naive.lfu_decay(0.99),
    "min": naive.furthest_next_use,
}


def hits_by_hand(
    name: str, trace: Trace, capacity: int, batch: int, scope: str
) -> tuple[list[int], list[int]]:
    """Return the hits and accesses of each request, from a slow, literal replay.

    What several rows of a step want belongs to the first of them.
    """
    queue = [list(range(trace.num_rows))[trace.slice(r)] for r in range(trace.num_requests)]
    owner = {row: request for request, rows in enumerate(queue) for row in rows}
    active: list[list[int]] = []
    caches: dict[int, list[dict[int, int]]] = {}
    waiting = [rows for rows in queue if rows]
    while active or waiting:
        # A waiting request takes the place of one that has ended.
        active = [rows or (waiting.pop(0) if waiting else []) for rows in active]
        active = [rows for rows in active if rows]
        while waiting and len(active) < batch:
            active.append(waiting.pop(0))
        step = [rows.pop(0) for rows in active]
        for layer in range(trace.num_layers):
            wanted: dict[int, int] = {}
            for row in step:
                for expert in trace.expert_ids[row][layer].tolist():
                    if expert != trace.meta.unused:
                        wanted.setdefault(layer * trace.num_experts + expert, owner[row])
            caches.setdefault(layer if scope == "per_layer" else 0, []).append(wanted)
    hits, accesses = [0] * trace.num_requests, [0] * trace.num_requests
    slots = capacity if scope == "per_layer" else capacity * trace.num_layers
    experts = trace.num_experts
    for number, events in caches.items():
        universe = range(number * experts, (number + 1) * experts)
        if scope == "global":
            universe = range(trace.num_layers * experts)
        for wanted, hit in zip(events, _hit(name, events, slots, universe), strict=True):
            for key, request in wanted.items():
                hits[request] += key in hit
                accesses[request] += 1
    return hits, accesses


def _hit(
    name: str, events: Sequence[dict[int, int]], slots: int, universe: Sequence[int]
) -> list[set[int]]:
    """Return the hits of each event of one cache."""
    unions = [list(wanted) for wanted in events]
    if name == "static":
        return [hits for hits, _ in naive.static(unions, universe, slots)]
    return [hits for hits, _ in naive.replay(ORACLES[name](unions), unions, slots)]


def traces(seed: int) -> Trace:
    """Return a random trace of two layers, with unused places and an empty request."""
    rng = np.random.default_rng(seed)
    lengths = [*rng.integers(1, 5, 3).tolist(), 0]
    ids = np.array([[rng.permutation(5)[:3] for _ in range(2)] for _ in range(sum(lengths))])
    ids[rng.random(ids.shape) < 0.15] = -1
    return Trace.from_arrays(
        expert_ids=ids, seq_len=lengths, prompt_tokens=[1] * 4, prompt_rows="absent", num_experts=5
    )


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", ["lru", "lfu", "lfu_decay", "static", "min"])
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4))
def test_hits_of_each_request_are_those_of_a_replay_at_every_capacity(
    name: str, scope: Any, seed: int, batch: int
) -> None:
    trace = traces(seed)
    found = curve_hits(
        trace, [name], scope=scope, batch=batch, capacities=range(6), by_request=True
    )
    for column, capacity in enumerate(found.capacities):
        hits, accesses = hits_by_hand(name, trace, capacity, batch, scope)
        assert found.hits[name][:, column].tolist() == hits
        assert found.accesses.tolist() == accesses
    together = curve_hits(trace, [name], scope=scope, batch=batch, capacities=range(6))
    assert together.hits[name].tolist() == [found.hits[name].sum(axis=0).tolist()]


@pytest.mark.parametrize("name", ["arc", "fifo", "activation_matrix"])
def test_requests_have_their_own_hits_under_a_policy_that_is_replayed_too(name: str) -> None:
    trace = tiny_trace()
    shared: dict[str, Any] = {"capacities": [1, 2, 4], "batch": 2}
    apart = curve_hits(trace, [name], by_request=True, **shared)
    assert apart.hits[name].shape == (trace.num_requests, 3)
    assert (apart.hits[name] <= apart.accesses[:, None]).all()
    rates = curve(trace, [name], **shared)[name]
    assert dict(zip(apart.capacities, apart.rates(name).tolist(), strict=True)) == rates


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", ["lru", "lfu", "lfu_decay", "static", "min"])
def test_a_run_of_one_request_a_time_has_the_hits_of_the_curve_at_every_capacity(
    name: str, scope: Any
) -> None:
    trace = tiny_workload(requests=3, prompt_tokens=1, output_tokens=12, stickiness=0.3)
    found = curve_hits(trace, [name], scope=scope)
    simulated = []
    for capacity in found.capacities:
        cache = {"policy": name, "scope": scope, "slots": f"{capacity}/layer"}
        scenario = tiny_scenario(cache=cache, batching={"max_sequences": 1})
        simulated.append(sum(run_on(plan_of(scenario, trace)).ledger.hits))
    assert found.hits[name][0].tolist() == simulated


def test_lru_has_one_curve_for_both_admissions() -> None:
    both = partial(curve, tiny_trace(), ["lru"])
    assert both(admission="always") == both(admission="bypass")
    events = [
        [[key for key in row[layer] if key != 255] for row in tiny_trace().expert_ids[:].tolist()]
        for layer in range(2)
    ]
    for capacity, rate in both(admission="always")["lru"].items():
        outcomes = [
            outcome for unions in events
            for outcome in naive.replay(naive.lru, unions, capacity, always=True)
        ]  # fmt: skip
        accesses = sum(len(union) for unions in events for union in unions)
        assert rate == sum(len(hits) for hits, _ in outcomes) / accesses
