"""Profiles give every figure a source, and overrides replace exactly what they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moesim.errors import ScenarioError, UsageError
from moesim.hardware import hardware_names, load_hardware
from moesim.hardware.hardware import PROFILES

CARDS = ["a100-80gb", "h100-80gb", "rtx-3060-12gb", "rtx-4090", "t4"]


def test_the_shipped_profiles_are_these() -> None:
    assert hardware_names() == CARDS


@pytest.mark.parametrize("card", CARDS)
def test_every_figure_has_a_source_and_is_assumed(card: str) -> None:
    hardware = load_hardware(card)
    assert len(hardware.figures) == 16
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
        load_hardware("rtx-3090")
    example = "`hardware: {profile: rtx-4090, vram: 24GiB, memory_bandwidth: 936GB/s}`"
    assert example in str(caught.value)
    data = yaml.safe_load(example.strip("`"))["hardware"]
    assert load_hardware(data.pop("profile"), data).memory_bytes_per_s == 936 * 10**9


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
