"""Every mistake is reported at once, at its line, with the likely next step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from workloads import TINY_CONFIG, tiny_trace

from moesim.errors import ScenarioError
from moesim.hardware.hardware import PROFILES
from moesim.model.shapes import named_shape
from moesim.scenario import load_scenario
from moesim.simulate import prepare
from moesim.simulate.checks import policy_of
from moesim.sweep import check_points, points_of
from moesim.trace import SyntheticKnobs, synthesize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    (made / "traces").mkdir()
    tiny_trace(requests=2).save(made / "traces" / "tiny")
    (made / "here").mkdir()
    tiny_trace(requests=2, seed=1).save(made / "here" / "mytrace")
    return made


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return all mistakes that are reported of a scenario until it is a plan."""
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        prepare(points_of(load_scenario(path, overrides), folder)[0].scenario)
    return [problem.replace(f"{path}:", "") for problem in caught.value.problems]


def test_every_kind_of_mistake_is_reported_at_once_in_document_order(folder: Path) -> None:
    text = """\
trace: traces/tiny
hardware: {profile: rtx-4090, vram: 3 parsec}
model: mixtral-8x7b
cache: {policy: lur, scope: perlayer, initial_layers: 9}
workload:
  domains: [poetry, prose]
  requests: 0
  prefill: recorded
  arrivals: recorded
batching:
  policy: expert_aware
  options: {sise: 3}
prefetch: {policy: layer_ahead, options: {depth: 3}}
placement: {policy: cpu}
sed: 1
"""
    said = mistakes(folder, text)
    expected = [
        ("2:37: hardware.vram: ", "3 parsec"),
        ("3:8: model: ", "the trace has 4 MoE layers, 8 experts, top-2; mixtral-8x7b has 32, 8"),
        ("4:17: cache.policy: ", "did you mean 'lru'?"),
        ("4:29: cache.scope: ", "did you mean 'per_layer'?"),
        ("4:55: cache.initial_layers: ", "is 9; it must be at most 4, the MoE layers of the trace"),
        ("6:13: workload.domains[0]: ", "no domain 'poetry'"),
        ("6:21: workload.domains[1]: ", "no domain 'prose'"),
        ("7:13: workload.requests: ", "must be at least 1, not 0"),
        ("12:13: batching.options.sise: ", "has no option 'sise'"),
        ("13:20: prefetch.policy: ", "which reveals routing to depth 0; choose predicted"),
        ("14:21: placement.policy: ", "unknown placement policy 'cpu'"),
        ("15:1: sed: ", "did you mean 'seed'?"),
    ]
    for problem, (start, part) in zip(said, expected, strict=True):
        assert problem.startswith(start), (problem, start)
        assert part in problem


def test_what_only_the_trace_shows_is_reported_together_as_well(folder: Path) -> None:
    text = (
        "trace: traces/tiny\nhardware: t4\nmodel: mixtral-8x7b\n"
        "batching: {policy: expert_aware}\nprefetch: layer_ahead\n"
        "cache: {policy: static, admission: always, options: {profile: nowhere}}\n"
        "workload: {domains: [poetry]}\n"
    )
    said = mistakes(folder, text)
    starts = [f"{line}:" for line in (3, 4, 5, 6, 6, 7)]
    assert [problem[:2] for problem in said] == starts, "\n".join(said)
    assert "choose a trace whose router is decoupled or static, or write decode_first" in said[1]
    assert "there is no file or folder 'nowhere'" in "".join(said[3:5])
    assert "write bypass" in "".join(said[3:5])


@pytest.mark.parametrize("line", ["trace: nowhere", "trace: .", "model: none.json"])
def test_a_missing_file_hides_no_other_mistake(folder: Path, line: str) -> None:
    key = line.split(":")[0]
    lines = {"trace": "trace: traces/tiny", "hardware": "hardware: t4", key: line}
    text = "\n".join([*lines.values(), "cache: {policy: lur}", "seed: -1"])
    said = mistakes(folder, text)
    assert len(said) == 3
    assert [problem.split(": ")[1] for problem in said] == [key, "cache.policy", "seed"]


