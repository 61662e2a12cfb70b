"""The slots of each layer: `cache.split`, its dynamic programme, and what it learns from."""

from __future__ import annotations

from collections import OrderedDict
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import TINY_CONFIG, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import BudgetError, ScenarioError
from moesim.scenario import Scenario, load_scenario
from moesim.serving.budget import split_slots
from moesim.simulate import prepare, result_of, simulate, summarise
from moesim.simulate.rundir import fingerprint
from moesim.simulate.split import (
    adapmoe_loads,
    cheapest_split,
    lru_hits,
    popular_uses,
    recorded_accuracy,
)
from moesim.trace import Trace

LAYERS, EXPERTS = 4, 8
BATCHING = {"token_budget": 2, "max_sequences": 2}


def skewed_trace(rows: int = 60, seed: int = 0, requests: int = 6) -> Trace:
    """Return a trace whose layer l uses 2 + 2 l experts only, so that layers need other slots."""
    rng = np.random.default_rng(seed)
    ids = np.array(
        [
            [rng.choice(2 + 2 * layer, 2, replace=False) for layer in range(LAYERS)]
            for _ in range(rows)
        ]
    )
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=[rows // requests] * requests,
        prompt_tokens=[2] * requests,
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    )


def slots_of(trace: Trace, **cache: Any) -> tuple[int, ...]:
    return plan_of(tiny_scenario(cache=cache, batching=BATCHING), trace).slots


# --- the programme -------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int, int]:
    """Return costs of shape [layers, E + 1], a total that can be split, and the least slots."""
    layers, most = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    least = draw(st.integers(0, 1))
    number = st.integers(-5, 5) if draw(st.booleans()) else st.floats(-4, 4, width=16)
    costs = [[draw(number) for _ in range(most + 1)] for _ in range(layers)]
    return np.array(costs), draw(st.integers(layers * least, layers * most)), least


@given(tables())
def test_the_programme_finds_the_cheapest_of_all_splits(case: Any) -> None:
    """Ties: the most even split, then the one that gives more to the first layers."""
    costs, total, least = case
    layers, most = costs.shape[0], costs.shape[1] - 1
    splits = [
        split for split in product(range(least, most + 1), repeat=layers) if sum(split) == total
    ]
    # Float16 numbers add up exactly here, so that equal sums are equal.
    best = min(
        splits,
        key=lambda split: (
            sum(costs[layer, slots] for layer, slots in enumerate(split)),
            sum(slots * slots for slots in split),
            [-slots for slots in split],
        ),
    )
    assert cheapest_split(costs, total, least=least) == list(best)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_layers_that_cost_the_same_get_the_uniform_split(
    layers: int, experts: int, data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, layers * experts))
    costs = np.tile(-np.arange(experts + 1), (layers, 1))
    assert cheapest_split(costs, total) == split_slots(total, layers, experts)


@pytest.mark.parametrize("total", [2, 13])
def test_a_total_that_no_split_has_is_an_error(total: int) -> None:
    with pytest.raises(ValueError, match=f"{total} slots cannot be split over 3 layers of 1 to 4"):
        cheapest_split(np.zeros((3, 5)), total, least=1)


def test_the_programme_is_exact_where_it_would_overflow_in_floats() -> None:
    large = 10**15
    costs = np.array([[0, -large, -large - 2], [0, -large, -large - 1]])
    assert cheapest_split(costs, 3) == [2, 1]


# --- what a layer costs --------------------------------------------------------------------------


def naive_lru_hits(rows: list[list[int]], slots: int) -> int:
    resident: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in rows:
        hits += sum(expert in resident for expert in row)
        for expert in reversed(row):  # within an event, the last expert counts as used last
            resident.pop(expert, None)
        for expert in row:
            resident[expert] = None
        while len(resident) > slots:
            resident.popitem(last=False)
    return hits


