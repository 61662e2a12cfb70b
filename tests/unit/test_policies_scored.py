"""Policies of expert caches that weigh keys by layer, by tokens, by passes and by gate scores."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import plan_of, run_on, scored_trace, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError, UsageError
from moesim.executor.settings import Serving
from moesim.policies import View, find, parse_options
from moesim.policies.eviction import CacheContext, Eviction
from moesim.simulate.curve import curve

LAYERS, EXPERTS = 3, 4
Pass = list[dict[int, int]]  # by layer: the tokens of each wanted key

passes = st.lists(
    st.tuples(
        *(
            st.dictionaries(
                st.integers(layer * EXPERTS, (layer + 1) * EXPERTS - 1),
                st.integers(1, 5),
                max_size=EXPERTS,
            )
            for layer in range(LAYERS)
        )
    ),
    max_size=8,
)


class Seen(View):
    """A view with gate weights or probabilities."""

    def __init__(
        self,
        layer: int,
        union: Sequence[int],
        weights: Sequence[float] = (),
        probabilities: Sequence[float] = (),
    ) -> None:
        super().__init__(layer, union, [1] * len(union))
        self._weights, self._probabilities = weights, probabilities

    def gate_weights(self) -> Sequence[float]:
        return self._weights

    def probabilities(self) -> Sequence[float]:
        return self._probabilities


def build(name: str, capacity: int, top_k: int = 0, **options: Any) -> Any:
    """Return the policy of one cache for all layers."""
    context = CacheContext(
        capacity=capacity,
        universe=range(LAYERS * EXPERTS),
        admission="bypass",
        rng=np.random.default_rng(0),
        experts_per_layer=EXPERTS,
        top_k=top_k,
    )
    policy = find("eviction", name)
    return policy(context, parse_options(policy, options))


def best(worth: dict[int, Any], capacity: int) -> set[int]:
    return set(sorted(worth, key=lambda key: worth[key], reverse=True)[:capacity])


@given(passes, st.integers(0, LAYERS * EXPERTS), st.booleans())
def test_the_activation_matrix_weighs_the_share_of_a_layer_by_its_depth(
    trace: list[Pass], capacity: int, visits: bool
) -> None:
    policy: Eviction = build("activation_matrix", capacity, fade=1.0, visits=visits)
    resident: set[int] = set()
    tokens, used, admitted = dict[int, int](), dict[int, int](), dict[int, int]()
    clock = 0
    for step in trace:
        for layer, wanted in enumerate(step):
            for key, count in wanted.items():
                clock += 1
                used[key] = clock
                tokens[key] = tokens.get(key, 0) + count
                admitted[key] = admitted.get(key, 0) + 1
            worth = {}
            for key in resident.union(wanted):
                row = key // EXPERTS
                total = sum(n for other, n in tokens.items() if other // EXPERTS == row)
                share = Fraction(tokens[key], total) * (LAYERS - row)
                share *= admitted[key] if visits else 1
                worth[key] = (row == layer, share, LAYERS - row, used[key])
            expected = best(worth, capacity)
            leavers = policy.decide(View(layer, list(wanted), list(wanted.values())))
            resident = resident.union(wanted).difference(leavers)
            assert resident == expected
            for key in leavers:
                del admitted[key]


@given(passes, st.integers(0, LAYERS * EXPERTS))
def test_least_stale_evicts_keys_of_earlier_passes_first(trace: list[Pass], capacity: int) -> None:
    policy: Eviction = build("least_stale", capacity)
    resident: set[int] = set()
    touched, loaded = dict[int, int](), dict[int, int]()
    for number, step in enumerate(trace):
        for layer, wanted in enumerate(step):
            for key in wanted:
                touched[key] = number
                if key not in resident:
                    loaded[key] = len(loaded) + max(loaded.values(), default=0)
            worth = {key: (touched[key] == number, loaded[key]) for key in resident.union(wanted)}
            leavers = policy.decide(View(layer, list(wanted)))
            resident = resident.union(wanted).difference(leavers)
            assert resident == best(worth, capacity)


def test_a_prefetched_key_is_not_stale_in_its_pass() -> None:
    policy = build("least_stale", 3)
    policy.decide(View(0, [0]))
    policy.decide(View(1, [4]))
    policy.decide(View(0, [1]))  # a new pass: 0 and 4 are stale
    policy.remove(0)
    policy.insert(5)
    assert policy.victim(()) == 4
    assert policy.victim({4}) == 1


SCORES = st.lists(st.integers(0, 8), min_size=EXPERTS, max_size=EXPERTS)


@given(
    st.lists(st.tuples(st.integers(0, LAYERS - 1), SCORES), max_size=15),
    st.integers(0, LAYERS * EXPERTS),
    st.integers(1, EXPERTS),
    st.sampled_from(["mrs", "fmoe"]),
    st.booleans(),
)
def test_gate_scores_decide_by_their_published_formula(
    events: list[tuple[int, list[int]]], capacity: int, top_k: int, name: str, every: bool
) -> None:
    """The `top_k` highest scores are the union; with `every`, the trace records the others too."""
    policy = build(name, capacity, top_k=1)
    means: dict[int, float] = dict.fromkeys(range(LAYERS * EXPERTS), 0.0)
    sums, uses = dict.fromkeys(means, 0.0), dict.fromkeys(means, 0)
    rounds, used = [0] * LAYERS, dict[int, int]()
    resident: set[int] = set()
    for layer, scores in events:
        first = layer * EXPERTS
        keys = sorted(range(first, first + EXPERTS), key=lambda k: (-scores[k - first], k))
        union = keys[:top_k]
        shown = range(first, first + EXPERTS) if every else union
        total = sum(scores[key - first] for key in shown)
        share = {key: scores[key - first] / total for key in shown} if total else {}
        for key in range(first, first + EXPERTS):
            kept = share.get(key, 0.0) if key in keys[:2] else 0.0  # twice the top-k of 1
            means[key] = 0.5 * kept + 0.5 * means[key]
            sums[key] += share.get(key, 0.0)
        rounds[layer] += 1
        for key in union:
            uses[key] += 1
            used[key] = len(used) + max(used.values(), default=0) + 1
        worth = {key: (means[key], used[key]) for key in resident.union(union)}
        if name == "fmoe":
            products = {key: sums[key] * uses[key] / rounds[key // EXPERTS] for key in worth}
            worth = {key: (products[key], used[key]) for key in worth}
        weights = [scores[key - first] for key in union]
        view = Seen(layer, union, weights, scores if every else ())
        resident = resident.union(union).difference(policy.decide(view))
        assert resident == best(worth, capacity)


def test_mrs_keeps_as_many_scores_as_it_is_told() -> None:
    view = Seen(0, [0], probabilities=[0.4, 0.3, 0.2, 0.1])
    for options, count in (({}, 2), ({"keep": 3}, 3), ({"keep": 9}, 4)):
        policy = build("mrs", 4, top_k=1, **options)
        policy.decide(view)
        assert sum(policy.worth(key) > (0.0,) for key in range(4)) == count


@pytest.mark.parametrize("name", ["arc", "lirs", "s3_fifo", "sieve"])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=25), st.integers(1, 5))
def test_the_first_use_of_a_prefetched_key_is_no_reuse(
    name: str, keys: list[int], capacity: int
) -> None:
    """The cache is the same as if the key had been missed then."""
    found = []
    for ahead in (True, False):
        policy = build(name, capacity)
        if ahead:
            policy.insert(keys[0])
        books = []
        for key in keys:
            policy.decide(View(0, [key]))
            books.append(set(policy.book))
        found.append(books)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["mrs", "fmoe"])
def test_a_policy_that_needs_scores_is_refused_where_there_are_none(name: str) -> None:
    trace = tiny_trace(requests=2)
    bare = type(trace).from_arrays(
        expert_ids=trace.expert_ids[:],
        seq_len=trace.requests["num_rows"],
        num_experts=trace.num_experts,
        model_config=trace.meta.model_config,
    )
    chosen = {"policy": name, "slots": "3/layer"}
    with pytest.raises(ScenarioError, match=r"cache\.policy: .*scores.*--probabilities"):
        plan_of(tiny_scenario(cache=chosen), bare)
    with pytest.raises(ScenarioError, match=r"cache\.policy: .*write replay: atomic"):
        plan_of(tiny_scenario(cache=chosen, replay="sequential"), trace)
    with pytest.raises(UsageError, match=f"{name} weighs experts by the router's scores.*none"):
        curve(bare, [name])
    with pytest.raises(UsageError, match=f"{name} weighs the scores of a whole.*atomically"):
        curve(trace, [name], replay="sequential")
    with pytest.raises(UsageError, match="stay on the device where a model generates"):
        Serving(eviction=name)
    for scored in (trace, scored_trace(trace)):
        outcome = run_on(plan_of(tiny_scenario(cache=chosen), scored))
        assert sum(outcome.ledger.hits) > 0


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("name", ["mrs", "fmoe", "activation_matrix", "least_stale", "lfru", "arc"])
def test_a_curve_hits_what_a_run_of_one_request_a_time_hits(name: str, scope: Any) -> None:
    """The view of a curve shows layers and scores as that of a run does."""
    trace = scored_trace(tiny_trace(requests=3, prompt_tokens=1, output_tokens=12, stickiness=0.3))
    cache = {"policy": name, "scope": scope, "slots": "3/layer"}
    scenario = tiny_scenario(cache=cache, batching={"max_sequences": 1})
    outcome = run_on(plan_of(scenario, trace))
    accesses = sum(outcome.ledger.hits) + sum(outcome.ledger.demand_copies)
    rate = curve(trace, [name], scope=scope, capacities=[3])[name][3]
    assert rate == pytest.approx(sum(outcome.ledger.hits) / accesses)


def test_probabilities_change_what_mrs_keeps() -> None:
    trace = tiny_trace(requests=6, stickiness=0.3)
    chosen = {"policy": "mrs", "slots": "4/layer"}
    by_weights, by_scores = (
        run_on(plan_of(tiny_scenario(cache=chosen), each)).ledger.hits
        for each in (trace, scored_trace(trace))
    )
    assert by_weights != by_scores


def test_a_curve_shows_policies_the_layer_of_each_event() -> None:
    """In a global cache, the first layers are worth most to the activation matrix."""
    ids = np.array([[[0], [1]], [[2], [3]], [[0], [1]], [[2], [3]]])
    trace = type(tiny_trace()).from_arrays(expert_ids=ids, seq_len=[4], num_experts=4)
    found = curve(trace, ["activation_matrix"], scope="global", capacities=[1])
    policy = build_two_layers()
    resident: set[int] = set()
    hits = 0
    for row in ids:
        for layer, (expert,) in enumerate(row.tolist()):
            key = layer * 4 + expert
            hits += key in resident
            resident = (resident | {key}).difference(policy.decide(View(layer, [key])))
    assert found["activation_matrix"][1] * 8 == hits


def build_two_layers() -> Any:
    context = CacheContext(2, range(8), "bypass", np.random.default_rng(0), experts_per_layer=4)
    return find("eviction", "activation_matrix")(context)
