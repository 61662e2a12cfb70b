"""The curve of a policy: against published tables, plain replay, and hand-made cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import eviction as naive
from tiny_traces import save_sharded, tiny_trace

from moesim.errors import TraceError, UsageError
from moesim.policies import find, names
from moesim.policies.eviction import LRU, CacheContext
from moesim.simulate.curve import Stream, curve, replay_hits, stack_hits
from moesim.trace import Trace, load_trace

TASKS = [
    "intent",
    *(pytest.param(task, marks=pytest.mark.slow) for task in ("law", "summary", "translation")),
]
Curve = dict[int, float]

# Name in the reference table: name here, scope, tolerance (its LFU breaks ties arbitrarily).
REFERENCE: dict[str, tuple[str, Any, float]] = {
    "LRU": ("lru", "per_layer", 0.001),
    "LFU": ("lfu", "per_layer", 0.002),
    "LFUd": ("lfu_decay", "per_layer", 0.002),
    "static": ("static", "per_layer", 0.001),
    "belady": ("min", "per_layer", 0.001),
    "LRUglobal": ("lru", "global", 0.001),
}


@pytest.mark.parametrize("column", REFERENCE)
@pytest.mark.parametrize("task", TASKS)
def test_hit_rates_of_real_routing_are_those_of_the_reference_table(
    task: str, column: str, shared: Path, esft: Callable[[str], Trace]
) -> None:
    table = json.loads((shared / "reference/hit_rates.json").read_text())["results"]
    expected = {
        int(capacity): row[column]
        for capacity, row in table[f"esft_deepseek_v2_lite/{task}"]["caps"].items()
    }
    assert sorted(expected) == [8, 12, 16, 24, 32, 48]
    policy, scope, tolerance = REFERENCE[column]
    found = curve(esft(task), [policy], scope=scope, capacities=expected)[policy]
    assert found == pytest.approx(expected, abs=tolerance)


def test_the_toy_trace_has_twelve_hits_and_eighteen_misses(shared: Path) -> None:
    toy = json.loads((shared / "data/fixtures/lru_toy_trace.json").read_text())
    steps = toy["steps_same_for_every_layer"]
    trace = Trace.from_arrays(
        expert_ids=np.repeat(np.array(steps)[:, None, :], toy["layers"], axis=1),
        seq_len=[len(steps)],
        num_experts=toy["experts"],
    )
    rate = curve(trace, ["lru"], capacities=[toy["capacity_per_layer"]])["lru"][2]
    assert rate * 30 == pytest.approx(toy["expected"]["hits"]) == 12
    assert (1 - rate) * 30 == pytest.approx(toy["expected"]["misses"]) == 18


@pytest.mark.slow
@pytest.mark.parametrize("task", ["intent", "translation"])
def test_replaying_ids_one_by_one_worsens_lru_and_leaves_static_alone(
    task: str, esft: Callable[[str], Trace]
) -> None:
    capacities = range(16, 49)
    atomic, sequential = (
        curve(esft(task), ["lru", "static"], capacities=capacities, batch=8, replay=replay)
        for replay in ("atomic", "sequential")
    )
    assert sequential["static"] == atomic["static"]
    inflation = [(1 - sequential["lru"][c]) / (1 - atomic["lru"][c]) for c in capacities]
    assert min(inflation) > 1.15
    assert 1.4 < max(inflation) < 1.6


def test_replaying_ids_one_by_one_reverses_rankings(esft: Callable[[str], Trace]) -> None:
    whole = esft("law")
    trace = Trace.from_arrays(
        expert_ids=whole.expert_ids[:][:, ::6], seq_len=whole.requests["num_rows"], num_experts=64
    )
    atomic, sequential = (
        curve(trace, ["lru", "lfu_in_cache"], capacities=[24], batch=8, replay=replay)
        for replay in ("atomic", "sequential")
    )
    assert atomic["lru"][24] > atomic["lfu_in_cache"][24] + 0.05
    assert sequential["lru"][24] < sequential["lfu_in_cache"][24] - 0.05


def stream(unions: list[list[int]], experts: int) -> Stream:
    return Stream(unions, range(experts), 0)


def one_by_one(
    name: str, unions: list[list[int]], experts: int, deepest: int, **options: Any
) -> list[int]:
    """Return the hits at each capacity, from one replay for each."""
    policy = find("eviction", name)
    counts = np.bincount([key for union in unions for key in union], minlength=experts)
    return [
        replay_hits(
            policy(
                CacheContext(
                    capacity,
                    range(experts),
                    "bypass",
                    np.random.default_rng(0),
                    popularity=lambda profile: dict(enumerate(counts.tolist())),
                    future=unions,
                ),
            ),
            unions,
        )
        for capacity in range(deepest + 1)
    ]


STACK = sorted(name for name in names("eviction") if find("eviction", name).stack)


def test_these_policies_give_all_capacities_in_one_pass() -> None:
    assert STACK == ["lfu", "lfu_decay", "lru", "min", "static"]


@pytest.mark.parametrize("name", STACK)
@given(
    unions=st.lists(st.lists(st.integers(0, 6), unique=True, max_size=7), max_size=30),
    deepest=st.integers(0, 9),
)
def test_one_pass_over_the_stack_equals_a_replay_at_every_capacity(
    name: str, unions: list[list[int]], deepest: int
) -> None:
    policy = find("eviction", name)
    found = stack_hits(policy, policy.Options(), stream(unions, 7), deepest)
    assert found == one_by_one(name, unions, 7, deepest)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", STACK)
def test_one_pass_equals_a_replay_at_every_capacity_on_real_routing(
    name: str, batch: int, esft: Callable[[str], Trace]
) -> None:
    rows = esft("intent").expert_ids[:600, 3].tolist()
    unions = [
        list(dict.fromkeys(key for row in rows[i : i + batch] for key in row))
        for i in range(0, len(rows), batch)
    ]
    policy = find("eviction", name)
    found = stack_hits(policy, policy.Options(), stream(unions, 64), 64)
    assert found == one_by_one(name, unions, 64, 64)


def curve_by_hand(
    trace: Trace, capacity: int, batch: int = 1, scope: str = "per_layer", sequential: bool = False
) -> float:
    """Return the hit rate of LRU from a slow, literal replay."""
    queue = [
        list(range(trace.slice(r).start, trace.slice(r).stop)) for r in range(trace.num_requests)
    ]
    active: list[list[int]] = []
    caches: dict[int, list[list[int]]] = {}
    while queue or active:
        active = [rows for rows in active if rows]
        while queue and len(active) < batch:
            rows = queue.pop(0)
            if rows:
                active.append(rows)
        step = [rows.pop(0) for rows in active if rows]
        for layer in range(trace.num_layers):
            ids = [k for row in step for k in trace.expert_ids[row][layer].tolist()]
            union = [
                layer * trace.num_experts + k for k in dict.fromkeys(ids) if k != trace.meta.unused
            ]
            events = [[key] for key in union] if sequential else [union]
            caches.setdefault(layer if scope == "per_layer" else 0, []).extend(events)
    slots = capacity if scope == "per_layer" else capacity * trace.num_layers
    outcomes = [o for events in caches.values() for o in naive.replay(naive.lru, events, slots)]
    accesses = sum(len(event) for events in caches.values() for event in events)
    return sum(len(hits) for hits, _ in outcomes) / accesses


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("sequential", [False, True])
def test_scope_batch_and_replay_mean_what_they_say(
    batch: int, scope: Any, sequential: bool
) -> None:
    trace = tiny_trace()
    found = curve(
        trace,
        ["lru"],
        scope=scope,
        batch=batch,
        replay="sequential" if sequential else "atomic",
        capacities=range(6),
    )["lru"]
    expected = {c: curve_by_hand(trace, c, batch, scope, sequential) for c in range(6)}
    assert found == pytest.approx(expected)
    assert found[0] == 0


def test_batches_form_in_lock_step_and_a_waiting_request_takes_a_free_place() -> None:
    # Requests of 3, 1, 1 and 0 rows and 2 places: rows 0 and 3, 1 and 4, 2.
    trace = Trace.from_arrays(
        expert_ids=[[[0]], [[1]], [[2]], [[3]], [[0]]],
        seq_len=[3, 1, 1, 0],
        prompt_tokens=[1, 1, 1, 1],
        prompt_rows="absent",
        num_experts=4,
    )
    assert curve(trace, ["lru"], batch=2, capacities=[2, 1])["lru"] == {2: 1 / 5, 1: 0}
    # Three places: rows 0, 3 and 4 together want 0 twice, which is one access.
    assert curve(trace, ["lru"], batch=3, capacities=[4])["lru"] == {4: 0 / 4}


def test_unused_places_are_no_accesses() -> None:
    ids = [[[0, -1]], [[-1, 0]], [[1, 0]]]
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[3], num_experts=2)
    assert curve(trace, ["lru"], capacities=[2])["lru"][2] == 2 / 4


@pytest.mark.parametrize("name", names("eviction"))
def test_the_default_is_every_capacity_and_the_last_misses_only_what_is_new(name: str) -> None:
    trace = tiny_trace()
    found = curve(trace, [name])[name]
    assert list(found) == [1, 2, 3, 4, 5]
    used = [set(np.unique(trace.expert_ids[:, layer])) - {255} for layer in range(2)]
    accesses = int((trace.expert_ids[:] != 255).sum())
    # One never changes, and one keeps nothing.
    never = {"static": 0, "drop_after_use": accesses}
    new = never.get(name, sum(map(len, used)))
    assert found[5] == pytest.approx(1 - new / accesses)


@pytest.mark.parametrize("name", ["lru", "lfu", "lfu_decay", "min", "static"])
def test_more_capacity_never_hurts_a_stack_policy(name: str) -> None:
    rates = list(curve(tiny_trace(), [name])[name].values())
    assert rates == sorted(rates)


@pytest.mark.parametrize("admission", ["bypass", "always"])
def test_the_admission_option_is_followed(admission: str) -> None:
    trace = tiny_trace()
    events = [
        [[key for key in row[layer] if key != 255] for row in trace.expert_ids[:].tolist()]
        for layer in range(2)
    ]
    for capacity in range(1, 5):
        found = curve(trace, ["lfu"], capacities=[capacity], admission=admission)["lfu"]
        outcomes = [
            outcome
            for unions in events
            for outcome in naive.replay(naive.lfu, unions, capacity, admission == "always")
        ]
        accesses = sum(len(union) for unions in events for union in unions)
        assert found[capacity] == sum(len(hits) for hits, _ in outcomes) / accesses


def test_few_capacities_of_a_big_cache_are_replayed_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moesim.policies import register, registry
    from moesim.policies.eviction import LFU

    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    class Counting(LFU):
        """A stack policy for which there are no arrays."""

        stack = True

    register("eviction", "counting")(Counting)
    trace = tiny_trace()
    every = curve(trace, ["counting", "lfu"], scope="global")
    assert every["counting"] == every["lfu"]
    monkeypatch.setattr("moesim.simulate.curve._REPLAYS_PER_STACK_PASS", 0)
    assert curve(trace, ["counting", "lfu"], scope="global") == every


def test_shards_change_nothing(tmp_path: Path) -> None:
    whole, sharded = tiny_trace(), save_sharded(tiny_trace(), tmp_path / "trace", 4)
    assert curve(whole, names("eviction")) == curve(sharded, names("eviction"))


def test_rows_count_whatever_they_are_rows_of() -> None:
    decoded = tiny_trace(prompt_rows="absent", prompt_tokens=[9, 9, 9])
    assert curve(decoded, ["lru"]) == curve(tiny_trace(), ["lru"])


def test_the_seed_moves_random_and_nothing_else() -> None:
    trace = tiny_trace()
    policies = names("eviction")
    first, again, other = (curve(trace, policies, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [name for name in policies if first[name] != other[name]] == ["random"]


def test_caches_of_equal_layers_draw_for_themselves() -> None:
    """Two layers that want the same: random evictions of the second are not those of the first."""
    ids = np.random.default_rng(0).integers(0, 8, (200, 1, 1))
    alone, twice = (
        curve(
            Trace.from_arrays(
                expert_ids=np.tile(ids, (1, layers, 1)), seq_len=[200], num_experts=8
            ),
            ["random"],
            seed=3,
        )["random"]
        for layers in (1, 2)
    )
    assert alone[8] == twice[8]
    assert any(alone[capacity] != twice[capacity] for capacity in range(2, 8))


def test_options_reach_the_policy() -> None:
    trace = tiny_trace()
    steep, flat = (curve(trace, [("lfu_decay", {"decay": d})])["lfu_decay"] for d in (0.01, 1.0))
    assert steep != flat
    assert flat == curve(trace, ["lfu"])["lfu"]


def test_a_part_of_the_replayed_trace_to_learn_from_is_refused() -> None:
    with pytest.raises(UsageError, match="static learns from a part of a trace, and a curve"):
        curve(tiny_trace(), [("static", {"train": 0.5})])


def test_a_static_placement_may_learn_from_another_trace(tmp_path: Path) -> None:
    trace = tiny_trace()
    trace.save(tmp_path / "itself")
    other = tiny_trace(expert_ids=np.tile([[3, 4]], (11, 2, 1)))
    other.save(tmp_path / "other")
    rates = [
        curve(trace, [("static", {"profile": profile})], capacities=[2])["static"][2]
        for profile in (None, str(tmp_path / "itself"), str(tmp_path / "other"))
    ]
    used = trace.expert_ids[:][trace.expert_ids[:] != 255]
    assert rates[0] == rates[1] >= rates[2]
    assert rates[2] == pytest.approx(np.isin(used, [3, 4]).mean())
    with pytest.raises(TraceError, match="no such trace folder"):
        curve(trace, [("static", {"profile": str(tmp_path / "nowhere")})])
    tiny_trace(num_experts=6, probabilities=None).save(tmp_path / "wider")
    sizes = r"wider' has 2 layers of 6 experts, but the trace has 2 layers of 5"
    with pytest.raises(UsageError, match=sizes):
        curve(trace, [("static", {"profile": str(tmp_path / "wider")})])


def test_progress_is_reported_for_each_policy_and_stream() -> None:
    reported: list[tuple[str, int, int]] = []
    curve(tiny_trace(), ["lru", "lfu"], progress=lambda *step: reported.append(step))
    assert reported == [(name, done, 2) for name in ("lru", "lfu") for done in (0, 1, 2)]


def test_a_policy_that_inherits_another_s_stack_is_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moesim.policies import register, registry

    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    class Forgetful(LRU):
        """A policy that keeps no expert."""

        def decide(self, view: Any) -> list[int]:
            return list(view.union)

    register("eviction", "forgetful")(Forgetful)
    assert set(curve(tiny_trace(), ["forgetful"])["forgetful"].values()) == {0}


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"policies": ["lruu"]}, "unknown eviction policy 'lruu'; did you mean 'lru'"),
    ({"policies": [("lru", {"depth": 1})]}, "no option 'depth'"),
    ({"policies": ["static"], "admission": "always"}, "static never admits"),
    ({"capacities": []}, r"capacities must be numbers ≥ 0, not \[\]"),
    ({"capacities": [4, -1]}, "capacities must be"),
    ({"capacities": [5, 6]}, "capacity 6 is more than the 5 experts of a layer"),
    ({"capacities": [10**30], "scope": "global"}, "is more than the 5 experts of a layer"),
    ({"seed": -1}, "seed must not be negative, not -1"),
    ({"batch": 0}, "batch must be at least 1, not 0"),
    ({"scope": "everywhere"}, "scope must be per_layer or global, not 'everywhere'"),
    ({"replay": "backwards"}, "replay must be atomic or sequential, not 'backwards'"),
    ({"admission": "sometimes"}, "admission must be bypass or always, not 'sometimes'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        curve(tiny_trace(), **{"policies": ["lru"], **changes})


def test_a_trace_that_wants_nothing_has_no_hit_rate() -> None:
    trace = Trace.from_arrays(expert_ids=[[[-1]]], seq_len=[1], num_experts=3)
    with pytest.raises(UsageError, match="no row of the trace uses any expert"):
        curve(trace, ["lru"])


def test_a_batch_of_more_than_all_requests_is_all_requests() -> None:
    trace = tiny_trace()
    assert curve(trace, ["lru"], batch=10**30) == curve(trace, ["lru"], batch=trace.num_requests)


def test_ids_that_no_trace_may_hold_are_found(tmp_path: Path) -> None:
    for number, reason in ((77, "expert id 77 is out of range"), (0, "expert id 0 is repeated")):
        path = tmp_path / str(number)
        tiny_trace().save(path)
        ids = np.load(path / "expert_ids-00000.npy")
        ids[5, 1] = [0, number]
        np.save(path / "expert_ids-00000.npy", ids)
        with pytest.raises(TraceError, match=f"row 5, layer 1.*: {reason}"):
            curve(load_trace(path), ["lfu"])