@given(
    st.lists(
        st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True), min_size=1, max_size=30
    )
)
def test_hits_of_lru_and_uses_are_those_of_a_plain_count(rows: list[list[int]]) -> None:
    ids = np.array(rows)
    assert lru_hits(ids, 6).tolist() == [naive_lru_hits(rows, slots) for slots in range(7)]
    flat = ids.ravel().tolist()
    counts = sorted((flat.count(expert) for expert in range(6)), reverse=True)
    assert popular_uses(ids, 6).tolist() == [sum(counts[:slots]) for slots in range(7)]


def test_unused_places_are_no_uses() -> None:
    ids = np.array([[0, -1], [0, 1], [-1, -1]])
    assert popular_uses(ids, 3).tolist() == [0, 2, 3, 3]
    assert lru_hits(ids, 3).tolist() == [0, 1, 1, 1]


@given(st.integers(2, 6), st.integers(1, 3), st.floats(0, 1, width=16), st.floats(0, 1, width=16))
def test_expected_copies_are_the_mean_over_all_choices(
    experts: int, top_k: int, accuracy: float, single: float
) -> None:
    top_k = min(top_k, experts)

    def mean(chosen: int, slots: int) -> float:
        missing = [
            sum(expert >= slots for expert in choice)
            for choice in combinations(range(experts), chosen)
        ]
        # With probability `accuracy`, one of the missing experts was prefetched.
        copies = [accuracy * max(0, each - 1) + (1 - accuracy) * each for each in missing]
        return sum(copies) / len(copies)

    expected = [
        single * mean(1, slots) + (1 - single) * mean(top_k, slots) for slots in range(experts + 1)
    ]
    assert adapmoe_loads(experts, top_k, accuracy, single) == pytest.approx(expected)


def test_layers_whose_predictions_are_worse_get_more_slots() -> None:
    trace = skewed_trace()
    options = {"accuracy": [0.0, 0.9, 0.5, 0.9]}
    slots = slots_of(trace, slots=16, split="adapmoe", split_options=options)
    assert slots[0] > slots[2] > slots[1] == slots[3]
    assert sum(slots) == 16


def test_one_accuracy_holds_for_all_layers_but_the_first() -> None:
    """No layer runs before the first one, so nothing predicts it."""
    trace = skewed_trace()
    one, each = (
        slots_of(trace, slots=14, split="adapmoe", split_options={"accuracy": accuracy})
        for accuracy in (0.8, [0, 0.8, 0.8, 0.8])
    )
    assert one == each
    assert one[0] > max(one[1:])


def test_a_layer_whose_tokens_use_one_expert_needs_fewer_slots() -> None:
    options = {"accuracy": [0.5] * LAYERS, "single": [0, 1, 0, 0]}
    slots = slots_of(skewed_trace(), slots=16, split="adapmoe", split_options=options)
    assert slots[1] == min(slots) < max(slots)


def test_the_published_accuracies_are_those_of_32_layers() -> None:
    config = {**TINY_CONFIG, "num_hidden_layers": 32}
    trace = tiny_trace(num_layers=32, requests=1).with_meta(model_config=config)
    cache = {"split": "adapmoe", "split_options": {"accuracy": "published"}, "slots": 128}
    slots = plan_of(tiny_scenario(cache=cache), trace).slots
    assert sum(slots) == 128
    # The published program gives its two badly predicted layers the most.
    assert slots[0] >= slots[1] >= max(slots[2:])
    with pytest.raises(ScenarioError, match="published are those of 32 layers; the trace has 4"):
        slots_of(skewed_trace(), slots=8, split="adapmoe", split_options=cache["split_options"])


def test_accuracy_is_counted_in_the_predictions_of_the_trace() -> None:
    ids = np.array([[[0, 1], [2, 3]], [[0, 1], [4, 5]]])
    guesses = np.full((2, 2, 1, 2), -1)
    guesses[0, 0, 0], guesses[1, 0, 0] = [2, 0], [5, 4]
    trace = Trace.from_arrays(expert_ids=ids, predictions=guesses, seq_len=[2], num_experts=8)
    assert recorded_accuracy(trace, slice(0, 2)) == [0, 0.75]
    assert recorded_accuracy(trace, slice(1, 2)) == [0, 1]
    assert recorded_accuracy(trace, slice(0, 0)) == [0, 0]


