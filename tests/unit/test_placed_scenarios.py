"""Scenarios with placements, host memory and a disk: what is refused, unused, noted and bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.config.units import format_bytes
from moesim.cost.estimate import CostEstimate
from moesim.cost.roofline import CostModel
from moesim.errors import BudgetError, PolicyViolation, ScenarioError, UsageError
from moesim.hardware.hardware import Figure
from moesim.policies.placement import Copy, Placement, fixes_residents
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.unused import unused_keys
from moesim.serving.stalls import CAUSES
from moesim.simulate import bounds_of, prepare, result_of, simulate, summarise
from moesim.simulate.verdict import more_slots, spent_of, verdict
from moesim.sweep import check_points, points_of
from moesim.workload.workload import build_workload

EXPERT = 3 * 512 * 1024 * 2
ALL = 32 * EXPERT
DISK = {"disk": {"latency": "80us", "bandwidth": "3GB/s"}}
FIXED = ["cpu_layers", "cpu_experts"]
MOVING = ["copy", "cost", "two_queue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("placed")
    tiny_trace(requests=2).save(made / "tiny")
    return made


def plans_of(path: Path) -> None:
    points = points_of(load_scenario(path), path.parent / "runs")
    check_points(points)
    for point in points:
        prepare(point.scenario)


def mistakes(folder: Path, text: str) -> list[str]:
    """Return what is said of the points of a scenario until they are plans."""
    path = folder / "x.yaml"
    path.write_text(f"trace: tiny\n{text}", encoding="utf-8")
    with pytest.raises((ScenarioError, BudgetError)) as caught:
        plans_of(path)
    problems = getattr(caught.value, "problems", [str(caught.value)])
    return [problem.replace(f"{path}:", "") for problem in problems]


def summary(**changes: Any) -> dict[str, Any]:
    """Return the summary of a run of the tiny trace."""
    trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=1)
    return dict(result_of(plan_of(tiny_scenario(**changes), trace)).summary)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", FIXED)
@pytest.mark.parametrize("prefetch", ["oracle", "predicted"])
def test_prefetch_is_refused_where_experts_never_move(
    folder: Path, placement: str, prefetch: str
) -> None:
    (said,) = mistakes(folder, f"hardware: t4\nplacement: {placement}\nprefetch: {prefetch}\n")
    assert said.startswith(f"4:11: prefetch.policy: {prefetch} copies experts to GPU memory")
    assert f"placement {placement} fixes which are there; write prefetch: none" in said


@pytest.mark.parametrize("placement", MOVING)
def test_prefetch_is_accepted_where_experts_come_and_go(placement: str) -> None:
    assert summary(placement=placement, prefetch="oracle", cache={"slots": 9})["finished"] == 3


def test_mistakes_of_places_are_reported_together_at_their_values(folder: Path) -> None:
    text = """\
hardware: {profile: t4, disk: {latency: 80us}}
memory: {host: 3 parsec, host_cache: pages, pinned: most}
engine: {launch: 5 parsec, sorting: gpu}
placement: {policy: cpu_layers, options: {layers: 9, whole_layers: 7}}
prefetch: oracle
"""
    said = mistakes(folder, text)
    starts = [problem.split(": ")[0:2] for problem in said]
    assert starts[:7] == [
        ["2:31", "hardware.disk"],
        ["3:16", "memory.host"],
        ["3:38", "memory.host_cache"],
        ["3:53", "memory.pinned"],
        ["4:18", "engine.launch"],
        ["4:37", "engine.sorting"],
        ["5:51", "placement.options.layers"],
    ], said
    assert ["6:11", "prefetch.policy"] in starts
    assert "it must be at most 4, the MoE layers of the trace, or all" in said[6]


def test_a_disk_without_bandwidth_is_refused_at_its_line(folder: Path) -> None:
    (said,) = mistakes(folder, "hardware: {profile: t4, disk: {latency: 80us}}\n")
    assert said.startswith("2:31: hardware.disk: ")
    assert "bandwidth" in said


def test_pinned_experts_that_exceed_host_memory_are_refused_at_their_line(folder: Path) -> None:
    text = "hardware: {profile: t4, disk: {latency: 80us, bandwidth: 3GB/s}}\n"
    text += f"memory: {{host: {8 * EXPERT}B, pinned: 50%}}\n"
    (said,) = mistakes(folder, text)
    assert said.startswith("3:35: impossible host memory: the parts exceed the memory")
    assert f"16 pinned experts: {format_bytes(16 * EXPERT)}" in said
    assert "memory.pinned: none" in said


def test_experts_that_exceed_host_memory_need_a_disk(folder: Path) -> None:
    (said,) = mistakes(folder, f"hardware: t4\nmemory: {{host: {8 * EXPERT}B}}\n")
    assert said.startswith("3:16: impossible host memory: the parts exceed the memory, and the")
    assert "hardware.disk: {bandwidth: 3GB/s, latency: 100us}" in said


def test_points_of_a_sweep_over_placements_are_checked_at_once(folder: Path) -> None:
    text = """\
