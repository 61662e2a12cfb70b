"""The section `engine` of a scenario: times of the host, all 0 unless set."""

from __future__ import annotations

from pathlib import Path

import pytest
from workloads import tiny_trace

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, load_scenario


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
        ("engine: fast", "fast", "engine: "),
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
