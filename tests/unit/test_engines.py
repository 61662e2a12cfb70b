"""Engine profiles: each figure has a kind and a source, and a run says how well it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measured_profiles import measured_profile, random_times, tiny_shape
from random_lanes import ENGINE, QUIET
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.config.yaml_document import dump_document, load_document
from moesim.engines.engine import IDEAL, engine_names, load_engine
from moesim.errors import ScenarioError, UsageError
from moesim.simulate import summarise

SHIPPED = [name for name in engine_names() if name != "ideal"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_of_a_shipped_engine_has_a_kind_and_a_source(name: str) -> None:
    engine = load_engine(name)
    assert engine.name == name
    assert len(engine.about.split()) > 3
    for key, origin in engine.figures.items():
        assert origin.kind in ("assumed", "fitted", "measured"), key
        assert not origin.bare, key
        assert len(origin.source.split()) > 1, f"{key}: {origin.source!r} names no source"


def changed(folder: Path, change: Any) -> str:
    """Return the path of the random engine's profile after a change."""
    data = load_document(ENGINE).data
    change(data)
    (folder / "own.yaml").write_text(dump_document(data), encoding="utf-8")
    return str(folder / "own.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sorting", "device", "sorting: 'device' needs its origin; write {value: device, kind: "),
        ("switch", {"value": "1us", "kind": "guessed", "source": "x"}, "switch.kind: 'guessed' is"),
        ("switch", {"value": "1us", "kind": "assumed", "source": ""}, "switch.source: must not be"),
        (
            "ubatch",
            {"value": 0, "kind": "assumed", "source": "x"},
            "ubatch.value: must be at least 1",
        ),
        (
            "swich",
            {"value": "1us", "kind": "assumed", "source": "x"},
            "swich: unknown key; did you",
        ),
        ("gpu", {"cude": {}}, "gpu.cude.[key]: 'cude' is none of cuda, hip, vulkan, sycl, metal"),
    ],
)
def test_a_wrong_figure_is_named_with_its_line(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = changed(tmp_path, lambda data: data.update({key: value}))
    with pytest.raises(ScenarioError) as caught:
        load_engine(path)
    assert any(f": {message}" in problem for problem in caught.value.problems), caught.value


@pytest.mark.parametrize("name", ["lama.cpp", "no.yaml", ""])
def test_an_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no engine"):
        load_engine(name)


def test_a_changed_profile_is_read_again(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda data: None)
    assert load_engine(path).ubatch == 7
    changed(tmp_path, lambda data: data["ubatch"].update(value=8))
    assert load_engine(path).ubatch == 8


def test_the_kind_of_an_engine_is_the_weakest_of_the_figures_that_act(tmp_path: Path) -> None:
    def of(text: str) -> Any:
        path = tmp_path / "kinds.yaml"
        path.write_text(text, encoding="utf-8")
        return load_engine(str(path))

    text = Path(ENGINE).read_text(encoding="utf-8").replace("kind: assumed", "kind: measured")
    text = text.replace(
        "kind: fitted, source: made up}\nsorting", "kind: measured, source: x}\nsorting"
    )
    assert of(text).kind() == of(text).kind("cuda") == "measured"
    assert of(text).kind("vulkan") == "fitted"  # the kernel of this interface
    assert load_engine(ENGINE).kind() == "assumed"
    assert IDEAL.kind() == "ideal"


def test_times_of_a_scenario_are_assumed_and_take_the_place_of_those_of_the_profile() -> None:
    engine = load_engine(ENGINE)
    same = engine.with_times(launch_ns=engine.launch_ns, sorting="device")
    assert same is engine
    changed = engine.with_times(launch_ns=5_000, sorting="host")
    assert changed.changes == "launch 5 us, sorting host"
    assert changed.figures.keys() == engine.figures.keys()
    assert (changed.figures["host.launch"].kind, engine.figures["host.launch"].kind) == (
        "assumed",
        "measured",
    )
    assert IDEAL.with_times(event_ns=100).kind() == "assumed"
    assert IDEAL.with_times(event_ns=0, sorting="host") is IDEAL


@pytest.mark.parametrize(
    ("engine", "facts"),
    [
        ("ideal", ("ideal", "", "ideal")),
        ({"launch": "5us"}, ("ideal", "launch 5 us", "assumed")),
        (QUIET, (QUIET, "", "assumed")),
        ({"profile": ENGINE, "sorting": "host"}, (ENGINE, "sorting host", "assumed")),
    ],
)
def test_a_summary_names_the_engine(engine: Any, facts: tuple[str, str, str]) -> None:
    summary = summarise(run_on(plan_of(tiny_scenario(engine=engine), tiny_trace(requests=1))))
    assert tuple(summary[key] for key in ("engine", "engine_changes", "engine_kind")) == facts


DURATIONS = (
    *("host.step", "host.layer_event", "host.launch", "host.copy_launch", "switch"),
    *("gpu.cuda.kernel", "gpu.vulkan.kernel", "cpu.kernel", "cpu.thread"),
)


@pytest.mark.parametrize("kind", ["assumed", "fitted", "measured"])
@pytest.mark.parametrize("key", DURATIONS)
def test_a_number_without_its_unit_is_a_caveat(tmp_path: Path, key: str, kind: str) -> None:
    def bare(data: Any) -> None:
        for part in key.split("."):
            data = data[part]
        data.update(value=25, kind=kind)

    path = changed(tmp_path, bare)
    summary = summarise(run_on(plan_of(tiny_scenario(engine=path), tiny_trace(requests=1))))
    assert f"{key} of the engine has no unit" in summary["caveats"]
    note = f"{key} of {path} is 25 without a unit: read as 25 ns"
    assert [each for each in summary["notes"] if "without a unit" in each] == [note]


def test_every_time_of_an_engine_is_checked_for_its_unit() -> None:
    times = {key for key, origin in load_engine(ENGINE).figures.items() if origin.value.isdigit()}
    numbers = ("ubatch", "batch_threshold", "padding", "vector_rows", "vector_row", "sockets")
    assert {key for key in times if key.rpartition(".")[2] not in numbers} == set(DURATIONS)


def test_measured_operations_are_those_of_the_ideal_engine_alone(tmp_path: Path) -> None:
    profile = measured_profile(tmp_path / "mine.yaml", random_times(1, tiny_shape()))

    def of(engine: Any) -> dict[str, Any]:
        scenario = tiny_scenario(engine=engine, hardware=str(profile))
        return dict(summarise(run_on(plan_of(scenario, tiny_trace(requests=1)))))

    caveat = f"measured operations are not used under engine {QUIET}"
    assert caveat in of(QUIET)["caveats"]
    ideal = of("ideal")
    assert not ideal["caveats"]
    assert (ideal["engine"], ideal["engine_kind"]) == ("ideal", "measured")
    assert of({"launch": "5us"})["engine_kind"] == "assumed"


def test_an_engine_is_scaled_in_its_fixed_times_and_in_its_reads_of_weights() -> None:
    engine = load_engine(ENGINE)
    scaled = engine.scaled(2, cpu_reads=3, gpu_reads=0.5)
    times = ("step_ns", "event_ns", "launch_ns", "copy_ns", "switch_ns")
    assert [getattr(scaled, name) for name in times] == [
        2 * getattr(engine, name) for name in times
    ]
    assert engine.cpu is not None
    assert scaled.cpu is not None
    pairs = [(engine.cpu, scaled.cpu, 3.0)]
    pairs += [(engine.gpu[name], scaled.gpu[name], 0.5) for name in engine.gpu]
    for before, after, reads in pairs:
        assert after.kernel_ns == 2 * before.kernel_ns
        assert after.thread_ns == 2 * before.thread_ns
        for family, share in before.bandwidth.items():
            expected = share if family == "kv" else reads * share
            assert after.bandwidth[family] == pytest.approx(expected), family
        assert after.compute == before.compute
