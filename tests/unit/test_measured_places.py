"""Which tensors of a model a setting leaves on the CPU."""

from __future__ import annotations

import re

import pytest

from moesim.measured.places import (
    EXPERTS,
    MOST_PATTERN,
    Choice,
    Layers,
    Rule,
    experts_on_cpu,
    pattern_fault,
    tensors_on_cpu,
)

MOE = range(1, 6)  # of six layers; the first is dense


def chosen(layers: Layers) -> list[int]:
    return sorted(layers.of(6, MOE))


def cpu_layers(*rules: Rule) -> list[int]:
    return sorted(experts_on_cpu(tensors_on_cpu(rules, 6, MOE)))


def test_layers_are_chosen_from_the_beginning_the_end_and_a_range() -> None:
    assert chosen(Layers()) == [0, 1, 2, 3, 4, 5]
    assert chosen(Layers("first", 2)) == [0, 1]
    assert chosen(Layers("last", 2)) == [4, 5]
    assert chosen(Layers("range", low=2, high=3)) == [2, 3]
    assert chosen(Layers("first_moe", 2)) == [1, 2]
    assert chosen(Layers("last_moe", 2)) == [4, 5]


@pytest.mark.parametrize("kind", ["first", "last"])
def test_more_layers_than_there_are_mean_all(kind: Choice) -> None:
    assert chosen(Layers(kind, 99)) == [0, 1, 2, 3, 4, 5]
    assert chosen(Layers(kind, 0)) == []
    assert chosen(Layers("range", low=3, high=10**9)) == [3, 4, 5]
    assert chosen(Layers("range", low=5, high=2)) == []
    assert chosen(Layers("first_moe", 99)) == [1, 2, 3, 4, 5]
    assert chosen(Layers("last_moe", 99)) == [1, 2, 3, 4, 5]


def test_the_first_layers_count_dense_ones_which_have_no_experts() -> None:
    assert cpu_layers(Rule(Layers("first", 3))) == [1, 2]


def test_experts_leave_attention_router_and_shared_experts_on_the_gpu() -> None:
    placed = tensors_on_cpu([Rule()], 6, MOE)
    assert placed[0] == frozenset()
    assert set(placed[1:]) == {frozenset(EXPERTS)}


def test_the_ffn_has_dense_and_shared_parts_but_no_attention() -> None:
    placed = tensors_on_cpu([Rule(tensors="ffn")], 6, MOE)
    assert placed[0] == {"ffn_gate", "ffn_up", "ffn_down"}
    assert placed[1] > {*EXPERTS, "ffn_gate_inp", "ffn_up_shexp"}
    assert not any(name.startswith("attn") for names in placed for name in names)


def test_a_whole_layer_has_attention_too() -> None:
    placed = tensors_on_cpu([Rule(Layers("first", 1), "all")], 6, MOE)
    assert "attn_q" in placed[0]
    assert placed[1] == frozenset()


def test_the_first_rule_that_takes_a_tensor_decides() -> None:
    keep = Rule(Layers("range", low=2, high=3), cpu=False)
    assert cpu_layers(keep, Rule()) == [1, 4, 5]
    assert cpu_layers(Rule(), keep) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "pattern",
    [
        r"ffn_.*_exps",
        "exps",
        r"blk\.(1|2)\.ffn_.*_exps\.",
        r"blk\.[3-5]\.ffn_(up|gate)_exps",
        r"\.ffn_(up|down|gate|gate_up)_(ch|)exps",
        r"^blk\.0\.",
        "ffn_down",
    ],
)
def test_a_pattern_takes_the_names_in_which_python_finds_it(pattern: str) -> None:
    placed = tensors_on_cpu([Rule(pattern=pattern)], 6, MOE)
    every = tensors_on_cpu([Rule(tensors="all")], 6, MOE)
    for layer, names in enumerate(every):
        expected = {n for n in names if re.search(pattern, f"blk.{layer}.{n}.weight")}
        assert placed[layer] == expected


def test_a_layer_with_a_part_of_its_experts_on_the_cpu_is_no_cpu_layer() -> None:
    placed = tensors_on_cpu([Rule(pattern="ffn_(up|down)_exps")], 6, MOE)
    assert placed[1] == {"ffn_up_exps", "ffn_down_exps"}
    assert experts_on_cpu(placed) == frozenset()


def test_catastrophic_patterns_end() -> None:
    evil = "(.*.*.*.*)*" * 20 + "z"
    assert pattern_fault(evil) == ""
    assert not any(tensors_on_cpu([Rule(pattern=evil)], 1000, range(1000)))


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "x{100000}", "a" * (MOST_PATTERN + 1)])
def test_a_pattern_that_cannot_be_used_says_why(pattern: str) -> None:
    assert "pattern" in pattern_fault(pattern)


def test_impossible_models_are_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        tensors_on_cpu([Rule()], 10**9, [])
    with pytest.raises(ValueError, match="MoE layers 1 to 7"):
        tensors_on_cpu([Rule()], 6, [1, 7])
