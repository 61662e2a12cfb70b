"""The section `engine` of a scenario: a profile, and times of its host that differ from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from random_lanes import ENGINE, QUIET
from workloads import tiny_trace

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.simulate import prepare, run


def scenario_with(folder: Path, section: str) -> Path:
    if not (folder / "trace").exists():
        tiny_trace().save(folder / "trace")
    path = folder / "scenario.yaml"
    path.write_text(f"trace: trace\nhardware: t4\n{section}\n")
    return path


def test_by_default_the_host_takes_no_time_and_sorts_the_tokens(tmp_path: Path) -> None:
    engine = load_scenario(scenario_with(tmp_path, "")).load_engine()
    assert (engine.launch_ns, engine.copy_ns, engine.event_ns) == (0, 0, 0)
    assert engine.sorting == "host"


def test_times_of_the_host_have_units_and_survive_being_written(tmp_path: Path) -> None:
    section = "engine: {launch: 5us, copy_launch: 8000ns, layer_event: 0.1ms, sorting: device}"
    scenario = load_scenario(scenario_with(tmp_path, section))
    assert scenario.engine.launch == 5_000
    assert scenario.engine.copy_launch == 8_000
    assert scenario.engine.layer_event == 100_000
    assert scenario.engine.sorting == "device"
    written = scenario.resolved()
    assert written["engine"] == {
        "profile": "ideal",
        "launch": "5000ns",
        "copy_launch": "8000ns",
        "layer_event": "100000ns",
        "sorting": "device",
    }
    assert Scenario.model_validate(written).engine == scenario.engine


@pytest.mark.parametrize(
    ("section", "pointed", "message"),
    [
        ("engine: {launch: -1us}", "-1us", "engine.launch: '-1us' is not a duration: it must not"),
        ("engine: {copy_launch: soon}", "soon", "engine.copy_launch: 'soon' is not a duration"),
        ("engine: {layer_event: 5GB}", "5GB", "engine.layer_event: '5GB' is not a duration"),
        ("engine: {sorting: gpu}", "gpu", "engine.sorting: "),
        ("engine: {launches: 5us}", "launches", "engine.launches: "),
        ("engine: fast", "fast", "engine: no engine is called 'fast', and it is no path"),
        ("engine: lama.cpp", "lama.cpp", "engine: no engine is called 'lama.cpp', and it is no "),
        (
            "engine: vllm",
            "vllm",
            "engine: there are no figures of vllm yet, because nothing measur",
        ),
        ("engine: null", "null", "engine: holds nothing; indent its keys below it, or take it out"),
        ("engine: {profile: no.yaml}", "no.yaml", "engine.profile: there is no engine profile "),
        ("engine: {interface: gpu}", "gpu", "engine.interface: 'gpu' is none of cuda, hip, vulka"),
    ],
)
def test_a_wrong_time_is_named_with_its_place(
    tmp_path: Path, section: str, pointed: str, message: str
) -> None:
    path = scenario_with(tmp_path, section)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:3:{section.index(pointed) + 1}: {message}"), problem


def set_by(scenario: Scenario) -> tuple[int, bool, Any]:
    """Return the values of a scenario that an engine may give it."""
    batching, options = scenario.batching, scenario.placement.options
    return batching.token_budget, scenario.hardware.pinned, options.get("copy_rows", "unset")


ON_CPU = "placement: cpu_layers"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (ON_CPU, (512, True, "unset")),
        (f"engine: {ENGINE}", (7, False, "unset")),
        (f"engine: {ENGINE}\n{ON_CPU}", (7, False, 5)),
        (f"engine: {ENGINE}\nbatching: {{token_budget: 9}}\n{ON_CPU}", (9, False, 5)),
        (f"engine: {ENGINE}\nplacement: {{policy: cpu_layers, options: {{copy_rows: 6}}}}",
         (7, False, 6)),
        # Who says which experts are page-locked leaves the engine nothing to say.
        (f"engine: {ENGINE}\nmemory: {{pinned: all}}", (7, True, "unset")),
    ],
)  # fmt: skip
def test_an_engine_has_values_for_keys_that_the_scenario_leaves_out(
    tmp_path: Path, section: str, values: tuple[int, bool, Any]
) -> None:
    assert set_by(load_scenario(scenario_with(tmp_path, section))) == values


def test_what_is_set_on_the_command_line_is_the_scenarios_too(tmp_path: Path) -> None:
    path = scenario_with(tmp_path, "")
    assert set_by(load_scenario(path, [f"engine={ENGINE}"])) == (7, False, "unset")
    overrides = [f"engine={ENGINE}", "engine.launch=5us", "hardware.pinned=true"]
    scenario = load_scenario(path, overrides)
    assert set_by(scenario) == (7, True, "unset")
    assert scenario.load_engine().launch_ns == 5_000


def test_each_point_of_a_sweep_has_the_values_of_its_engine(tmp_path: Path) -> None:
    path = scenario_with(tmp_path, f"{ON_CPU}\nsweep: {{engine: [ideal, {QUIET}, {ENGINE}]}}")
    points = [scenario for _, scenario in expand_sweep(load_scenario(path))]
    assert [set_by(point) for point in points] == [
        (512, True, "unset"),
        (512, False, 32),
        (7, False, 5),
    ]


def test_a_relative_path_of_a_profile_starts_at_the_scenarios_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    shutil.copy(ENGINE, folder / "own.yaml")
    path = scenario_with(folder, "engine: own.yaml")
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(path)
    assert scenario.load_engine().name == "random"
    assert set_by(scenario) == (7, False, "unset")
    assert scenario.paths()["engine.profile"] == folder / "own.yaml"
    assert set_by(load_scenario(path, ["engine=inner/own.yaml"])) == (7, False, "unset")


def test_a_resolved_scenario_gives_the_same_result(tmp_path: Path) -> None:
    shutil.copy(ENGINE, tmp_path / "own.yaml")
    sections = f"engine: {{profile: own.yaml, launch: 2us}}\n{ON_CPU}"
    first = run(load_scenario(scenario_with(tmp_path, f"{sections}\nbounds: false")))
    first.scenario.write(tmp_path / "resolved.yaml", reader=tmp_path)
    second = run(load_scenario(tmp_path / "resolved.yaml"))
    assert second.summary == first.summary
    assert second.scenario.engine == first.scenario.engine


def test_mistakes_of_a_profile_point_at_its_lines(tmp_path: Path) -> None:
    text = Path(ENGINE).read_text(encoding="utf-8").replace("3us", "3GB")
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    scenario = load_scenario(scenario_with(tmp_path, "engine: own.yaml"))
    with pytest.raises(ScenarioError) as caught:
        prepare(scenario)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/own.yaml:5:17: host.step.value: '3GB' is not a duration")


def test_an_interface_without_figures_is_named_with_its_place(tmp_path: Path) -> None:
    section = f"engine: {{profile: {ENGINE}, interface: metal}}"
    path = scenario_with(tmp_path, section)
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    (problem,) = caught.value.problems
    place = f"{path}:3:{section.index('metal') + 1}: engine.interface: "
    assert problem.startswith(
        f"{place}the engine random has no figures for metal; it has cuda, vulkan"
    )
