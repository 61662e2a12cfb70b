"""Experts of unequal sizes: the bits of layers and experts, read, checked and turned into bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import TINY_CONFIG, plan_of, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError
from moesim.hardware.measurement import shape_profile, signature
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import ModelShape, named_shape, stored_bytes
from moesim.scenario import Scenario, load_scenario
from moesim.simulate.facts import _same_model

LAYERS, EXPERTS = 4, 3
SHAPE = ModelShape(
    name="tiny",
    num_layers=LAYERS,
    hidden=8,
    expert_ffn=4,
    num_experts=EXPERTS,
    top_k=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    vocabulary=10,
    dense_layers=(1,),
    dense_ffn=4,
)
BITS = st.sampled_from([2.5, 4, 4.5, 8, 16])
MOE = [0, 2, 3]


def shape_of(trace_config: dict[str, Any], **model: Any) -> ModelShape:
    scenario = Scenario.model_validate(tiny_scenario(model={"shape": "trace", **model}))
    return scenario.load_shape(trace_config)


@given(
    st.dictionaries(st.sampled_from(MOE), BITS),
    st.dictionaries(st.tuples(st.sampled_from(MOE), st.integers(0, EXPERTS - 1)), BITS),
)
def test_an_expert_has_its_own_bits_else_those_of_its_layer_else_those_of_all(
    layers: dict[int, float], experts: dict[tuple[int, int], float]
) -> None:
    shape = replace(
        SHAPE,
        expert_bits=6,
        layer_bits=tuple(sorted(layers.items())),
        single_expert_bits=tuple((*place, bits) for place, bits in sorted(experts.items())),
    )
    expected = [
        stored_bytes(3 * 8 * 4, experts.get((layer, expert), layers.get(layer, 6)))
        for layer in MOE
        for expert in range(EXPERTS)
    ]
    assert list(shape.sizes()) == expected
    assert shape.expert_bytes == max(expected)
    assert shape.equal_sizes == (len(set(expected)) == 1)


def test_all_sizes_of_a_shipped_model_are_equal() -> None:
    shape = named_shape("mixtral-8x7b")
    assert shape.equal_sizes
    assert shape.sizes() == (shape.expert_bytes,) * 256


def test_a_scenario_names_layers_ranges_and_single_experts() -> None:
    shape = shape_of(
        TINY_CONFIG,
        expert_bits=4,
        expert_bits_by={"layer": {"0": 8, "2-3": 5}, "expert": {"3/7": 16, "1/0": 2}},
    )
    bits_LE = np.reshape(shape.sizes(), (4, 8)) * 8 / shape.expert_params
    assert bits_LE[:, 1].tolist() == [8, 4, 5, 5]
    assert bits_LE[3, 7] == 16
    assert bits_LE[1, 0] == 2


def test_bits_that_change_nothing_leave_the_shape_as_it_is() -> None:
    plain = shape_of(TINY_CONFIG, expert_bits=8)
    again = {"layer": {"0-3": 8}, "expert": {"0/1": 8}}
    assert shape_of(TINY_CONFIG, expert_bits=8, expert_bits_by=again) == plain
    assert plan_of(
        tiny_scenario(model={"shape": "trace", "expert_bits": 8, "expert_bits_by": again}),
        tiny_trace(requests=1),
    ).cost.shape.equal_sizes


def test_an_expert_with_the_usual_bits_may_differ_from_its_layer() -> None:
    by = {"layer": {"0": 8}, "expert": {"0/1": 4}}
    sizes = shape_of(TINY_CONFIG, expert_bits=4, expert_bits_by=by).sizes()
    assert sizes[1] * 2 == sizes[0] == sizes[2]
    assert sizes[1] == sizes[8]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_trace(requests=1).save(tmp_path / "trace")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "place", "says"),
    [
        ("layer: {a: 8}", "layer.a", "'a' is neither a layer nor a range of layers; write 3, or"),
        ("layer: {3-1: 8}", "layer.3-1", "'3-1' is neither a layer nor a range of layers"),
        ("layer: {-1: 8}", "layer.-1", "'-1' is neither a layer nor a range of layers"),
        ("layer: {0-2: 8, 2: 4}", "layer.2", "layer 2 is in '0-2' too; give its bits once"),
        ("layer: {1: 0}", "layer.1", "must be greater than 0, not 0"),
        ("layer: {1: 65}", "layer.1", "must be at most 64, not 65"),
        ("layer: [8]", "layer", "must be a mapping of keys and values"),
        ("expert: {0-3: 8}", "expert.0-3", "'0-3' is no expert; write its layer and its number"),
        ("expert: {0/1: 8, 0/01: 8}", "expert.0/01", "is the same expert as '0/1'"),
        ("layers: {0: 8}", "layers", "unknown key; did you mean 'layer'?"),
    ],
)
def test_a_meaningless_key_is_refused_with_its_place(
    folder: Path, line: str, place: str, says: str
) -> None:
    head = "trace: trace\nhardware: t4\nmodel:\n  expert_bits_by:\n"
    (folder / "x.yaml").write_text(f"{head}    {line}\n")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(folder / "x.yaml")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{folder / 'x.yaml'}:5:")
    assert f": model.expert_bits_by.{place}: " in problem
    assert says in problem


@pytest.mark.parametrize(
    ("by", "messages"),
    [
        ("layer: {0: 8, 4: 8}", ["5:22: model.expert_bits_by.layer.4: tiny has the layers 0 to 3"]),
        ("layer: {1: 8}", ["5:16: model.expert_bits_by.layer.1: tiny has no routed experts there"]),
        ("layer: {0-9: 8}", ["5:18: model.expert_bits_by.layer.0-9: tiny has the layers 0 to 3"]),
        (
            "expert: {1/0: 8, 0/3: 8}",
            [
                "5:19: model.expert_bits_by.expert.1/0: tiny has no routed experts in layer 1",
                "5:27: model.expert_bits_by.expert.0/3: a layer of tiny has the experts 0 to 2",
            ],
        ),
        ("layer: {0-3: 8}", []),  # a range may hold dense layers
    ],
)
def test_what_the_model_does_not_have_is_refused_with_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, by: str, messages: list[str]
) -> None:
    monkeypatch.setattr("moesim.scenario.scenario.shape_from_config", lambda _: SHAPE)
    head = "trace: trace\nhardware: t4\nmodel:\n  expert_bits_by:\n"
    (folder / "x.yaml").write_text(f"{head}    {by}\n")
    scenario = load_scenario(folder / "x.yaml")
    if not messages:
        assert [layer for layer, _ in scenario.load_shape({}).layer_bits] == MOE
        return
    with pytest.raises(ScenarioError) as caught:
        scenario.load_shape({})
    assert caught.value.problems == [f"{folder / 'x.yaml'}:{message}" for message in messages]


def test_the_command_line_sets_the_bits_of_one_layer(folder: Path) -> None:
    (folder / "x.yaml").write_text("trace: trace\nhardware: t4\n")
    scenario = load_scenario(folder / "x.yaml", ["model.expert_bits_by.layer.2=8"])
    shape = scenario.load_shape(TINY_CONFIG)
    assert list(shape.layer_bits) == [(2, 8)]
    again = Scenario.model_validate(scenario.resolved())
    assert again.load_shape(TINY_CONFIG) == shape
    with pytest.raises(ScenarioError, match=r"--set model.expert_bits_by.layer.9: "):
        load_scenario(folder / "x.yaml", ["model.expert_bits_by.layer.9=8"]).load_shape(TINY_CONFIG)


def test_shapes_with_the_same_bits_are_equal_in_whatever_order_they_were_written() -> None:
    one = {"layer": {"2": 8, "0": 4}, "expert": {"3/1": 4, "0/2": 8}}
    two = {"layer": {"0-0": 4, "2": 8}, "expert": {"0/2": 8, "3/1": 4}}
    first, second = (shape_of(TINY_CONFIG, expert_bits_by=by) for by in (one, two))
    assert first == second
    assert hash(first) == hash(second)


def test_measured_durations_hold_for_experts_of_equal_sizes_only() -> None:
    plain = shape_from_config(TINY_CONFIG)
    mixed = replace(plain, layer_bits=((0, 8.0),))
    assert signature(mixed) != signature(plain)
    assert signature(shape_profile(mixed).resolve()) == signature(plain)


def test_mixed_bits_make_no_other_model() -> None:
    plain = shape_from_config(TINY_CONFIG)
    meta = tiny_trace(requests=1).meta
    assert _same_model(meta, replace(plain, layer_bits=((0, 8.0),)))
    assert _same_model(meta, replace(plain, single_expert_bits=((0, 1, 8.0),)))
    assert not _same_model(meta, replace(plain, num_experts=9))
