"""`moesim trace synth --like MODEL`: the trace, its header, and what is said and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_traces import assert_same
from typer.testing import CliRunner
from workloads import plan_of, run_on, tiny_scenario

from moesim.cli import app
from moesim.errors import UsageError
from moesim.model.shapes import named_shape
from moesim.simulate import summarise
from moesim.simulate.curve import curve
from moesim.trace import SyntheticKnobs, load_trace, validate_trace
from moesim.trace.like import LOCALITIES, likeness, synthesize_like
from moesim.trace.localities import Sizes, hit_rates_like, known_models

GPT_OSS = Sizes(36, 128, 4)
DEEPSEEK_V3 = Sizes(58, 256, 8)
SHORT = ("--requests", "2", "--prompt-tokens", "3", "--output-tokens", "4")


def synth(out: Path, *words: str) -> str:
    """Run `moesim trace synth` and return what it printed, or the error."""
    result = CliRunner().invoke(app, ["trace", "synth", str(out), *words])
    if result.exit_code == 0:
        return result.output
    return str(result.exception)


def refusal(out: Path, *words: str) -> str:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["trace", "synth", str(out), *words], catch_exceptions=False)
    assert not out.exists()
    return str(caught.value)


def test_the_trace_has_the_sizes_of_the_model_and_says_what_it_is_like(tmp_path: Path) -> None:
    said = synth(tmp_path / "trace", "--like", "deepseek-v2-lite", *SHORT)
    trace = validate_trace(tmp_path / "trace")
    shape = named_shape("deepseek-v2-lite")
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (26, 64, 6)
    assert trace.meta.model_layers == shape.moe_layers
    assert trace.meta.synthetic
    assert trace.meta.model == "routing like deepseek-v2-lite"
    like = trace.meta.provenance["like"]
    assert like["model"] == "deepseek-v2-lite"
    assert like["published"] is True
    assert "deepseek-ai/ESFT" in like["source"]
    assert "fitted to replayed hit rates of LRU at 8, 24, 48 of 64 slots a layer" in like["basis"]
    assert trace.meta.provenance["knobs"]["cutoff"] > 0
    assert like["basis"] in said
    assert "known 48 to 62 %" in said
    assert "largest error at capacities held out: -0.8 points at 16" in said
    assert "(synthetic)" in said


def test_the_same_command_gives_the_same_trace(tmp_path: Path) -> None:
    for name in ("one", "other"):
        synth(tmp_path / name, "--like", "deepseek-v3", "--layers", "2", *SHORT)
    assert_same(load_trace(tmp_path / "one"), load_trace(tmp_path / "other"))
    synth(tmp_path / "seed", "--like", "deepseek-v3", "--layers", "2", "--seed", "1", *SHORT)
    one, seed = (load_trace(tmp_path / name).expert_ids[:] for name in ("one", "seed"))
    assert one.shape == seed.shape
    assert (np.asarray(one) != np.asarray(seed)).any()


def test_fewer_layers_may_be_drawn(tmp_path: Path) -> None:
    synth(tmp_path / "trace", "--like", "deepseek-v2-lite", "--layers", "3", *SHORT)
    trace = load_trace(tmp_path / "trace")
    assert trace.num_layers == 3
    assert trace.meta.layer_map is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--skew", "0.8"),  # the default, but stated
        ("--cutoff", "1"),
        ("--stickiness", "0.5"),
        ("--layer-correlation", "0.1"),
        ("--experts", "128"),
        ("--top-k", "4"),
    ],
)
def test_a_knob_that_the_model_decides_is_refused(tmp_path: Path, option: str, value: str) -> None:
    said = refusal(tmp_path / "trace", "--like", "gpt-oss-120b", option, value)
    assert said == f"{option} and --like gpt-oss-120b: --like decides it; leave one of them away"


def test_a_model_that_is_not_known_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    said = refusal(tmp_path / "trace", "--like", "gpt-os-120b")
    assert "did you mean 'gpt-oss-120b'?" in said


def test_a_locality_that_is_not_known_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    said = refusal(tmp_path / "trace", "--like", "mixtral-8x7b", "--locality", "hihg")
    assert said == "no locality is called 'hihg'; did you mean 'high'?"


def test_a_locality_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "--like MODEL" in refusal(tmp_path / "trace", "--locality", "low")


def test_nothing_published_is_said_and_the_range_is_shown(tmp_path: Path) -> None:
    said = refusal(tmp_path / "trace", "--like", "deepseek-v3", "--locality", "published")
    assert said.startswith("no hit rates of deepseek-v3 are published: the range over ")
    assert said.endswith("; ask for the locality low, middle or high")
    like = likeness("deepseek-v3", DEEPSEEK_V3)
    assert like.locality == "middle"
    assert not like.published
    assert any("no hit rates of deepseek-v3 are published" in line for line in like.lines())
    assert any("known 73 to 92 %, this routing 81 %" in line for line in like.lines())


@pytest.mark.parametrize("locality", LOCALITIES[1:])
@pytest.mark.parametrize(
    ("name", "sizes"), [("deepseek-v3", DEEPSEEK_V3), ("phi-3.5-moe", Sizes(32, 16, 2))]
)
def test_low_middle_and_high_hit_as_the_range_says(name: str, sizes: Sizes, locality: str) -> None:
    like = likeness(name, sizes, locality)
    field = "value" if locality == "middle" else locality
    knobs = SyntheticKnobs(requests=1, prompt_tokens=1, output_tokens=1000, num_layers=3)
    trace = synthesize_like(like, knobs)
    slots = sizes.experts // 4
    ours = curve(trace, ["lru"], capacities=[slots], admission="always")["lru"][slots]
    assert ours == pytest.approx(getattr(hit_rates_like(name, 0.25, sizes), field), abs=0.03)


@pytest.mark.parametrize("name", known_models())
def test_each_known_model_gives_routing_within_its_known_range(name: str) -> None:
    like = likeness(name, known_models()[name].sizes)
    assert like.locality == "published"
    for share, expected in like.expected.items():
        known = like.ranges[share]
        assert known.low - 0.02 <= expected <= known.high + 0.02, share


def test_knobs_that_no_figure_gives_are_said_to_be_assumed() -> None:
    basis = likeness("qwen2-57b-a14b", Sizes(28, 64, 8)).basis
    assert basis.endswith("; assumed: cutoff and stickiness; no capacity was held out")


def test_a_model_whose_tokens_use_all_experts_has_a_likeness() -> None:
    like = likeness("all", Sizes(2, 4, 4), "low")
    trace = synthesize_like(like, SyntheticKnobs(requests=1, num_layers=2))
    assert (np.sort(trace.expert_ids[:]) == np.arange(4)).all()


def test_a_run_of_the_trace_notes_what_it_is_like() -> None:
    like = likeness("mixtral-8x7b", Sizes(32, 8, 2))
    knobs = SyntheticKnobs(requests=2, prompt_tokens=3, output_tokens=4, num_layers=32)
    trace = synthesize_like(like, knobs)
    scenario = tiny_scenario(model="mixtral-8x7b", prefetch={"policy": "none"})
    notes = summarise(run_on(plan_of(scenario, trace)))["notes"]
    assert "the trace is synthetic" in notes
    assert "its routing is like 'mixtral-8x7b', locality 'published'" in notes
