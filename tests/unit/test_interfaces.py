"""Which of an engine's kernels run on a card: by default those of its vendor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from random_lanes import ENGINE, QUIET
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.engines import load_engine
from moesim.engines.interface import interface_for
from moesim.errors import ScenarioError, UsageError
from moesim.hardware import hardware_names, load_hardware
from moesim.hardware.parts import assemble, gpus
from moesim.hardware.vendors import INTERFACES, vendor_of
from moesim.report.metrics import run_caption
from moesim.report.runs import load_run
from moesim.report.summary import summary_tables
from moesim.scenario import load_scenario
from moesim.simulate import prepare, run, summarise

LLAMA = load_engine("llama.cpp")


@pytest.mark.parametrize(
    ("card", "interface"),
    [("RTX 3060 12GB", "cuda"), ("RX 6700 XT", "hip"), ("Arc B580", "sycl"), ("M2 Max", "metal")],
)
def test_the_default_is_the_interface_of_the_vendor(card: str, interface: str) -> None:
    assert interface_for(LLAMA, assemble(card).hardware) == interface
    plan = plan_of(tiny_scenario(hardware={"gpu": card}, engine="llama.cpp"), tiny_trace())
    assert plan.interface == interface
    # The kernels are those of the interface, not only its name.
    assert plan.cost.times.kernels is LLAMA.gpu[interface]  # type: ignore[attr-defined]


def test_the_vendor_of_every_card_and_profile_is_known() -> None:
    makers = {"Radeon": "AMD", "Instinct": "AMD", "Intel": "Intel", "Apple": "Apple"}
    for name, card in gpus().items():
        expected = next((makers[word] for word in makers if word in card.family), "NVIDIA")
        assert vendor_of(assemble(name).hardware) == expected, name
    assert {vendor_of(load_hardware(name)) for name in hardware_names()} == {"NVIDIA"}


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("GeForce RTX 3060 with AMD Ryzen 5", "NVIDIA"),
        ("AMD Instinct MI300X", "AMD"),
        ("Intel Arc A770", "Intel"),
        ("my machine", None),
        ("carcass", None),  # holds "arc"
    ],
)
def test_the_first_vendor_in_the_name_of_a_profile_counts(name: str, vendor: str | None) -> None:
    hardware = dataclasses.replace(load_hardware("t4"), name=name)
    assert vendor_of(hardware) == vendor
    assert vendor_of(dataclasses.replace(hardware, has_gpu=False)) is None
    # Where nothing tells the vendor, the first of the profile runs, and nothing is refused.
    if vendor is None:
        assert interface_for(LLAMA, hardware) == next(iter(LLAMA.gpu))
        assert interface_for(LLAMA, hardware, "metal") == "metal"


@pytest.mark.parametrize("interface", ["cuda", "hip", "vulkan", "sycl", "metal"])
@pytest.mark.parametrize("card", ["RTX 4090", "RX 6700 XT", "Arc B580", "M2 Max"])
def test_only_interfaces_that_a_card_can_have_may_be_chosen(card: str, interface: str) -> None:
    hardware = assemble(card).hardware
    possible = INTERFACES[vendor_of(hardware) or ""]
    if interface in possible:
        assert interface_for(LLAMA, hardware, interface) == interface
        return
    with pytest.raises(UsageError, match=f"{interface} does not run on cards of ") as caught:
        interface_for(LLAMA, hardware, interface)
    assert f"write {' or '.join(possible)}" in str(caught.value)


def test_a_refused_interface_is_named_with_its_place(tmp_path: Path) -> None:
    tiny_trace().save(tmp_path / "trace")
    line = "engine: {profile: llama.cpp, interface: metal}"
    path = tmp_path / "x.yaml"
    path.write_text(f"trace: trace\nhardware: t4\n{line}\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    (problem,) = caught.value.problems
    place = f"{path}:3:{line.index('metal') + 1}: engine.interface: "
    assert problem.startswith(
        f"{place}metal does not run on cards of NVIDIA, like NVIDIA T4; write"
    )


def test_an_engine_without_kernels_for_a_card_is_a_caveat() -> None:
    def said(card: str) -> tuple[Any, list[str]]:
        scenario = tiny_scenario(hardware={"gpu": card}, engine=QUIET)
        summary = summarise(run_on(plan_of(scenario, tiny_trace(requests=1))))
        return summary["caveats"], summary["notes"]

    caveats, notes = said("RX 6700 XT")
    assert "engine quiet has no kernels for cards of AMD" in caveats
    assert any(note.endswith("like rx-6700-xt; its figures of cuda are used") for note in notes)
    assert "no kernels for cards" not in str(said("RTX 4090"))


@pytest.mark.parametrize(
    ("engine", "hardware", "text"),
    [
        ("llama.cpp", "{gpu: RX 6700 XT}", "llama.cpp, hip (assumed figures)"),
        (f"{{profile: {ENGINE}, interface: vulkan}}", "t4", f"{ENGINE}, vulkan (assumed figures)"),
        (QUIET, "t4", f"{QUIET} (assumed figures)"),  # has one only
    ],
)
def test_tables_and_captions_name_the_interface_where_an_engine_has_several(
    tmp_path: Path, engine: str, hardware: str, text: str
) -> None:
    tiny_trace(requests=1).save(tmp_path / "trace")
    lines = ("trace: trace", "bounds: false", f"hardware: {hardware}", f"engine: {engine}")
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    run(path, out=tmp_path / "out")
    done = load_run(tmp_path / "out")
    assert done.engine == text
    rows = summary_tables(done)[0].rows
    assert [row[1].text.strip() for row in rows if row[0].text == "engine"] == [text]
    assert f", engine {text}; " in run_caption(done)
    assert ("engine_interface" in done.summary) == (", " in text)
