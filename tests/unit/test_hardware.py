"""Profiles give every figure a source, and overrides replace exactly what they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from workloads import tiny_trace

from moesim.errors import ScenarioError, UsageError
from moesim.hardware import hardware_names, load_hardware
from moesim.hardware.hardware import PROFILES, Disk, IncompleteDisk, TooManyThreads
from moesim.hardware.parts import gpus
from moesim.hardware.parts.tables import simd_classes
from moesim.scenario import load_scenario
from moesim.simulate import prepare

CARDS = ["a100-80gb", "h100-80gb", "rtx-3060-12gb", "rtx-4090", "t4"]


def test_the_shipped_profiles_are_these() -> None:
    assert hardware_names() == CARDS


@pytest.mark.parametrize("card", CARDS)
def test_every_figure_has_a_source_and_is_assumed(card: str) -> None:
    hardware = load_hardware(card)
    assert len(hardware.figures) == 18
    assert all(figure.source and figure.kind == "assumed" for figure in hardware.figures.values())
    assert hardware.cost_kind == "assumed"
    assert hardware.h2d.pageable_bytes_per_s < hardware.h2d.pinned_bytes_per_s
    assert hardware.h2d.pinned_bytes_per_s < hardware.memory_bytes_per_s


@pytest.mark.parametrize(
    ("card", "gib", "tenth_tflops", "gb_per_s", "link_gb_per_s"),
    [
        ("rtx-3060-12gb", 12, 255, 360, 25.0),
        ("rtx-4090", 24, 1652, 1008, 25.0),
        ("t4", 16, 650, 320, 12.3),
        ("a100-80gb", 80, 3120, 2039, 25.0),
        ("h100-80gb", 80, 9890, 3350, 50.0),
    ],
)
def test_figures_are_those_of_the_datasheets(
    card: str, gib: int, tenth_tflops: int, gb_per_s: int, link_gb_per_s: float
) -> None:
    hardware = load_hardware(card)
    assert hardware.vram_bytes == gib * 2**30
    assert hardware.flops_per_s == tenth_tflops * 10**11
    assert hardware.memory_bytes_per_s == gb_per_s * 10**9
    assert hardware.h2d.pinned_bytes_per_s == round(link_gb_per_s * 10**9)


@pytest.mark.parametrize(
    ("profile", "card"),
    [
        ("rtx-3060-12gb", "rtx-3060-12gb"),
        ("rtx-4090", "rtx-4090"),
        ("t4", "t4"),
        ("a100-80gb", "a100-sxm-80gb"),
        ("h100-80gb", "h100-sxm"),
    ],
)
def test_profiles_and_the_catalogue_agree(profile: str, card: str) -> None:
    hardware, named = load_hardware(profile), gpus()[card]
    assert hardware.vram_bytes == named.vram_bytes
    assert hardware.memory_bytes_per_s == named.memory_bytes_per_s
    # Datasheets round what follows from units and clocks.
    assert hardware.flops_per_s == pytest.approx(named.flops_per_s, rel=0.005)
    assert hardware.int8_ops_per_s == pytest.approx(named.int8_ops_per_s, rel=0.005)
    source = hardware.figures["cpu_int8_ops"].source
    assert "cpu_flops" in source
    assert "no named processor" in " ".join(source.split())


@pytest.mark.parametrize(
    ("card", "ghz", "simd"),
    [
        ("rtx-3060-12gb", 4.0, "avx2"),
        ("rtx-4090", 5.0, "avx2"),
        ("t4", 2.0, "avx512-vnni"),
        ("a100-80gb", 3.0, "avx2"),
        ("h100-80gb", 2.5, "avx512-vnni"),
    ],
)
def test_integers_on_the_cpu_are_those_of_the_processor_that_a_profile_stands_for(
    card: str, ghz: float, simd: str
) -> None:
    hardware = load_hardware(card)
    assert hardware.cpu_cores is not None
    a_core = simd_classes()[simd].int8 * ghz * 10**9
    assert hardware.cpu_int8_ops_per_s == round(hardware.cpu_cores * a_core)


def test_an_override_replaces_what_it_names_and_nothing_else() -> None:
    base = load_hardware("rtx-4090")
    changed = load_hardware("rtx-4090", {"vram": "8GiB", "h2d": {"latency": "20us", "chunk": 4096}})
    assert changed.vram_bytes == 8 * 2**30
    assert changed.h2d.latency_ns == 20_000
    assert changed.h2d.chunk_bytes == 4096
    assert changed.h2d.pinned_bytes_per_s == base.h2d.pinned_bytes_per_s
    assert changed.d2h == base.d2h
    assert changed.figures["vram"].source == "set by the scenario"
    assert changed.figures["flops"] == base.figures["flops"]


def test_one_bandwidth_stands_for_pinned_and_pageable_unless_told_apart() -> None:
    link = load_hardware("t4", {"h2d": {"bandwidth": "5GB/s"}}).h2d
    assert link.pinned_bytes_per_s == link.pageable_bytes_per_s == 5 * 10**9
    link = load_hardware("t4", {"h2d": {"bandwidth": "5GB/s", "pageable_bandwidth": "2GB/s"}}).h2d
    assert (link.pinned_bytes_per_s, link.pageable_bytes_per_s) == (5 * 10**9, 2 * 10**9)


def test_unknown_names_and_keys_are_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'rtx-4090'"):
        load_hardware("rtx4090")
    with pytest.raises(UsageError, match="there is no hardware profile"):
        load_hardware("nowhere/mine.yaml")
    with pytest.raises(ScenarioError) as caught:
        load_hardware("t4", {"vrm": 1, "flops": "fast", "h2d": {"latency": -1}})
    assert len(caught.value.problems) == 3
    assert "did you mean 'vram'?" in str(caught.value)


def test_a_profile_of_ones_own_is_read_and_checked_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    data = yaml.safe_load((PROFILES / "t4.yaml").read_text())
    data["vram"] = {"value": "2GiB", "kind": "measured", "source": "calibration"}
    path.write_text(yaml.safe_dump(data))
    assert load_hardware(path).vram_bytes == 2 * 2**30
    assert load_hardware(path).figures["vram"].kind == "measured"
    assert load_hardware(path).cost_kind == "assumed"

    data["flops"]["source"] = ""
    del data["h2d"]["latency"]
    data["d2h"]["latency"]["value"] = "soon"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ScenarioError) as caught:
        load_hardware(path)
    said = str(caught.value)
    assert len(caught.value.problems) == 3
    assert said.count(f"{path}:") == 3
    assert "flops.source: must not be empty" in said
    assert "h2d.latency: is required and missing" in said
    assert "d2h.latency.value: 'soon' is not a duration" in said


def test_only_a_profile_measured_throughout_is_called_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((PROFILES / "t4.yaml").read_text().replace("kind: assumed", "kind: measured"))
    assert load_hardware(path).cost_kind == "measured"
    assert load_hardware(path, {"vram": "8GiB"}).cost_kind == "assumed"


def test_a_card_without_a_profile_is_told_how_to_describe_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'rtx-4090'") as caught:
        load_hardware("rtx-4099")
    example = "`hardware: {profile: rtx-4090, vram: 24GiB, memory_bandwidth: 936GB/s}`"
    assert example in str(caught.value)
    data = yaml.safe_load(example.strip("`"))["hardware"]
    assert load_hardware(data.pop("profile"), data).memory_bytes_per_s == 936 * 10**9


@pytest.mark.parametrize("text", ["rtx-3090", "RTX 3090"])
def test_a_card_of_the_catalogue_is_told_how_a_scenario_names_it(text: str) -> None:
    with pytest.raises(UsageError, match=r"write `hardware: \{gpu: rtx-3090\}`"):
        load_hardware(text)


def test_a_figure_without_its_origin_is_shown_with_one(tmp_path: Path) -> None:
    data = yaml.safe_load((PROFILES / "t4.yaml").read_text())
    data["vram"] = "24GiB"
    data["h2d"]["latency"] = 7
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ScenarioError) as caught:
        load_hardware(path)
    ending = "kind: assumed, source: where the number is from}"
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        f"h2d.latency: 7 needs its origin; write {{value: 7, {ending}",
        f"vram: '24GiB' needs its origin; write {{value: 24GiB, {ending}",
    ]
    data["vram"] = {"value": "24GiB", "kind": "assumed", "source": "where the number is from"}
    data["h2d"]["latency"] = {"value": 7, "kind": "assumed", "source": "where it is from"}
    path.write_text(yaml.safe_dump(data))
    assert load_hardware(path).vram_bytes == 24 * 2**30


# --- figures of the host --------------------------------------------------------------------------

HOST_FIGURES = """\
host_memory: {value: 64GiB, kind: assumed, source: a}
host_memory_bandwidth: {value: 76.8GB/s, kind: assumed, source: a}
host_memory_efficiency: {value: 80%, kind: measured, source: a}
cpu_flops: {value: 2TFLOPS, kind: assumed, source: a}
cpu_efficiency: {value: 60%, kind: assumed, source: a}
cpu_overhead: {value: 15us, kind: assumed, source: a}
cpu_cores: {value: 16, kind: assumed, source: a}
core_memory_bandwidth: {value: 12GB/s, kind: assumed, source: a}
disk:
  latency: {value: 90us, kind: assumed, source: a}
  bandwidth: {value: 7GB/s, kind: assumed, source: a}
  queue_depth: {value: 8, kind: assumed, source: a}