# --- the slots of a run --------------------------------------------------------------------------


@given(st.integers(0, 32), st.integers(0, 3), st.sampled_from(["demand", "adapmoe"]))
def test_the_slots_of_all_layers_are_those_of_the_budget(
    total: int, initial: int, split: str
) -> None:
    if total < EXPERTS * initial:
        return
    options = {"accuracy": 0.7} if split == "adapmoe" else {}
    cache = {"slots": total, "initial_layers": initial, "split": split, "split_options": options}
    slots = slots_of(SKEWED, **cache)
    assert sum(slots) == total
    assert slots[:initial] == (EXPERTS,) * initial
    # Each layer has one, if there are as many.
    least = min(1, (total - EXPERTS * initial) // (LAYERS - initial))
    assert all(least <= each <= EXPERTS for each in slots)


SKEWED = skewed_trace()


@pytest.mark.parametrize("slots", ["rest", "3/layer", "40%", "50MB", 14])
@pytest.mark.parametrize("admission", ["bypass", "always"])
def test_any_spelling_of_the_slots_is_split(slots: Any, admission: str) -> None:
    """A run with prefetch keeps the rules of every cache, which are checked at its end."""
    cache = {"slots": slots, "split": "demand", "admission": admission}
    scenario = tiny_scenario(cache=cache, prefetch="oracle", memory={"capacity": "90MB"})
    outcome = run_on(plan_of({**scenario, "batching": BATCHING}, SKEWED))
    assert sum(outcome.plan.slots) == outcome.plan.budget.slots < LAYERS * EXPERTS
    assert [cache.capacity for cache in outcome.caches] == list(outcome.plan.slots)


def test_each_layer_hits_as_in_a_run_whose_layers_all_have_its_slots() -> None:
    """Without prefetch, the caches of the layers know nothing of each other."""
    listed = run_on(
        plan_of(tiny_scenario(cache={"split": [3, 5, 2, 8]}, batching=BATCHING), SKEWED)
    )
    for layer, slots in enumerate([3, 5, 2, 8]):
        cache = {"slots": f"{slots}/layer"}
        even = run_on(plan_of(tiny_scenario(cache=cache, batching=BATCHING), SKEWED))
        assert listed.ledger.hits[layer] == even.ledger.hits[layer]
        assert listed.ledger.demand_copies[layer] == even.ledger.demand_copies[layer]
    assert len({cache.capacity for cache in listed.caches}) == 4


def test_an_even_list_is_the_uniform_split() -> None:
    even, listed = (
        summarise(run_on(plan_of(tiny_scenario(cache=cache, batching=BATCHING), SKEWED)))
        for cache in ({"slots": "3/layer"}, {"split": [3, 3, 3, 3]})
    )
    note = listed["notes"].pop()
    assert note == "slots of the 4 MoE layers, as listed: 3, 3, 3, 3"
    assert even == listed


def test_a_split_by_demand_hits_more_than_an_even_one_where_layers_differ() -> None:
    """Layer l uses 2 + 2 l experts, so that an even split wastes slots of the first."""
    batching = {"token_budget": 1, "max_sequences": 1}
    for need in ("lru", "popularity"):
        hits = [
            sum(run_on(plan_of(tiny_scenario(cache=cache, batching=batching), SKEWED)).ledger.hits)
            for cache in (
                {"slots": 16},
                {"slots": 16, "split": "demand", "split_options": {"need": need}},
            )
        ]
        assert hits[1] > hits[0]


@pytest.mark.parametrize("need", ["lru", "popularity"])
def test_demand_is_the_split_with_most_hits_in_its_profile(need: str) -> None:
    """In a run of one token a step over the profile itself, no other split hits more."""
    policy = "lru" if need == "lru" else "static"
    batching = {"token_budget": 1, "max_sequences": 1}
    curves = []
    for slots in range(EXPERTS + 1):
        cache = {"policy": policy, "slots": f"{slots}/layer"}
        outcome = run_on(plan_of(tiny_scenario(cache=cache, batching=batching), SKEWED))
        curves.append(outcome.ledger.hits)
    totals = {sum(split): 0 for split in product(range(1, EXPERTS + 1), repeat=LAYERS)}
    for split in product(range(1, EXPERTS + 1), repeat=LAYERS):
        hits = sum(curves[slots][layer] for layer, slots in enumerate(split))
        totals[sum(split)] = max(totals[sum(split)], hits)
    for total in (5, 11, 16, 23):
        divided: dict[str, Any] = {"policy": policy, "slots": total, "split": "demand"}
        divided["split_options"] = {"need": need}
        outcome = run_on(plan_of(tiny_scenario(cache=divided, batching=batching), SKEWED))
        assert sum(outcome.ledger.hits) == totals[total]


@pytest.mark.parametrize("split", ["demand", [2, 4, 6, 8]])
def test_bounds_hold_for_any_split(split: Any) -> None:
    cache = {"split": split, **({} if isinstance(split, list) else {"slots": 20})}
    scenario = tiny_scenario(cache=cache, batching=BATCHING, bounds=True)
    summary = result_of(plan_of(scenario, SKEWED)).summary
    assert (
        summary["expert_hit_rate"] <= summary["min_hit_rate"] <= summary["infinite_cache_hit_rate"]
    )
    plan = plan_of(scenario, SKEWED)
    assert plan.with_all_slots().slots == (EXPERTS,) * LAYERS
    assert simulate(plan).plan.slots == plan.slots


def test_a_list_leaves_the_rest_of_the_memory_to_kv_blocks() -> None:
    scenario = tiny_scenario(cache={"split": [1, 2, 3, 4]}, memory={"kv": "rest"})
    plan = plan_of(scenario, SKEWED)
    assert plan.slots == (1, 2, 3, 4)
    assert plan.budget.slots == 10
    with pytest.raises(ScenarioError, match="cannot go to both KV blocks and expert slots"):
        load_scenario(
            tiny_scenario(trace="traces/shallow", cache={"split": "demand"}, memory={"kv": "rest"})
        )


# --- what a split learns from --------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    skewed_trace(seed=1).save(tmp_path / "calibration")
    skewed_trace(seed=2).save(tmp_path / "replayed")
    return tmp_path


def scenario_in(folder: Path, cache: str, more: str = "") -> Scenario:
    (folder / "x.yaml").write_text(
        f"trace: replayed\nhardware: rtx-4090\nbounds: false\n{more}cache: {cache}\n",
        encoding="utf-8",
    )
    return load_scenario(folder / "x.yaml")


LEARNT = "{slots: 14, split: demand, split_options: {profile: calibration}}"


def test_demand_with_a_profile_never_reads_the_replayed_trace(folder: Path) -> None:
    plans = [
        prepare(scenario_in(folder, LEARNT), trace)
        for trace in (None, skewed_trace(seed=3), tiny_trace(requests=3, stickiness=0.9))
    ]
    assert len({plan.slots for plan in plans}) == 1
    assert plans[0].hindsight == frozenset()
    (folder / "calibration").rename(folder / "old")
    tiny_trace(requests=3, stickiness=0.9).save(folder / "calibration")
    assert prepare(scenario_in(folder, LEARNT)).slots != plans[0].slots


def test_a_split_of_the_replayed_trace_is_an_oracle(folder: Path) -> None:
    skewed_trace(seed=2).save(folder / "copy")
    for cache in ("{slots: 14, split: demand}", LEARNT.replace("calibration", "copy")):
        summary = result_of(prepare(scenario_in(folder, cache))).summary
        assert summary["knows_the_future"] == "split demand"
        said = "split demand was learnt on the replayed trace itself: hindsight, an oracle"
        assert said in summary["notes"]
    summary = result_of(prepare(scenario_in(folder, LEARNT))).summary
    assert summary["knows_the_future"] == ""
    assert any(note.endswith("learnt on the trace calibration") for note in summary["notes"])


def test_a_run_that_serves_what_its_split_learns_from_is_refused(folder: Path) -> None:
    cache = "{slots: 14, split: demand, split_options: {train: 0.5}}"
    with pytest.raises(ScenarioError) as caught:
        prepare(scenario_in(folder, cache))
    assert "x.yaml:4:" in str(caught.value)
    assert "cache.split_options.train: split demand learns from requests 0 to 2" in str(
        caught.value
    )
    assert "write workload.part: [0.5, 1]" in str(caught.value)
    plan = prepare(scenario_in(folder, cache, "workload: {part: [0.5, 1]}\n"))
    assert plan.hindsight == frozenset()
    summary = result_of(plan).summary
    said = "learnt on the first 50% of the requests of the replayed trace"
    assert any(note.endswith(said) for note in summary["notes"])


@pytest.mark.parametrize("split", ["demand", "adapmoe"])
def test_with_a_training_part_nothing_after_it_decides_the_split(split: str) -> None:
    trace = tiny_trace(requests=8, prompt_tokens=3, output_tokens=5, stickiness=0.5)
    cut = trace.slice(2).start
    ids, guesses = np.asarray(trace.expert_ids[:]).copy(), np.asarray(trace.predictions[:]).copy()
    ids[cut:, 0] = [0, 1]  # so that the first layer needs fewer slots by demand
    # By AdapMoE's programme, the last layer needs fewer, and the second one more.
    guesses[cut:, 2, 0], guesses[cut:, 0, 0] = ids[cut:, 3], trace.meta.unused
    other = Trace.from_arrays(
        expert_ids=ids,
        predictions=np.where(guesses == trace.meta.unused, -1, guesses.astype(int)),
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        num_experts=EXPERTS,
        model_config=TINY_CONFIG,
    )
    scenario = tiny_scenario(workload={"part": [0.25, 1]})
    train = {"train": 0.25}
    slots = [
        plan_of(
            {**scenario, "cache": {"slots": 14, "split": split, "split_options": options}}, each
        ).slots
        for options in (train, {})
        for each in (trace, other)
    ]
    assert slots[0] == slots[1]
    assert slots[2] != slots[3]  # learnt on all of it, which is hindsight


def test_an_edited_profile_makes_another_run(folder: Path) -> None:
    before = fingerprint(scenario_in(folder, LEARNT))
    skewed_trace(seed=5).save(folder / "calibration", force=True)
    assert fingerprint(scenario_in(folder, LEARNT)) != before


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "place", "said"),
    [
        ("{split: evenly}", "4:16", "'evenly' is no split of slots; write uniform, demand"),
        ("{split: 4}", "4:16", "4 is no split of slots"),
        ("{split: []}", "4:16", "cache.split"),
        ("{split: [1, -2, 3, 4]}", "4:20", "cache.split"),
        ("{split: [1.5, 2, 3, 4]}", "4:17", "cache.split"),
        ("{split: [1, 2]}", "4:16", "gives the slots of 2 layers; the trace has 4 MoE layers"),
        ("{split: [1, 2, 9, 3]}", "4:16", "gives layer 2 9 slots; it has 8 experts"),
        ("{split: [1, 2, 3, 4], scope: global}", "4:16", "with scope: global all layers share"),
        ("{split: demand, scope: global}", "4:16", "leave it out, or write scope: per_layer"),
        ("{split: [8, 2, 3, 4], initial_layers: 2}", "4:16", "write 8 for each of the first 2"),
        ("{split: [1, 2, 3, 4], slots: 12}", "4:16", "gives 10 slots in all, and cache.slots 12"),
        ("{split: [1, 2, 3, 4], slots: 50%}", "4:16", "gives 10 slots in all, and cache.slots 16"),
        ("{split: adapmoe}", "4:16", "needs the accuracy of predictions, and the trace holds none"),
        ("{split: adapmoe, split_options: {accuracy: 2}}", "4:51", "cache.split_options.accuracy"),
        ("{split: adapmoe, split_options: {accuracy: [1, 0]}}", "4:51", "has 2 numbers; the trace"),
        (
            "{split: adapmoe, split_options: {accuracy: 1, single: [0]}}",
            "4:62",
            "has 1 numbers; the trace has 4 MoE layers",
        ),
        ("{split: demand, split_options: {profile: nowhere}}", "4:49", "there is no trace folder"),
        ("{split: demand, split_options: {profile: .}}", "4:49", "cache.split_options.profile"),
        ("{split: demand, split_options: {profile: other}}", "4:49", "of another shape than the"),
        ("{split: demand, split_options: {train: 0}}", "4:47", "cache.split_options.train"),
        ("{split: demand, split_options: {by: lru}}", "4:40", "cache.split_options.by"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_its_line(
    folder: Path, cache: str, place: str, said: str
) -> None:
    tiny_trace(num_layers=3, requests=1).save(folder / "other")
    with pytest.raises(ScenarioError) as caught:
        prepare(scenario_in(folder, cache))
    assert said in str(caught.value)
    assert f"x.yaml:{place}: cache.split" in str(caught.value)


def test_a_split_of_unequal_experts_is_refused_with_its_line(folder: Path) -> None:
    mixed = "model: {expert_bits_by: {layer: {0: 8}}}\n"
    with pytest.raises(ScenarioError, match=r"x.yaml:5:16: cache.split: counts slots, and the exp"):
        prepare(scenario_in(folder, "{split: [1, 2, 3, 4]}", mixed))
    assert prepare(scenario_in(folder, "{split: uniform, slots: 10}", mixed)).capacities


def test_a_list_that_exceeds_the_memory_is_refused_with_what_would_fit(folder: Path) -> None:
    small = "memory: {capacity: 60MB, kv: 10MB}\n"
    with pytest.raises(BudgetError) as caught:
        prepare(scenario_in(folder, "{split: [8, 8, 8, 8]}", small))
    text = str(caught.value)
    assert "x.yaml:5:16: impossible memory" in text
    most = int(text.split("a cache.split of at most ")[1].split(" slots")[0])
    split = split_slots(most, LAYERS, EXPERTS)
    assert prepare(scenario_in(folder, f"{{split: {split}}}", small)).budget.slots == most
    split[-1] += 1
    with pytest.raises(BudgetError):
        prepare(scenario_in(folder, f"{{split: {split}}}", small))


@pytest.mark.parametrize(
    ("cache", "unused"),
    [
        ({"split": "uniform", "split_options": {"need": "popularity"}}, ["need"]),
        ({"split": [2] * 4, "split_options": {"single": 0.5, "train": 0.5}}, ["train", "single"]),
        ({"split": "demand", "slots": 8, "split_options": {"accuracy": 0.5}}, ["accuracy"]),
        (
            {"split": "adapmoe", "slots": 8, "split_options": {"accuracy": 0.5, "train": 0.5}},
            ["train"],
        ),
    ],
)
def test_options_that_a_split_does_not_read_are_said_to_be_unused(
    cache: dict[str, Any], unused: list[str]
) -> None:
    notes = summarise(run_on(plan_of(tiny_scenario(cache=cache), SKEWED)))["notes"]
    keys = [note.split(" is unused")[0] for note in notes if " is unused" in note]
    assert keys == [f"cache.split_options.{key}" for key in unused]


def test_a_placement_that_fixes_residents_leaves_no_slots_to_split() -> None:
    machine = {"hardware": "rtx-4090", "placement": {"policy": "cpu_experts"}}
    plain, split = (
        summarise(run_on(plan_of(tiny_scenario(cache=cache, **machine), SKEWED)))
        for cache in ({"slots": 12}, {"slots": 12, "split": [1, 2, 3, 4]})
    )
    reason = "cache.split is unused: placement cpu_experts fixes which experts are in GPU memory"
    assert reason in split["notes"]
    assert [note for note in split["notes"] if note != reason] == plain["notes"]
    assert split["makespan_s"] == plain["makespan_s"]


def test_layers_that_a_list_leaves_empty_are_named() -> None:
    notes = summarise(run_on(plan_of(tiny_scenario(cache={"split": [0, 4, 0, 4]}), SKEWED)))[
        "notes"
    ]
    assert "cache.split gives no slot to 2 of 4 layers" in notes
