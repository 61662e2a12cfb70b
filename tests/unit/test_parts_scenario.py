"""A scenario may name the parts of its machine instead of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from workloads import tiny_trace

from moesim.errors import ScenarioError
from moesim.hardware.parts import assemble
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.simulate import run

PARTS = {
    "gpu": "RTX 4090",
    "cpu": "Ryzen 9 7950X",
    "memory": "DDR5-5600 x2",
    "pcie": "4.0 x16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_trace(requests=2, prompt_tokens=3, output_tokens=2).save(tmp_path / "trace")
    return tmp_path


def written(folder: Path, hardware: Any, **sections: Any) -> Path:
    data = {"trace": "trace", "hardware": hardware, "bounds": False, **sections}
    (folder / "x.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return folder / "x.yaml"


def said(folder: Path, text: str) -> str:
    (folder / "x.yaml").write_text(f"trace: trace\n{text}\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as error:
        load_scenario(folder / "x.yaml").load_hardware()
    return str(error.value)


def test_the_machine_is_the_one_that_assemble_gives(folder: Path) -> None:
    scenario = load_scenario(written(folder, PARTS))
    assert scenario.load_hardware() == assemble(*PARTS.values()).hardware
    assert scenario.hardware.label == "RTX 4090, Ryzen 9 7950X, DDR5-5600 x2, 4.0 x16"
    summary = run(scenario).summary
    assert summary["hardware"] == scenario.hardware.label
    assert summary["cost_kind"] == "assumed"


def test_overrides_change_a_machine_of_parts_as_they_change_a_profile(folder: Path) -> None:
    changes = {"vram": "12GiB", "h2d": {"bandwidth": "5GB/s"}, "cpu_threads": 4}
    hardware = load_scenario(written(folder, {**PARTS, **changes})).load_hardware()
    assert hardware.vram_bytes == 12 * 2**30
    assert hardware.h2d.pinned_bytes_per_s == 5 * 10**9
    assert hardware.cpu_threads == 4
    assert hardware.figures["vram"].source == "set by the scenario"


def test_a_sweep_may_vary_a_part(folder: Path) -> None:
    path = written(folder, PARTS, sweep={"hardware.gpu": ["RTX 3060", "RTX 3090"]})
    points = expand_sweep(load_scenario(path))
    bandwidths = [point.load_hardware().memory_bytes_per_s for _, point in points]
    assert bandwidths == [360 * 10**9, 936 * 10**9]


def test_the_resolved_scenario_names_the_parts_first_and_reads_back(folder: Path) -> None:
    scenario = load_scenario(written(folder, {**PARTS, "vram": "12GiB"}))
    plain = scenario.resolved()
    assert list(plain["hardware"])[:4] == ["gpu", "cpu", "memory", "pcie"]
    assert "profile" not in plain["hardware"]
    assert Scenario.model_validate(plain).hardware == scenario.hardware


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("hardware: {gpu: RTX 4091}", "x.yaml:2:17: hardware.gpu", "did you mean 'rtx-409"),
        ("hardware: {gpu: RTX 3090 48GB}", "x.yaml:2:17: hardware.gpu", "has 24 GiB"),
        ("hardware:\n  gpu: RTX 4090\n  cpu: Ryzen 9 7951X", "x.yaml:4:8: hardware.cpu", "7950x"),
        (
            "hardware: {gpu: RTX 4090, memory: 64 GB of DDR9}",
            "x.yaml:2:35: hardware.memory",
            "'of DDR9' is not understood; docs/machines.md",
        ),
        ("hardware: {gpu: RTX 4090, pcie: fast}", "x.yaml:2:33: hardware.pcie", "'fast'"),
        ("hardware: {profile: t4, cpu: EPYC 9654}", "x.yaml:2:30: hardware.cpu", "already"),
        ("hardware: {profile: t4, gpu: T4}", "x.yaml:2:30: hardware.gpu", "already"),
        (
            "hardware: {cpu: EPYC 9654}",
            "hardware.profile",
            "or name the parts, like `gpu: RTX 4090`",
        ),
        (
            "hardware: {gpu: RTX 4090, cpu: i5-12400, cpu_threads: 7}",
            "x.yaml:2:55: hardware.cpu_threads",
            "there are 6 cores",
        ),
    ],
)
def test_mistakes_point_at_their_key(folder: Path, text: str, place: str, message: str) -> None:
    problem = said(folder, text)
    assert place in problem
    assert message in problem


def test_notes_say_what_was_supposed(folder: Path) -> None:
    notes = run(load_scenario(written(folder, {"gpu": "RTX 4090"}))).summary["notes"]
    assert any("the link is PCIe 4.0 x16" in note for note in notes)
    full = run(load_scenario(written(folder, PARTS))).summary["notes"]
    assert not any("the link" in note for note in full)


def test_the_gpu_of_unified_memory_serves_beside_the_cpu(folder: Path) -> None:
    hardware = {"gpu": "Radeon 8060S", "cpu": "Ryzen AI MAX+ 395", "memory": "128 GB unified"}
    placement = {"policy": "cpu_layers", "options": {"layers": 2}}
    both = run(load_scenario(written(folder, hardware, placement=placement))).summary
    assert both["cpu_busy_share"] > 0
    assert both["h2d_busy_share"] == 0
