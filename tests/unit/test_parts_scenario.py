"""A scenario may name the parts of its machine instead of a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from workloads import TINY_CONFIG, tiny_trace

from moesim.errors import BudgetError, ScenarioError
from moesim.hardware.parts import assemble
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.simulate import prepare, run

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


SIZED = {**PARTS, "memory": "8 GB DDR5-5600 dual channel"}
EIGHT_GIB = 8 * 2**30


def test_the_size_in_the_text_of_the_memory_is_that_of_host_memory(folder: Path) -> None:
    scenario = load_scenario(written(folder, SIZED))
    summary = run(scenario).summary
    assert summary["host_memory_bytes"] == EIGHT_GIB
    assert "unlimited" not in str(summary["notes"])
    # A resolved scenario gives the same.
    assert Scenario.model_validate(scenario.resolved()).memory.host == EIGHT_GIB
    seen = {**PARTS, "memory": "64 GB DDR5-5600, 62 GB seen"}
    assert load_scenario(written(folder, seen)).memory.host == 62 * 2**30


@pytest.mark.parametrize(
    ("hardware", "memory", "host"),
    [
        (SIZED, {"host": "unlimited"}, None),
        (SIZED, {"host": "4GiB"}, 4 * 2**30),
        (SIZED, {"kv": "1GiB"}, EIGHT_GIB),
        (PARTS, {}, None),  # the text gives no size
        ({"profile": "t4"}, {}, None),
        ({"gpu": "Radeon 8060S", "memory": "128 GB unified"}, {}, None),  # it is GPU memory
        ({"gpu": "none", "cpu": "Ryzen 9 7950X", "memory": "64 GB DDR5"}, {}, None),
    ],
)
def test_what_the_scenario_says_of_host_memory_counts_more_than_a_text(
    folder: Path, hardware: Any, memory: Any, host: int | None
) -> None:
    assert load_scenario(written(folder, hardware, memory=memory)).memory.host == host


def test_each_point_of_a_sweep_has_the_size_of_its_text(folder: Path) -> None:
    texts = ["8 GB DDR5", "16 GB DDR5", "DDR5"]
    path = written(folder, SIZED, sweep={"hardware.memory": texts})
    points = [scenario for _, scenario in expand_sweep(load_scenario(path))]
    assert [point.memory.host for point in points] == [EIGHT_GIB, 2 * EIGHT_GIB, None]


LARGE = {"model": {"shape": "large.json"}}
"""Its 32 experts take 24 GiB, 6 GiB a layer."""


def large(folder: Path, hardware: Any, **sections: Any) -> Path:
    wide = {**TINY_CONFIG, "hidden_size": 4096, "intermediate_size": 32768}
    (folder / "large.json").write_text(json.dumps(wide), encoding="utf-8")
    return written(folder, hardware, **LARGE, **sections)


def on_cpu(layers: int) -> dict[str, Any]:
    return {"policy": "cpu_layers", "options": {"layers": layers}}


def test_experts_beyond_the_size_in_the_text_are_refused_at_the_text(folder: Path) -> None:
    path = large(folder, SIZED)
    with pytest.raises(BudgetError) as caught:
        prepare(load_scenario(path))
    line = path.read_text(encoding="utf-8").splitlines().index("  memory: " + SIZED["memory"]) + 1
    assert str(caught.value).startswith(f"{path}:{line}:11: impossible host memory: the parts exce")
    disk = {**SIZED, "disk": {"latency": "100us", "bandwidth": "3GB/s"}}
    assert prepare(load_scenario(large(folder, disk))).places.host.needs_disk
    named = large(folder, SIZED, memory={"host": "9GiB"})
    with pytest.raises(BudgetError, match=r"x\.yaml:\d+:9: impossible host memory"):
        prepare(load_scenario(named))


def test_experts_that_never_leave_the_gpu_need_no_host_memory(folder: Path) -> None:
    """As with an engine that maps the file of the model: it drops what the GPU has."""
    roomy = {**SIZED, "vram": "40GiB"}
    plan = prepare(load_scenario(large(folder, roomy, placement=on_cpu(1))))
    assert plan.places.host.experts_bytes == 6 * 2**30
    assert not plan.places.host.needs_disk
    with pytest.raises(BudgetError, match="the parts exceed the memory, and the hardware has no "):
        prepare(load_scenario(large(folder, roomy, placement=on_cpu(2))))
    # All experts are resident from the start.
    cache = {"slots": 32, "initial_layers": 4}
    assert prepare(load_scenario(large(folder, roomy, cache=cache))).places.host.experts_bytes == 0
    with pytest.raises(BudgetError):
        prepare(load_scenario(large(folder, roomy, cache={"slots": 32, "initial_layers": 2})))
    # Where all of them fit, they all count.
    plenty = {**roomy, "memory": "32 GB DDR5-5600"}
    plan = prepare(load_scenario(large(folder, plenty, placement=on_cpu(1))))
    assert plan.places.host.experts_bytes == 24 * 2**30
