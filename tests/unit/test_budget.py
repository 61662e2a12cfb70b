"""One budget of GPU memory: its parts are exact and fit, or are refused with the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import BudgetError, ScenarioError
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import ModelShape, named_shape
from moesim.scenario import Scenario, load_scenario
from moesim.serving.budget import Budget, plan_budget, split_slots
from moesim.simulate import prepare, run, summarise

MIB = 1 << 20
# 2 MoE layers of 4 experts: an expert takes 3 * 64 * 32 * 2 = 12,288 bytes, a KV entry
# 2 layers * 2 * 4 heads * 16 * 2 = 512.
SHAPE = ModelShape(
    name="tiny",
    num_layers=2,
    hidden=64,
    expert_ffn=32,
    num_experts=4,
    top_k=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    vocabulary=100,
)
EXPERT, ENTRY = 12_288, 512


def budget(
    vram: int = MIB,
    kv_tokens: Any = (32,),
    shape: ModelShape = SHAPE,
    *,
    memory: Any = None,
    cache: Any = None,
    **changes: Any,
) -> Budget:
    given = {"memory": {"activations": 1000, **(memory or {})}, "cache": cache or {}, **changes}
    scenario = Scenario.model_validate(tiny_scenario(**given))
    return plan_budget(scenario, shape, vram, kv_tokens)


def test_the_sizes_of_this_page_are_right() -> None:
    assert (SHAPE.expert_bytes, SHAPE.kv_bytes_per_token) == (EXPERT, ENTRY)


def test_every_part_is_what_it_says() -> None:
    plan = budget(
        memory={"kv": 100_000, "kv_block_tokens": 16, "staging": 3, "capacity": 500_000},
        cache={"slots": 5},
    )
    assert plan.capacity_bytes == 500_000  # and not the card's
    assert plan.fixed_bytes == SHAPE.fixed_bytes
    assert plan.activations_bytes == 1000
    assert plan.staging_bytes == 3 * EXPERT
    assert (plan.slots, plan.slots_bytes) == (5, 5 * EXPERT)
    assert (plan.kv_blocks, plan.kv_bytes) == (12, 12 * 16 * ENTRY)  # 98,304 of 100,000
    assert plan.used_bytes == (SHAPE.fixed_bytes + 1000 + 3 * EXPERT + 5 * EXPERT + 12 * 16 * ENTRY)


FIXED = SHAPE.fixed_bytes + 1000 + 2 * EXPERT  # what is gone before slots and blocks


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (3, 3),
        ("3", 3),
        (0, 0),
        (f"{5 * EXPERT}B", 5),
        (f"{6 * EXPERT - 1}B", 5),
        ("1GiB", 8),
        ("50%", 4),
        ("0%", 0),
        ("100%", 8),
        ("1/layer", 2),
        ("4/layer", 8),
        ("rest", 8),
    ],
)
def test_slots_may_be_a_count_bytes_a_share_per_layer_or_the_rest(
    slots: Any, expected: int
) -> None:
    assert budget(cache={"slots": slots}).slots == expected


def test_the_rest_goes_to_slots_behind_kv_blocks_of_a_size() -> None:
    block = 16 * ENTRY
    room = FIXED + 10 * block + 3 * EXPERT
    for spare in (0, 1, EXPERT - 1):
        plan = budget(room + spare, memory={"kv": 10 * block})
        assert (plan.slots, plan.kv_blocks) == (3, 10)
    assert budget(room + EXPERT, memory={"kv": 10 * block}).slots == 4
    assert budget(room - 1, memory={"kv": 10 * block}).slots == 2


def test_the_rest_goes_to_kv_blocks_behind_slots_of_a_number() -> None:
    block = 16 * ENTRY
    room = FIXED + 10 * block + 3 * EXPERT
    for spare in (0, 1, block - 1):
        assert budget(room + spare, memory={"kv": "rest"}, cache={"slots": 3}).kv_blocks == 10
    assert budget(room - 1, memory={"kv": "rest"}, cache={"slots": 3}).kv_blocks == 9


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (9, "is 9 in all; the model has 8 experts in 2 MoE layers"),
        (10**9, "is 1000000000 in all"),
        ("5/layer", "is 5 a layer; a layer of the model has 4 experts"),
    ],
)
def test_a_number_of_slots_beyond_all_experts_is_a_mistake(slots: Any, message: str) -> None:
    with pytest.raises(ScenarioError, match=f"^scenario: cache.slots: {message}"):
        budget(cache={"slots": slots})


@pytest.mark.parametrize("slots", ["9MiB", "12MiB"])
def test_slots_beyond_all_experts_take_nothing_from_kv_blocks(slots: Any) -> None:
    """There are 8 experts: what was asked for beyond them is free for KV."""
    room = FIXED + 8 * EXPERT + 10 * 16 * ENTRY
    for kv in ("rest", "auto"):
        plan = budget(room, [160], memory={"kv": kv}, cache={"slots": slots})
        assert (plan.slots, plan.kv_blocks) == (8, 10)


def test_a_share_of_kv_is_of_the_whole_capacity() -> None:
    plan = budget(MIB, memory={"kv": "25%"})
    assert plan.kv_blocks == MIB // 4 // (16 * ENTRY)


def test_kv_auto_takes_what_the_requests_can_use_and_no_more() -> None:
    plan = budget(100 * MIB, [100, 17, 16], batching={"max_sequences": 2})
    assert plan.kv_blocks == 7 + 2  # the two longest that may run at once, in blocks of 16


def test_kv_auto_leaves_half_to_slots_where_memory_is_scarce() -> None:
    left = 8 * EXPERT  # 12 blocks of KV
    longest = budget(FIXED + left, [160, 16])
    assert (longest.kv_blocks, longest.slots) == (10, 1)  # at least the longest request fits
    crowd = budget(FIXED + left, [16] * 100)
    assert (crowd.kv_blocks, crowd.slots) == (6, 4)


def test_activations_are_estimated_from_the_step_unless_given() -> None:
    def activations(**batching: int) -> int:
        given = {"memory": {}, "batching": batching}
        scenario = Scenario.model_validate(tiny_scenario(**given))
        return plan_budget(scenario, SHAPE, MIB * 100, [32]).activations_bytes

    one, two = (activations(token_budget=n, max_sequences=1) for n in (1, 2))
    logits = 100 * 4
    assert two - logits == 2 * (one - logits) > 0
    assert activations(token_budget=8, max_sequences=4) == 8 * (one - logits) + 4 * logits


@settings(max_examples=400)
@given(
    vram=st.integers(1, 4 * MIB),
    kv=st.one_of(st.sampled_from(["auto", "rest", "10%", "60%"]), st.integers(0, 2 * MIB)),
    slots=st.one_of(
        st.sampled_from(["rest", "25%", "100%", "2/layer", "100kB", "1MiB"]), st.integers(0, 8)
    ),
    staging=st.integers(1, 4),
    block=st.integers(1, 64),
    kv_tokens=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
)
def test_whatever_is_asked_for_the_parts_fit_or_it_is_refused(
    vram: int, kv: Any, slots: Any, staging: int, block: int, kv_tokens: list[int]
) -> None:
    assume(not (kv == "rest" and slots == "rest"))
    memory = {"kv": kv, "staging": staging, "kv_block_tokens": block}
    refusal = ""
    try:
        plan = budget(vram, kv_tokens, memory=memory, cache={"slots": slots})
    except BudgetError as error:
        refusal = str(error)
    if refusal:
        assert_remedies_help(refusal, vram, kv_tokens, memory, {"slots": slots})
        *parts, whole = [int(number) for number in re.findall(r"\((\d+) bytes\)", refusal)]
        assert whole == vram
        assert sum(parts) > vram or "for any request" in refusal
        return
    assert plan.used_bytes <= plan.capacity_bytes == vram
    assert 0 <= plan.slots <= 8
    assert plan.kv_blocks >= min(-(-tokens // block) for tokens in kv_tokens)
    assert plan.slots_bytes == plan.slots * EXPERT
    assert plan.kv_bytes == plan.kv_blocks * block * ENTRY


def assert_remedies_help(
    refusal: str, vram: int, kv_tokens: list[int], memory: dict[str, Any], cache: dict[str, Any]
) -> None:
    """Check that each `key: value` that a refusal suggests makes everything fit by itself."""
    for section, key, value in re.findall(
        r"(memory|cache)\.(\w+): ([\w/%]+)", refusal.split("try ")[1]
    ):
        sections = {"memory": dict(memory), "cache": dict(cache)}
        sections[section][key] = int(value) if value.isdigit() else value
        made = budget(vram, kv_tokens, memory=sections["memory"], cache=sections["cache"])
        assert made.used_bytes <= made.capacity_bytes


@pytest.mark.parametrize(
    ("vram", "memory", "cache", "remedy"),
    [
        (200_000, {}, {"slots": 8}, "cache.slots: 5"),
        (200_000, {"kv": "1MiB"}, {"slots": 2}, "memory.kv: 57048B"),
        (200_000, {"kv": 0}, {"slots": 2}, "memory.kv: 16384B"),
        (200_000, {"staging": 100}, {}, "memory.staging: "),
        (MIB, {"capacity": 1}, {}, "memory.capacity: 1MiB"),
        (200_000, {}, {"slots": "4/layer"}, "cache.slots: 2/layer"),
        (200_000, {}, {"slots": "100%"}, "cache.slots: 62%"),
        (200_000, {}, {"slots": "120kB"}, "cache.slots: 61440B"),
    ],
)
def test_a_refusal_names_a_value_that_fits(
    vram: int, memory: dict[str, Any], cache: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(BudgetError) as caught:
        budget(vram, memory=memory, cache=cache)
    assert remedy in str(caught.value)
    assert_remedies_help(str(caught.value), vram, [32], memory, cache)


def test_no_capacity_beyond_that_of_the_card_is_suggested() -> None:
    with pytest.raises(BudgetError) as caught:
        budget(1)
    assert "try a card with at least 1MiB" in str(caught.value)
    assert "memory.capacity" not in str(caught.value)


def test_memory_is_enough_or_too_little_by_one_byte() -> None:
    exact = FIXED + 10 * 16 * ENTRY + 3 * EXPERT
    asked: Any = {"memory": {"kv": 10 * 16 * ENTRY}, "cache": {"slots": 3}}
    assert budget(exact, **asked).used_bytes == exact
    with pytest.raises(BudgetError, match="exceed the memory"):
        budget(exact - 1, **asked)
    nothing: Any = {"memory": {"kv": 2 * 16 * ENTRY}, "cache": {"slots": 0}}
    assert budget(FIXED + 2 * 16 * ENTRY, **nothing).slots == 0
    with pytest.raises(BudgetError, match="exceed the memory"):
        budget(FIXED + 2 * 16 * ENTRY - 1, **nothing)


# --- impossible memory ----------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    mixtral = named_shape("mixtral-8x7b")
    with pytest.raises(BudgetError) as caught:
        budget(2 * 1024**3, [32], mixtral)
    text = str(caught.value)
    assert f"fixed weights: 2.99 GiB ({mixtral.fixed_bytes} bytes)" in text
    assert f"of 2 GiB ({2 * 1024**3} bytes)" in text
    assert "leave nothing" in text
    assert "try a card with at least 3739MiB, or fewer model.expert_bits" in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("memory", "cache", "part"),
    [
        ({"staging": 100}, {}, "100 staging buffers"),
        ({"activations": "2MiB"}, {}, "activations"),
        ({"kv": "2MiB"}, {}, "KV blocks"),
        ({"kv": "100%"}, {}, "KV blocks"),
        ({"capacity": 200_000}, {"slots": 8}, "8 expert slots"),
        ({"kv": 0}, {}, "KV blocks"),
        ({"kv": 8191}, {}, "KV blocks"),
    ],
)
def test_whichever_part_is_too_large_is_listed(memory: Any, cache: Any, part: str) -> None:
    with pytest.raises(BudgetError, match=part):
        budget(memory=memory, cache=cache)


def test_impossible_memory_is_refused_before_anything_runs(tmp_path: Any) -> None:
    """`prepare` refuses it: no policy was built, no file written."""
    with pytest.raises(BudgetError, match=r"^scenario: impossible memory"):
        plan_of(tiny_scenario(memory={"capacity": "10MiB"}), tiny_trace(requests=1))
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    scenario = tiny_scenario(trace=str(trace.path), memory={"capacity": "10MiB"})
    with pytest.raises(BudgetError):
        run(scenario, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace"]


def test_the_message_points_into_the_file(tmp_path: Any) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "small.yaml"
    path.write_text(
        f"trace: {trace.path}\nhardware: t4\nmemory:\n  capacity: 10MiB\n", encoding="utf-8"
    )
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(path))
    assert str(caught.value).startswith(f"{path}:4:13: impossible memory")


@pytest.mark.parametrize(
    ("memory", "cache", "place"),
    [
        ("{staging: 2}", "{slots: 8/layer}", "4:16"),
        ("{staging: 2, kv: 90%}", "{slots: 1/layer}", "3:26"),
        ("{kv: 0}", "{slots: 1/layer}", "3:14"),
        ("{staging: 3000}", "lru", "3:19"),
        ("{activations: 9GiB}", "lru", "3:23"),
        ("{capacity: 3MiB, staging: 1}", "{slots: 1/layer}", "3:20"),
    ],
)
def test_the_message_points_at_the_key_that_is_too_large(
    tmp_path: Any, memory: str, cache: str, place: str
) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "x.yaml"
    path.write_text(
        f"trace: {trace.path}\nhardware: {{profile: t4, vram: 100MiB}}\n"
        f"memory: {memory}\ncache: {cache}\n",
        encoding="utf-8",
    )
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(path))
    assert str(caught.value).startswith(f"{path}:{place}: impossible memory")


# --- caches ---------------------------------------------------------------------------------------


def test_the_remainder_of_the_slots_goes_to_the_first_layers() -> None:
    assert split_slots(13, 4, 8) == [4, 3, 3, 3]
    assert split_slots(3, 4, 8) == [1, 1, 1, 0]
    assert split_slots(32, 4, 8) == [8, 8, 8, 8]
    assert split_slots(0, 4, 8) == [0, 0, 0, 0]


@given(st.integers(0, 200), st.integers(1, 12), st.integers(1, 16))
def test_split_slots_are_even_and_never_more_than_there_are(
    total: int, layers: int, experts: int
) -> None:
    split = split_slots(total, layers, experts)
    assert sum(split) == min(total, layers * experts)
    assert max(split) - min(split) <= 1
    assert split == sorted(split, reverse=True)


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("slots", [0, 1, 13, 32, "40%", "3/layer", "99GiB"])
def test_a_run_has_the_slots_of_its_budget(scope: str, slots: Any) -> None:
    outcome = run_on(
        plan_of(
            tiny_scenario(cache={"scope": scope, "slots": slots}),
            tiny_trace(requests=2, prompt_tokens=3, output_tokens=3),
        )
    )
    summary = summarise(outcome)
    caches = list({id(cache): cache for cache in outcome.caches}.values())
    assert sum(cache.capacity for cache in caches) == outcome.plan.budget.slots
    assert summary["cache_slots"] == outcome.plan.budget.slots
    assert len(caches) == (1 if scope == "global" else 4)
    assert summary["slots_bytes"] == outcome.plan.budget.slots * outcome.plan.cost.expert_bytes
    parts = ("fixed", "kv", "slots", "staging", "activations")
    assert sum(summary[f"{part}_bytes"] for part in parts) <= summary["vram_bytes"]
    assert summary["peak_vram_bytes"] == outcome.plan.budget.used_bytes - (
        outcome.plan.budget.kv_bytes - summary["peak_kv_blocks"] * 16 * 8192
    )


def test_quantised_experts_take_fewer_bytes() -> None:
    half = replace(SHAPE, expert_bits=8)
    assert budget(MIB, shape=half, cache={"slots": 4}).slots_bytes == 4 * EXPERT // 2
    from workloads import TINY_CONFIG

    assert shape_from_config(TINY_CONFIG).expert_bytes == 3 * 512 * 1024 * 2


def test_a_refusal_says_how_a_number_without_a_unit_was_read(tmp_path: Any) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    data = {"trace": str(trace.path), "hardware": "t4"}
    with pytest.raises(BudgetError, match=r"hardware\.vram is 12 without a unit: read as 12 B\n"):
        prepare(load_scenario(data, ["hardware.vram=12"]))
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(data, ["hardware.vram=12B"]))
    assert "without a unit" not in str(caught.value)