def test_all_points_of_a_sweep_are_checked_at_once(folder: Path) -> None:
    text = """\
trace: traces/tiny
hardware: t4
sed: 3
sweep:
  cache.policy: [lru, lur]
  model: [trace, mixtral-8x7b, olmoe-1b-7b]
  prefetch: [layer_ahead, none]
"""
    said = mistakes(folder, text)
    assert [problem.split(": ")[0] for problem in said] == ["3:1", "5:23", "6:18", "6:32", "7:14"]
    path = folder / "right.yaml"
    path.write_text(text.replace("sed: 3", "seed: 3").replace(", lur]", "]"), encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        check_points(points_of(load_scenario(path), folder / "runs"))
    said = [problem.replace(f"{path}:", "") for problem in caught.value.problems]
    assert [problem.split(": ")[0] for problem in said] == ["6:18", "6:32", "7:14"]


# --- paths ----------------------------------------------------------------------------------------

PROFILE = PROFILES / "t4.yaml"


@pytest.mark.parametrize(
    "arrivals", ["{kind: closed, clients: 1}", "{kind: poisson, rate_per_s: 1}"]
)
def test_a_point_that_needs_the_future_is_refused_before_any_is_simulated(
    folder: Path, arrivals: str
) -> None:
    path = folder / "x.yaml"
    text = "trace: traces/tiny\nhardware: rtx-4090\ncache: {slots: 2/layer}\n"
    text += f"workload: {{arrivals: {arrivals}}}\nsweep: {{cache.policy: [lru, min]}}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"cache\.policy: min needs to know all layer events"):
        check_points(points_of(load_scenario(path), folder / "runs"))
    fixed = ["placement={policy: cpu_layers, options: {layers: 3}}"]
    for allowed in (["workload.arrivals=all_at_once"], fixed):
        check_points(points_of(load_scenario(path, allowed), folder / "runs"))


def path_cases(folder: Path) -> dict[str, str]:
    """Return every key that holds a path, with its file in `here`; none is beside `x.yaml`."""
    here = folder / "here"
    config = {**TINY_CONFIG, "model_type": "mixtral"}
    (here / "mine.json").write_text(json.dumps(config), encoding="utf-8")
    (here / "mine.yaml").write_text(PROFILE.read_text(encoding="utf-8"), encoding="utf-8")
    (here / "a.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,2,2\n", encoding="utf-8")
    return {
        "trace": "mytrace",
        "model": "mine.json",
        "model.shape": "mine.json",
        "hardware": "mine.yaml",
        "hardware.profile": "mine.yaml",
        "workload.arrivals.path": "a.csv",
        "workload.arrivals": "{kind: csv, path: a.csv}",
        "workload": "{arrivals: {kind: csv, path: a.csv}}",
        "cache.options.profile": "mytrace",
        "cache.options": "{profile: mytrace}",
        "cache": "{policy: static, options: {profile: mytrace}}",
        "sweep.trace": "[mytrace]",
        "sweep": "{hardware: [mine.yaml]}",
    }


TEXT = (
    "trace: traces/tiny\nhardware: t4\ncache: {policy: static}\n"
    "workload: {arrivals: {kind: csv, path: here/a.csv}}\n"
)


def test_a_path_on_the_command_line_starts_at_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = path_cases(folder)
    (folder / "x.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(folder / "here")
    for key, value in cases.items():
        scenario = load_scenario(folder / "x.yaml", [f"{key}={value}"])
        points = points_of(scenario, folder / "runs")
        plan = prepare(points[0].scenario)
        assert any("here" in path.parts for path in points[0].scenario.paths().values()), key
        assert plan.trace.num_requests == 2
        wrong = re.sub(r"mytrace|mine|a\.csv", lambda name: f"no{name[0]}", value)
        said = mistakes(folder, TEXT, f"{key}={wrong}")
        assert f"starts at the working directory, {folder / 'here'}" in "".join(said), key


def test_a_path_in_a_file_starts_at_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "here")
    text = "trace: traces/tiny\nhardware: t4\nsweep: {trace: [traces/tiny, here/mytrace]}\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    points = points_of(load_scenario(Path("..") / "x.yaml"), folder)
    assert [prepare(point.scenario).trace.num_layers for point in points] == [4, 4]
    said = mistakes(folder, "trace: mytrace\nhardware: t4\n")[0]
    assert f"starts at its folder, {folder}" in said
    said = mistakes(folder, "trace: traces/tinny\nhardware: t4\n")[0]
    assert "did you mean 'tiny'?" in said


def test_a_path_on_the_command_line_is_right_behind_a_link(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.yaml").write_text(TEXT, encoding="utf-8")
    (folder / "here" / "deep").mkdir()
    (folder / "here" / "deep" / "link").symlink_to(folder)
    monkeypatch.chdir(folder / "here")
    scenario = load_scenario("deep/link/x.yaml", ["trace=mytrace"])
    assert scenario.trace_path.resolve() == folder / "here" / "mytrace"


# --- hints ----------------------------------------------------------------------------------------


def test_a_shape_that_does_not_fit_names_what_does(folder: Path) -> None:
    shape = named_shape("olmoe-1b-7b")
    layers, experts = len(shape.moe_layers), shape.num_experts
    knobs: dict[str, Any] = {"num_layers": layers, "num_experts": experts, "top_k": shape.top_k}
    synthesize(SyntheticKnobs(requests=1, prompt_tokens=1, output_tokens=1, **knobs)).save(
        folder / "traces" / "olmoe"
    )
    said = mistakes(folder, "trace: traces/olmoe\nhardware: t4\nmodel: mixtral-8x7b\n")[0]
    assert "these shipped models fit the trace: olmoe-1b-7b;" in said
    assert "moesim trace synth FOLDER --like mixtral-8x7b" in said


@pytest.mark.parametrize(
    ("header", "format_", "hint"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "plain", "those of `format: azure`"),
        ("arrival_s,prompt_tokens,output_tokens", "azure", "those of `format: plain`"),
        ("when,prompt_tokens", "plain", "it has when, prompt_tokens; `format` says which"),
    ],
)
def test_a_csv_of_another_format_names_it(
    folder: Path, header: str, format_: str, hint: str
) -> None:
    (folder / "b.csv").write_text(f"{header}\n", encoding="utf-8")
    arrivals = f"{{kind: csv, path: b.csv, format: {format_}}}"
    text = f"trace: traces/tiny\nhardware: t4\nworkload: {{arrivals: {arrivals}}}\n"
    assert hint in mistakes(folder, text)[0]


def test_a_policy_gets_a_path_option_as_seen_from_the_working_directory(folder: Path) -> None:
    text = "trace: traces/tiny\nhardware: t4\n"
    text += "cache: {policy: static, options: {profile: here/mytrace}}\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    _, options = policy_of(load_scenario(folder / "x.yaml"), "cache")
    assert options.profile == folder / "here" / "mytrace"
