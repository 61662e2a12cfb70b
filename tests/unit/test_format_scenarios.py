"""The format of weights in scenarios: `model.format`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from run_directories import run_directory
from workloads import TINY_CONFIG, plan_of, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError
from moesim.model.format_bits import bits_for
from moesim.model.formats import format_named
from moesim.model.shapes import ModelShape
from moesim.report.summary import print_summary
from moesim.scenario import Scenario, load_scenario
from moesim.simulate import result_of

BITS = ("expert_bits", "weight_bits", "embedding_bits", "head_bits")


def shape_of(model: str) -> ModelShape:
    data = {"trace": "t", "hardware": "t4", "model": yaml.safe_load(model)}
    return Scenario.model_validate(data).load_shape(TINY_CONFIG)


def test_a_format_sets_the_bits_of_all_parts() -> None:
    shape = shape_of("{shape: mixtral-8x7b, format: Q4_K_M}")
    form = format_named("Q4_K_M").format
    assert form is not None
    bits = bits_for(form, shape_of("{shape: mixtral-8x7b}"))
    assert (shape.expert_bits, shape.weight_bits) == (bits.experts, bits.weights)
    assert (shape.embedding_bits, shape.head_bits) == (4.5, 6.5625)
    assert (shape.expert_family, shape.layer_bits) == ("k-quant", ())


def test_experts_have_the_bits_of_their_layer_where_the_scenario_asks_for_them() -> None:
    shape = shape_of("{shape: mixtral-8x7b, format: Q4_K_M, format_by_layer: true}")
    assert shape.sizes()[0] > shape.sizes()[4 * shape.num_experts]
    mean = sum(shape.sizes()) / len(shape.sizes())
    assert mean == pytest.approx(shape_of("{shape: mixtral-8x7b, format: Q4_K_M}").expert_bytes)


def test_explicit_bits_win_over_the_format() -> None:
    shape = shape_of("{shape: mixtral-8x7b, format: Q4_K_M, expert_bits: 3}")
    plain = shape_of("{shape: mixtral-8x7b, format: Q4_K_M}")
    assert (shape.expert_bits, shape.weight_bits) == (3, plain.weight_bits)
    shape = shape_of("{shape: mixtral-8x7b, format: Q4_K_M, weight_bits: 16}")
    assert (shape.bits_of_head, shape.bits_of_embedding) == (16, 16)
    assert shape.expert_bits == plain.expert_bits


def test_bits_of_single_layers_win_over_those_of_the_format() -> None:
    by = "expert_bits_by: {layer: {'0': 16}}"
    shape = shape_of(f"{{shape: mixtral-8x7b, format: Q4_K_M, format_by_layer: true, {by}}}")
    plain = shape_of("{shape: mixtral-8x7b, format: Q4_K_M, format_by_layer: true}")
    assert dict(shape.layer_bits) == {**dict(plain.layer_bits), 0: 16}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("{format: Q4_K_MM}", "3:17: model.format: no format of weights is called 'Q4_K_MM'"),
        ("{format: Q4_K_MM}", "did you mean 'Q4_K_M'?"),
        ("{format: none.gguf}", "3:17: model.format: there is no file 'none.gguf'"),
    ],
)
def test_an_unknown_format_is_refused_where_it_stands(
    tmp_path: Path, model: str, problem: str
) -> None:
    (tmp_path / "t").mkdir()
    text = f"trace: t\nhardware: t4\nmodel: {model}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "x.yaml")
    assert problem in str(caught.value)


def test_a_file_size_that_cannot_be_is_refused_where_it_stands() -> None:
    with pytest.raises(ScenarioError, match=r"model\.format: the model takes 28\.\d GB as Q4_K_M"):
        shape_of("{shape: mixtral-8x7b, format: Q4_K_M (200 GB)}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Q4_K_M", "exact: the published rules"),
        ("UD-Q4_K_XL", "assumed: the plain mix"),
    ],
)
def test_the_summary_shows_the_format_its_bits_and_whether_they_are_exact(
    tmp_path: Path, name: str, words: str
) -> None:
    scenario = tiny_scenario(model={"shape": "trace", "format": name})
    summary = result_of(plan_of(scenario, tiny_trace(requests=1))).summary
    assert summary["head_bits"] == 6.5625
    facts = {key: summary[key] for key in ("format", "format_basis", *BITS)}
    stream = io.StringIO()
    print_summary(run_directory(tmp_path / "run", summary=facts), stream)
    text = " ".join(stream.getvalue().split())
    assert f"{name}: bits of experts 4." in text
    assert words in text


def test_a_run_without_a_format_says_nothing_of_it() -> None:
    summary = result_of(plan_of(tiny_scenario(), tiny_trace(requests=1))).summary
    assert "format" not in summary
    assert "head_bits" not in summary
