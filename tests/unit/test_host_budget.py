"""One budget of host memory: its parts are exact and fit, or are refused with the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import tiny_scenario, tiny_trace

from moesim.config.units import format_bytes
from moesim.errors import BudgetError, ScenarioError
from moesim.hardware import load_hardware
from moesim.model.shapes import ModelShape, named_shape
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.unused import unused_keys
from moesim.serving.experts.host_budget import HostBudget, plan_host
from moesim.serving.experts.host_memory import PAGE_BYTES, HostMemory

# 2 MoE layers of 4 experts, each of 3 * 64 * 32 * 2 = 12,288 bytes: 3 pages.
SHAPE = ModelShape(
    name="tiny",
    num_layers=2,
    hidden=64,
    expert_ffn=32,
    num_experts=4,
    top_k=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    vocabulary=100,
)
EXPERT = 12_288
ALL = 8 * EXPERT
MIB = 2**20
WITH_DISK: Any = SimpleNamespace(disk=object())
WITHOUT: Any = load_hardware("t4")


def budget(
    memory: dict[str, Any],
    hardware: Any = WITH_DISK,
    shape: ModelShape = SHAPE,
    *,
    changes: Any = None,
    **parts: Any,
) -> HostBudget:
    scenario = Scenario.model_validate(tiny_scenario(memory=memory, **(changes or {})))
    return plan_host(scenario, shape, hardware, **parts)


def refusal(memory: dict[str, Any], hardware: Any = WITH_DISK, **parts: Any) -> str:
    with pytest.raises(BudgetError) as caught:
        budget(memory, hardware, **parts)
    return str(caught.value)


def test_unlimited_host_memory_holds_everything_and_needs_no_disk() -> None:
    plan = budget({}, WITHOUT, kv_bytes_on_host=10**15, layers_on_cpu=(0, 1))
    assert (plan.capacity_bytes, plan.room_bytes, plan.needs_disk) == (None, None, False)
    assert plan.memory(SHAPE.sizes()) is None


def test_every_part_is_what_it_says() -> None:
    parts: Any = {"layers_on_cpu": (1,), "kv_bytes_on_host": 1000}
    weights = 2 * SHAPE.front_params
    plan = budget({"host": weights + 1000 + 5 * EXPERT, "pinned": "25%"}, **parts)
    assert (plan.weights_bytes, plan.kv_bytes) == (weights, 1000)
    assert (plan.num_pinned, plan.pinned_bytes) == (2, 2 * EXPERT)
    assert (plan.experts_bytes, plan.room_bytes) == (ALL, 5 * EXPERT)
    assert plan.needs_disk
    memory = plan.memory(SHAPE.sizes())
    assert isinstance(memory, HostMemory)
    places = [memory.place(key) for key in range(8)]
    assert [plan.is_pinned(key) for key in range(8)] == [True] * 2 + [False] * 6
    assert places == ["host"] * 2 + ["disk"] * 3 + ["host"] * 3  # pinned, then the file's end


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        *(("all", 8), ("none", 0), ("100%", 8), ("0%", 0), ("50%", 4), (0, 0), ("auto", 8)),
        *((f"{3 * EXPERT}B", 3), (f"{3 * EXPERT - 1}B", 2), ("1GiB", 8)),
    ],
)
def test_pinned_experts_may_be_all_none_a_size_or_a_share(pinned: Any, expected: int) -> None:
    for host in ("unlimited", ALL):
        assert budget({"pinned": pinned, "host": host}).num_pinned == expected


@pytest.mark.parametrize(
    ("memory", "pinned", "unread"),
    [
        ({}, True, ["pageable"]),
        ({}, False, ["pinned"]),
        ({"host": "1GiB"}, True, []),
        ({"host": "1GiB"}, False, ["pinned"]),
        ({"pinned": "all"}, False, ["pageable"]),
        ({"pinned": "none"}, True, ["pinned"]),
        ({"pinned": "50%"}, True, []),
        ({"pinned": "1GiB"}, False, []),
    ],
)
def test_a_rate_of_copies_that_no_expert_uses_is_said_to_be_unused(
    memory: dict[str, Any], pinned: bool, unread: list[str]
) -> None:
    link = {"pinned_bandwidth": "2GB/s", "pageable_bandwidth": "1GB/s"}
    hardware = {"profile": "t4", "pinned": pinned, "h2d": link}
    scenario = Scenario.model_validate(tiny_scenario(memory=memory, hardware=hardware))
    unused = [key for key in unused_keys(scenario) if key.startswith("hardware.h2d")]
    assert unused == [f"hardware.h2d.{rate}_bandwidth" for rate in unread]
    overruled = "pinned" in memory and not pinned
    assert ("hardware.pinned" in unused_keys(scenario)) == overruled


def test_auto_pins_as_the_hardware_says_where_all_experts_fit() -> None:
    pageable = {"hardware": {"profile": "t4", "pinned": False}}
    assert budget({"host": ALL}).num_pinned == 8
    assert budget({"host": ALL}, changes=pageable).num_pinned == 0
    assert budget({}, changes=pageable).num_pinned == 0
    assert budget({"host": ALL - 1}).num_pinned == 0
    assert budget({"pinned": "all"}, changes=pageable).num_pinned == 8


def test_pages_are_counted_whole_and_experts_to_the_byte() -> None:
    odd = replace(SHAPE, expert_bits=17)  # 13,056 bytes: 3.19 pages
    assert odd.expert_bytes == 13_056
    assert budget({}, shape=odd).experts_bytes == 8 * 4 * PAGE_BYTES
    assert budget({"host_cache": "expert"}, shape=odd).experts_bytes == 8 * 13_056


@pytest.mark.parametrize(("unit", "size"), [("page", 4 * PAGE_BYTES), ("expert", 13_056)])
def test_no_more_bytes_are_pinned_than_are_asked_for(unit: str, size: int) -> None:
    """With pages an expert takes more than its own bytes."""
    odd = replace(SHAPE, expert_bits=17)
    for nbytes, number in [(3 * size, 3), (3 * size - 1, 2)]:
        plan = budget({"pinned": f"{nbytes}B", "host_cache": unit}, shape=odd)
        assert (plan.num_pinned, plan.pinned_bytes) == (number, number * size)


def test_the_layers_of_a_model_together_have_all_weights_but_those_of_experts() -> None:
    for name in ("mixtral-8x7b", "deepseek-v2-lite", "qwen1.5-moe-a2.7b"):
        shape = named_shape(name)
        layers = range(shape.num_layers + 1)
        assert shape.layers_bytes(layers) == shape.fixed_bytes
        assert abs(sum(shape.layers_bytes([layer]) for layer in layers) - shape.fixed_bytes) <= len(
            layers
        )
        dense = [shape.layers_bytes([layer]) for layer in shape.dense_layers]
        assert dense == [2 * shape.dense_params] * len(dense)
    assert shape.layers_bytes(()) == 0


def test_a_refusal_counts_only_experts_that_are_in_host_memory() -> None:
    text = refusal({"host": ALL - 3 * EXPERT - 1}, WITHOUT, always_on_gpu=(0, 1, 2))
    assert "5 experts: 60 KiB" in text
    assert "all 5" not in text


def test_host_memory_is_enough_or_too_little_by_one_byte() -> None:
    parts: Any = {"layers_on_cpu": (0, 2), "kv_bytes_on_host": 77}
    fixed = 77 + SHAPE.layers_bytes((0, 2))
    for memory, hardware, enough in (
        ({"pinned": "none"}, WITH_DISK, fixed + EXPERT),
        ({"pinned": "50%"}, WITH_DISK, fixed + 5 * EXPERT),
        ({"pinned": "all"}, WITH_DISK, fixed + ALL),
        ({}, WITHOUT, fixed + ALL),
    ):
        budget({**memory, "host": enough}, hardware, **parts)
        with pytest.raises(BudgetError):
            budget({**memory, "host": enough - 1}, hardware, **parts)


def test_only_experts_that_are_not_pinned_need_room_for_the_largest() -> None:
    shape = replace(SHAPE, single_expert_bits=((0, 0, 64.0),))  # four times as large
    assert budget({"host": 5 * EXPERT, "pinned": "12.5%"}, shape=shape).pinned_bytes == 4 * EXPERT
    with pytest.raises(BudgetError, match="leave too little"):
        budget({"host": 3 * EXPERT, "pinned": "none"}, shape=shape)


def test_the_size_that_a_refusal_suggests_is_the_least() -> None:
    mixtral = named_shape("mixtral-8x7b")
    expert = mixtral.expert_bytes
    assert expert % MIB == 0
    for hardware, experts in ((WITH_DISK, 1), (WITHOUT, 256)):
        with pytest.raises(BudgetError, match=rf"memory\.host: {experts * expert // MIB}MiB, or"):
            budget({"host": "64MiB"}, hardware, mixtral)


@pytest.mark.parametrize(
    ("memory", "hardware", "parts", "says"),
    [
        ({"host": 10}, WITH_DISK, {"kv_bytes_on_host": 11}, ["leave nothing", "host: 11 B"]),
        ({"host": 10}, WITH_DISK, {"layers_on_cpu": (0,)}, ["leave nothing", "layers on the CPU"]),
        ({"host": EXPERT, "pinned": "all"}, WITH_DISK, {}, ["exceed the memory", "8 pinned"]),
        (
            {"host": 2 * EXPERT, "pinned": "25%"},
            WITH_DISK,
            {},
            ["leave too little for one more expert", "largest other expert: 12 KiB"],
        ),
        ({"host": EXPERT - 1}, WITH_DISK, {}, ["leave too little for one more expert"]),
        (
            {"host": ALL - 1},
            WITHOUT,
            {},
            ["the hardware has no disk", "all 8 experts: 96 KiB (98304 bytes)", "hardware.disk: "],
        ),
    ],
)
def test_a_refusal_lists_what_is_too_large(
    memory: dict[str, Any], hardware: Any, parts: Any, says: list[str]
) -> None:
    text = refusal(memory, hardware, **parts)
    assert text.startswith("scenario: impossible host memory: the parts ")
    for part in [*says, f"of {format_bytes(memory['host'])} ({memory['host']} bytes)", "try "]:
        assert part in text


@given(
    host=st.integers(1, ALL + 60_000),
    pinned=st.sampled_from(["auto", "all", "none", "40%", 30_000]),
    unit=st.sampled_from(["expert", "page"]),
    disk=st.booleans(),
    layers=st.sets(st.integers(0, 2)),
    kv=st.integers(0, 20_000),
    bits=st.sampled_from([(), ((0, 2, 32.0),), ((0, 0, 8.0), (1, 3, 5.5))]),
)
def test_a_plan_fits_or_its_refusal_names_changes_that_fit(
    host: int, pinned: Any, unit: Any, disk: bool, layers: set[int], kv: int, bits: Any
) -> None:
    shape = replace(SHAPE, single_expert_bits=bits)
    hardware = WITH_DISK if disk else WITHOUT
    memory = {"host": host, "pinned": pinned, "host_cache": unit}
    parts: Any = {"layers_on_cpu": layers, "kv_bytes_on_host": kv}
    try:
        plan = budget(memory, hardware, shape, **parts)
    except BudgetError as error:
        remedies = str(error).partition("\n  try ")[2].split(", or ")
        assert "fewer model.expert_bits" in remedies
        for remedy in remedies[:-1]:
            change, disk_too = dict(memory), hardware
            if remedy.startswith("a disk"):
                disk_too = WITH_DISK
            else:
                found = re.fullmatch(r"memory\.(\w+): (\w+)", remedy)
                assert found
                change[found[1]] = found[2]
            budget(change, disk_too, shape, **parts)
        return
    assert plan.room_bytes is not None
    assert plan.weights_bytes + plan.kv_bytes + plan.pinned_bytes <= host
    assert plan.needs_disk <= disk
    store = plan.memory(shape.sizes())
    if isinstance(store, HostMemory):
        assert plan.weights_bytes + plan.kv_bytes + store.held_bytes <= host
        assert {store.place(key) for key in range(plan.num_pinned)} <= {"host"}
        assert "disk" in {store.place(key) for key in range(8)}
    else:
        assert not plan.needs_disk


def test_the_message_points_at_the_key_that_is_wrong(tmp_path: Path) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "small.yaml"
    path.write_text(f"trace: {trace.path}\nhardware: t4\nmemory:\n  host: 20kB\n  pinned: all\n")
    for overrides, place in (
        ([], "small.yaml:5:11: impossible host memory: the parts exceed"),
        (["memory.pinned=auto"], "small.yaml:4:9: impossible host memory: the parts exceed"),
        (["memory.host=20"], "--set memory.host: impossible host memory: the parts exceed"),
    ):
        scenario = load_scenario(path, overrides)
        with pytest.raises(BudgetError) as caught:
            plan_host(scenario, SHAPE, WITHOUT if "auto" in str(overrides) else WITH_DISK)
        assert place in str(caught.value)
    assert "memory.host is 20 without a unit: read as 20 B" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("pinned: some", "page-locked memory is auto, all, none, a size"),
        ("pinned: 101%", "page-locked memory is auto, all, none, a size"),
        ("pinned: true", "page-locked memory is auto, all, none, a size"),
        ("host: rest", "'rest' is not a size"),
        ("host: 0", "must be greater than zero"),
        ("host: null", "is neither unlimited nor a size"),
        ("host_cache: pages", "'pages' is none of page, expert"),
    ],
)
def test_a_meaningless_value_is_refused_with_its_place(
    tmp_path: Path, line: str, says: str
) -> None:
    trace = tiny_trace(requests=1).save(tmp_path / "trace")
    path = tmp_path / "x.yaml"
    path.write_text(f"trace: {trace.path}\nhardware: t4\nmemory:\n  {line}\n")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    (problem,) = caught.value.problems
    assert f"x.yaml:4:{4 + line.index(' ')}: memory." in problem
    assert says in problem


@given(
    st.sampled_from(["unlimited", "64GiB", "1.5TB", 7]),
    st.sampled_from(["page", "expert"]),
    st.sampled_from(["auto", "all", "none", "4GiB", 0, 9, "12.5%"]),
)
def test_the_keys_read_back_as_written(host: Any, unit: Any, pinned: Any) -> None:
    memory = {"host": host, "host_cache": unit, "pinned": pinned}
    scenario = Scenario.model_validate(tiny_scenario(memory=memory))
    again = Scenario.model_validate(scenario.resolved())
    assert again.memory == scenario.memory