"""


def without_host(tmp_path: Path, added: str = "") -> Path:
    """Return the path of a profile of the GPU alone, with lines added to it."""
    text = (PROFILES / "t4.yaml").read_text()
    path = tmp_path / "gpu.yaml"
    path.write_text(text[: text.index("host_memory_bandwidth:")] + added)
    return path


def test_a_profile_may_leave_the_cpu_and_host_memory_out(tmp_path: Path) -> None:
    hardware = load_hardware(without_host(tmp_path))
    assert hardware.host_memory_bytes_per_s is hardware.cpu_flops_per_s is None
    assert hardware.host_memory_bytes is hardware.cpu_cores is hardware.disk is None
    assert (hardware.host_memory_efficiency, hardware.cpu_efficiency) == (1.0, 1.0)
    assert hardware.cpu_overhead_ns == 0
    assert len(hardware.figures) == 14


def test_figures_of_the_host_have_sources_and_are_read_in_base_units(tmp_path: Path) -> None:
    hardware = load_hardware(without_host(tmp_path, HOST_FIGURES))
    assert hardware.host_memory_bytes == 64 * 2**30
    assert hardware.host_memory_bytes_per_s == 76_800_000_000
    assert hardware.host_memory_efficiency == 0.8
    assert hardware.cpu_flops_per_s == 2 * 10**12
    assert hardware.cpu_efficiency == 0.6
    assert hardware.cpu_overhead_ns == 15_000
    assert hardware.cpu_cores == 16
    assert hardware.core_memory_bytes_per_s == 12 * 10**9
    assert hardware.disk == Disk(90_000, 7 * 10**9, 8)
    assert hardware.cpu_threads is None
    assert len(hardware.figures) == 14 + 11
    assert hardware.figures["host_memory_efficiency"].kind == "measured"
    assert hardware.figures["disk.queue_depth"].source == "a"


def test_a_scenario_replaces_figures_of_the_host_or_adds_them(tmp_path: Path) -> None:
    path = without_host(tmp_path, HOST_FIGURES)
    changed = load_hardware(path, {"cpu_threads": 8, "disk": {"queue_depth": 1}})
    assert changed.cpu_threads == 8
    assert changed.disk == Disk(90_000, 7 * 10**9, 1)
    bare = without_host(tmp_path)
    added = load_hardware(bare, {"disk": {"latency": "1ms", "bandwidth": "500MB/s"}})
    assert added.disk == Disk(10**6, 5 * 10**8, 1)
    assert added.figures["disk.latency"].source == "set by the scenario"
    cores = load_hardware(bare, {"cpu_cores": 12, "cpu_threads": 12, "host_memory": "8GiB"})
    assert (cores.cpu_cores, cores.cpu_threads, cores.host_memory_bytes) == (12, 12, 2**33)


@pytest.mark.parametrize(
    ("before", "after", "pointed", "message"),
    [
        ("value: 80%", "value: 0%", "0%", "'0%' must be greater than zero"),
        ("value: 80%", "value: 120%", "120%", "'120%' is not a share from 0% to 100%"),
        ("value: 60%", "value: .nan", ".nan", "nan is not a share"),
        ("value: 15us", "value: -1us", "-1us", "'-1us' is not a duration: it must not be negative"),
        ("value: 16,", "value: 0,", "0,", "must be at least 1, not 0"),
        ("value: 16,", "value: 2.5,", "2.5", "must be a whole number, not 2.5"),
        ("value: 12GB/s", "value: 12Gb/s", "12Gb/s", "no unit 'Gb/s'; did you mean GB/s?"),
        ("value: 64GiB", "value: 1e30GB", "1e30GB", "it is too large"),
        ("latency: {value: 90us, ", "latency: {", "{", "is required and missing"),
        ("value: 8,", "value: 0,", "0,", "must be at least 1, not 0"),
        ("disk:", "disc:", "disc:", "did you mean 'disk'?"),
        ("{value: 16, kind: assumed, source: a}", "16", "16", "16 needs its origin"),
    ],
)
def test_a_wrong_figure_of_the_host_is_named_with_its_place(
    tmp_path: Path, before: str, after: str, pointed: str, message: str
) -> None:
    assert HOST_FIGURES.count(before) == 1
    path = without_host(tmp_path, HOST_FIGURES.replace(before, after))
    lines = path.read_text().splitlines()
    line = next(number for number, text in enumerate(lines) if after in text and number > 70)
    column = lines[line].index(pointed)
    with pytest.raises(ScenarioError) as caught:
        load_hardware(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:{line + 1}:{column + 1}: "), problem
    assert message in problem


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TooManyThreads, match=r"is 17, and there are 16 cores .* at most 16"):
        load_hardware(without_host(tmp_path, HOST_FIGURES), {"cpu_threads": 17})
    with pytest.raises(TooManyThreads, match="does not say how many cores"):
        load_hardware(without_host(tmp_path), {"cpu_threads": 1})
    with pytest.raises(IncompleteDisk, match="latency is missing, and the profile has no disk"):
        load_hardware(without_host(tmp_path), {"disk": {"bandwidth": "1GB/s"}})
    with pytest.raises(IncompleteDisk, match="bandwidth is missing"):
        load_hardware(without_host(tmp_path), {"disk": {"latency": "1us", "queue_depth": 3}})


@pytest.mark.parametrize(
    ("line", "pointed", "message"),
    [
        ("cpu_threads: 99", "99", "cpu_threads: is 99, and there are 4 cores"),
        ("cpu_threads: 0", "0", "cpu_threads: must be at least 1, not 0"),
        ("cpu_threads: many", "many", "cpu_threads: must be a whole number, not 'many'"),
        ("disk: {bandwidth: 2GB/s}", "{", "disk: latency is missing"),
        ("disk: {latency: 1us, bandwidth: 0}", "0}", "disk.bandwidth: 0 must be greater than zero"),
        ("disk: {depth: 3}", "depth", "disk.depth: "),
        ("cpu_overhead: 15 parsecs", "15", "cpu_overhead: '15 parsecs' is not a duration"),
    ],
)
def test_a_wrong_figure_of_a_scenario_is_named_with_its_place(
    tmp_path: Path, line: str, pointed: str, message: str
) -> None:
    tiny_trace().save(tmp_path / "trace")
    path = tmp_path / "scenario.yaml"
    path.write_text(f"trace: trace\nhardware:\n  profile: t4\n  {line}\n")
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:4:{line.index(pointed) + 3}: hardware.{message}"), problem