hardware: t4
sed: 1
sweep:
  placement:
    - cost
    - cpu_experts
    - {policy: cpu_layers, options: {layers: 9}}
  prefetch: [none, oracle]
"""
    said = mistakes(folder, text)
    starts = [problem.split(": ")[0] for problem in said]
    assert starts[0] == "3:1"
    assert any("is 9; it must be at most 4" in problem for problem in said)
    # Until the file itself is right, each value is checked with the first of all other keys.
    right = mistakes(folder, text.replace("sed: 1", "seed: 1"))
    assert set(said[1:]) < set(right)
    assert any(
        problem.startswith("9:20: prefetch.policy: oracle copies experts to GPU memory, and "
                           "placement cpu_experts fixes") for problem in right
    )  # fmt: skip


# --- policies of other packages -------------------------------------------------------------------


def foreign(**members: Any) -> type[Placement]:
    return type("Elsewhere", (Copy,), {"__module__": __name__, **members})


def served(**changes: Any) -> dict[str, Any]:
    return summarise(run_on(plan_of(tiny_scenario(cache={"slots": 9}, **changes), tiny_trace())))


@pytest.mark.parametrize("lanes", [(), ("cpu",)])
def test_a_lane_that_no_machine_has_is_refused_at_run_time(
    monkeypatch: pytest.MonkeyPatch, lanes: tuple[str, ...]
) -> None:
    def place(self: Any, view: Any, absent: Any, estimate: Any) -> Any:
        return dict.fromkeys(absent, "npu")

    name = enlist(monkeypatch, "placement", foreign(lanes=lanes, place=place))
    with pytest.raises(PolicyViolation, match=r"step 0, MoE layer 0.*'npu'"):
        served(placement=name)


def test_a_policy_that_names_no_lanes_computes_on_the_gpu_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def place(self: Any, view: Any, absent: Any, estimate: Any) -> Any:
        return dict.fromkeys(absent, "cpu")

    name = enlist(monkeypatch, "placement", foreign(place=place))
    with pytest.raises(PolicyViolation, match="`lanes` of the policy adds cpu"):
        served(placement=name)


def test_a_layer_on_a_lane_that_no_machine_has_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members: dict[str, Any] = {"lanes": ("cpu",), "layer_lane": lambda self, layer: "npu"}
    name = enlist(monkeypatch, "placement", foreign(**members))
    with pytest.raises(PolicyViolation, match=r"model layer 0.*'npu'"):
        plan_of(tiny_scenario(placement=name), tiny_trace())


def test_a_policy_that_fixes_residents_must_return_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlist(monkeypatch, "placement", foreign(residents=lambda self, slots: None))
    with pytest.raises(PolicyViolation, match="returns None; return keys"):
        plan_of(tiny_scenario(placement=name), tiny_trace())


@pytest.mark.parametrize("sizes", [{}, {"expert_bits_by": {"layer": {"0": 8}}}])
def test_every_instance_of_a_policy_is_asked_with_the_slots_that_fit(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, Any]
) -> None:
    """So the instance that places experts holds the same ones as GPU memory."""
    asked: list[tuple[int, int]] = []

    def residents(self: Any, slots: int) -> Any:
        asked.append((slots, slots * 3 // 4))
        return range(slots * 3 // 4)

    name = enlist(monkeypatch, "placement", foreign(residents=residents))
    data = tiny_scenario(placement=name, cache={"slots": 20}, model=sizes or "trace")
    plan = plan_of(data, tiny_trace())
    run_on(plan)
    assert len(asked) > 1
    assert set(asked) == {(plan.places.fitting, sum(plan.slots))}
    assert len(plan.places.residents or ()) == sum(plan.slots) < plan.places.fitting


def test_only_policies_with_residents_of_their_own_fix_them() -> None:
    from moesim.policies import find

    assert [name for name in (*FIXED, *MOVING) if fixes_residents(find("placement", name))] == FIXED


# --- what is unused -------------------------------------------------------------------------------

CACHE_KEYS: dict[str, Any] = {
    "policy": "lfu_decay",
    "options": {"decay": 0.3},
    "scope": "global",
    "initial_layers": 1,
    "admission": "always",
    "write_back": True,
}
OF_POLICY = {key: CACHE_KEYS[key] for key in ("policy", "options")}


@pytest.mark.parametrize("placement", FIXED)
@pytest.mark.parametrize("key", CACHE_KEYS)
def test_keys_of_the_cache_are_unused_where_experts_never_move(placement: str, key: str) -> None:
    plain = summary(placement=placement, cache={"slots": 17})
    changes = OF_POLICY if key in OF_POLICY else {key: CACHE_KEYS[key]}
    changed = summary(placement=placement, cache={"slots": 17, **changes})
    noted = [note for note in changed["notes"] if note not in plain["notes"]]
    assert [note.split(" is unused: ")[0] for note in noted] == [f"cache.{key}" for key in changes]
    assert f"placement {placement} fixes which experts are in GPU memory" in noted[0]
    skipped = {"notes", "cache_scope"}
    assert {k: v for k, v in changed.items() if k not in skipped} == {
        k: v for k, v in plain.items() if k not in skipped
    }


def test_keys_of_the_cache_act_where_experts_come_and_go() -> None:
    data = tiny_scenario(placement="cost", cache={"slots": 17, **CACHE_KEYS})
    assert unused_keys(Scenario.model_validate(data)) == []


def test_a_policy_that_is_not_asked_knows_nothing() -> None:
    found = summary(placement="cpu_experts", cache={"slots": 9, "policy": "min"})
    assert found["knows_the_future"] == ""
    assert found["cache_policy"] == "resident"
    assert not any("min eviction" in note for note in found["notes"])
    assert summary(placement="cost", cache={"slots": 9, "policy": "min"})["knows_the_future"] == (
        "eviction min"
    )


def test_a_policy_that_is_not_asked_is_not_rehearsed() -> None:
    for placement, rehearsed in (("cpu_experts", False), ("cost", True)):
        data = tiny_scenario(placement=placement, cache={"slots": 9, "policy": "min"})
        said: list[tuple[str, int, int]] = []
        simulate(plan_of(data, tiny_trace()), progress=lambda *args, log=said: log.append(args))
        assert ("run: rehearsal" in {what for what, _, _ in said}) == rehearsed


# --- facts and notes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "memory", "noted"),
    [
        (9, {}, True),
        (32, {}, False),
        (9, {"host": "1GiB"}, False),
    ],
)
def test_unlimited_host_memory_is_said_where_experts_are_in_it(
    slots: int, memory: dict[str, Any], noted: bool
) -> None:
    found = summary(cache={"slots": slots}, memory=memory)
    note = f"host memory is taken as unlimited: all 32 experts take {format_bytes(ALL)}"
    assert (note in found["notes"]) == noted
    assert found["host_memory_bytes"] == (2**30 if memory else None)


def test_a_summary_has_the_split_of_host_memory() -> None:
    placement = {"policy": "cpu_layers", "options": {"whole_layers": 2}}
    found = summary(
        placement=placement,
        cache={"slots": "100%"},
        hardware={"profile": "rtx-4090", **DISK},
        memory={"host": 24 * EXPERT, "host_cache": "expert", "pinned": 5 * EXPERT},
    )
    plan = plan_of(tiny_scenario(placement=placement), tiny_trace())
    assert found["placement_policy"] == "cpu_layers"
    assert found["host_memory_bytes"] == 24 * EXPERT
    assert found["host_weights_bytes"] == plan.cost.shape.layers_bytes([0, 1])
    assert found["host_experts_bytes"] == ALL
    assert found["pinned_bytes"] == 5 * EXPERT
    assert found["host_kv_bytes"] == found["kv_bytes"]  # two of four layers are on the CPU
    room = 24 * EXPERT - found["host_weights_bytes"] - found["host_kv_bytes"]
    assert (
        f"host memory holds {format_bytes(room)} of all experts' {format_bytes(ALL)}; the others "
        "are read from disk"
    ) in found["notes"]


@pytest.mark.parametrize(
    ("hardware", "memory", "changes"),
    [
        ({}, {}, ""),
        ({"pinned": False}, {}, "pageable host memory"),
        ({}, {"pinned": "none"}, "pageable host memory"),
        ({"pinned": False}, {"pinned": "all"}, ""),
        ({}, {"pinned": "25%"}, "8 experts in page-locked host memory"),
        ({}, {"pinned": 5 * EXPERT}, "5 experts in page-locked host memory"),
        ({}, {"pinned": "100%"}, ""),
    ],
)
def test_changes_of_the_hardware_say_what_is_page_locked(
    hardware: dict[str, Any], memory: dict[str, Any], changes: str
) -> None:
    found = summary(hardware={"profile": "rtx-4090", **hardware}, memory=memory)
    assert found["hardware_changes"] == changes


ESTIMATES = "placement estimates ignore that host memory is shared"


@pytest.mark.parametrize(
    ("placement", "caveats"),
    [
        ("copy", []),
        ("cpu_layers", []),
        ("cpu_experts", []),
        ("cost", [ESTIMATES]),
        ("two_queue", [ESTIMATES]),
    ],
)
def test_placements_that_estimate_say_what_estimates_leave_out(
    placement: str, caveats: list[str]
) -> None:
    found = summary(placement=placement, cache={"slots": 17})
    assert found["caveats"] == caveats
    assert any(note.startswith(f"{placement} placement estimates") for note in found["notes"]) == (
        bool(caveats)
    )


@pytest.mark.parametrize(("kind", "noted"), [("assumed", True), ("measured", False)])
def test_assumed_figures_of_the_cpu_are_a_caveat_beside_measured_ones(
    kind: Any, noted: bool
) -> None:
    plan = plan_of(tiny_scenario(placement="cpu_experts", cache={"slots": 9}), tiny_trace())
    hardware = plan.cost.hardware
    figures = dict.fromkeys(hardware.figures, Figure(1, "measured", "bench"))
    figures["cpu_flops"] = Figure(1, kind, "datasheet")
    measured: Any = object()
    changed = replace(hardware, figures=figures, measured=measured)
    outcome = run_on(plan)
    cost = CostModel(changed, plan.cost.shape)
    found = summarise(replace(outcome, plan=replace(plan, cost=cost)))
    assert ("figures of the CPU are assumed" in found["caveats"]) == noted
    assert any(note.startswith("cpu_flops of rtx-4090 are") for note in found["notes"]) == noted


def test_layers_without_slots_are_meant_where_experts_never_move() -> None:
    placed = summary(placement={"policy": "cpu_layers", "options": {"layers": 2}})
    assert placed["cache_slots"] == 16
    assert placed["caveats"] == []
    assert "16 of 32 experts are in GPU memory; none of them ever leaves" in placed["notes"]


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", [*FIXED, *MOVING])
@pytest.mark.parametrize("memory", [{}, {"host": 12 * EXPERT}])
@pytest.mark.parametrize("arrivals", ["all_at_once", {"kind": "poisson", "rate_per_s": 3000}])
def test_every_placement_has_bounds(placement: str, memory: dict[str, Any], arrivals: Any) -> None:
    found = summary(
        placement=placement,
        cache={"slots": 17},
        hardware={"profile": "rtx-4090", **(DISK if memory else {})},
        memory=memory,
        workload={"arrivals": arrivals},
        bounds=True,
    )
    fixed = placement in FIXED
    assert (found["min_time_in_steps_s"] is None) == fixed
    assert found["min_hit_rate"] >= found["expert_hit_rate"] - 1e-9
    assert ("MIN's evictions" in found["verdict_reason"]) != fixed
    assert ("experts never move, so no other eviction is" in found["verdict_reason"]) == fixed
    assert found["verdict"] != "policy" or not fixed
    assert found["infinite_cache_hit_rate"] >= found["expert_hit_rate"]


def test_without_a_remedy_the_longest_wait_limits_the_run() -> None:
    """All experts stay on the CPU, and neither slots nor the link would help much."""
    found = summary(
        placement={"policy": "cpu_layers", "options": {"whole_layers": "all"}},
        hardware={
            "profile": "rtx-4090",
            "cpu_flops": "900TFLOPS",
            "host_memory_bandwidth": "9TB/s",
        },
        cache={"slots": 0},
        bounds=True,
    )
    assert found["verdict"] == "cpu"
    lead = found["verdict_reason"].split("; ")[0]
    assert lead.startswith(f"of the {found['regret_cpu_s']:#.3g} s in steps, the GPU waits")
    assert lead.endswith("(100%) for the CPU")


def test_a_slow_host_limits_a_run_that_no_remedy_helps() -> None:
    found = summary(cache={"slots": "100%"}, engine={"launch": "5ms"}, bounds=True)
    prompt = {"profile": "rtx-4090", "readback_latency": "0us", "d2h": {"latency": "0us"}}
    loaded = {"slots": "100%", "policy": "static"}
    plain = summary(cache=loaded, hardware=prompt, bounds=True)
    assert plain["verdict"] == "compute"
    slow = summary(cache=loaded, hardware=prompt, engine={"launch": "5ms"}, bounds=True)
    assert slow["verdict"] == "host"
    assert "for the host to issue work" in slow["verdict_reason"]
    assert found["verdict"] in ("host", "working set", "link")


@pytest.mark.parametrize(
    ("waits", "word"),
    [
        ({}, "compute"),
        ({"cpu": 100}, "compute"),
        ({"cpu": 101}, "cpu"),
        ({"cpu": 300, "disk": 301}, "disk"),
        ({"host": 500, "readback": 900}, "host"),
        ({"demand": 900}, "compute"),
    ],
)
def test_a_wait_limits_a_run_if_it_takes_more_than_a_tenth(
    waits: dict[str, int], word: str
) -> None:
    stalls = [[waits.get(cause, 0) // 2, -(-waits.get(cause, 0) // 2)] for cause in CAUSES]
    logged: Any = SimpleNamespace(stall_ns=stalls, stepping_ns=1000)
    useless = {"policy": 1000, "working set": 1000, "link": 1000}
    assert verdict(1000, useless, spent_of(logged))[0] == word


def test_a_remedy_that_is_no_choice_is_no_verdict() -> None:
    assert verdict(1000, {"policy": 100, "working set": 900, "link": 1000})[0] == "policy"
    assert verdict(1000, {"working set": 900, "link": 1000})[0] == "compute"


def test_with_a_free_link_placements_know_that_copies_take_no_time() -> None:
    trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=1)
    plan = plan_of(tiny_scenario(placement="cost", cache={"slots": 9}), trace)
    assert sum(simulate(plan).ledger.elsewhere) > 0
    assert sum(simulate(plan, free_link=True).ledger.elsewhere) == 0
    assert CostEstimate(plan.cost, None, free_link=True).copy_ns(0) == 0
    assert CostEstimate(plan.cost, None).copy_ns(0) > 0


def test_the_infinite_link_is_never_slower_than_the_run_where_all_requests_are_there() -> None:
    for placement in (*FIXED, *MOVING):
        trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=2)
        plan = plan_of(tiny_scenario(placement=placement, cache={"slots": 9}), trace)
        outcome = simulate(plan)
        found = bounds_of(outcome)
        assert found["infinite_link_time_in_steps_s"] * 1e9 <= outcome.ledger.stepping_ns + 1


@pytest.mark.parametrize(
    ("placement", "slots", "more"),
    [
        ("cpu_layers", 9, True),
        ("cpu_experts", 9, True),
        ({"policy": "cpu_layers", "options": {"layers": 3}}, 9, False),
        ({"policy": "cpu_layers", "options": {"layers": "all", "whole_layers": "all"}}, 0, False),
    ],
)
def test_more_slots_are_a_remedy_only_where_the_placement_would_use_them(
    placement: Any, slots: int, more: bool
) -> None:
    trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=2)
    plan = plan_of(tiny_scenario(placement=placement, cache={"slots": slots}), trace)
    now, then = sum(plan.slots), plan_of(tiny_scenario(placement=placement), trace)
    assert then.scenario.cache.slots.kind == "rest"
    policy = plan.scenario.placement.policy
    said = more_slots(plan, build_workload(plan.scenario, trace))
    assert len(said) == 2
    assert ("cache.slots: rest would give " in said[0]) == (sum(then.slots) > now) == more
    if more:
        assert said[0].endswith(f"would give {sum(then.slots)} of 32 slots")
    else:
        assert f"is unused: placement {policy} keeps {now} of 32 experts there" in said[0]


def test_a_placement_that_refuses_other_slots_gets_no_hint_of_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def residents(self: Any, slots: int) -> Any:
        if slots != 9:
            raise UsageError("nine")
        return range(9)

    name = enlist(monkeypatch, "placement", foreign(residents=residents))
    plan = plan_of(tiny_scenario(placement=name, cache={"slots": 9}), tiny_trace(requests=1))
    said = more_slots(plan, build_workload(plan.scenario, plan.trace))
    assert "keeps 9 of 32 experts there" in said[0]
