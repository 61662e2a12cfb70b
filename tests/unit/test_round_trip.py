"""What a run writes as its `scenario.yaml` is the scenario that ran, whatever its values are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workloads import tiny_trace

from moesim.config.units import format_share, parse_share
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.simulate import prepare, run
from moesim.simulate.rundir import fingerprint
from moesim.trace import load_trace

SHARES = st.floats(0, 1) | st.sampled_from([1 / 3, 0.1 + 0.2, 1e-130, 5e-324, 1.0, 0.1234567])
TEXTS = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["1e3", "5E1", "0x1f", "1_0", "yes", "~", "null", "12:30", "2020-01-01", " a ", "- b", "#", "é"]
)
POSITIVE = st.floats(1e-9, 1e17, allow_subnormal=False)
EXPONENTIAL = {"mean": "3ms", "distribution": "exponential"}
BITS = st.floats(0.1, 64) | st.integers(1, 64)


PLACEMENTS = st.sampled_from(
    [
        *("copy", "cost", "two_queue", "cpu_layers", "cpu_experts"),
        {"policy": "cpu_layers", "options": {"layers": "all", "whole_layers": 2}},
        {"policy": "cpu_layers", "options": {"whole_layers": "all", "copy_rows": None}},
        {"policy": "cpu_experts", "options": {"by": "frequency", "profile": "trace"}},
        {"policy": "cpu_experts", "options": {"by": "random"}},
    ]
)


def sections(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


CHANGES = sections(
    name=TEXTS.filter(lambda t: t not in (".", "..") and not any(c in '/\\:*?"<>|' for c in t))
    .filter(lambda text: all(ord(c) >= 32 for c in text)),
    seed=st.integers(0, 2**62),
    model=sections(expert_bits=BITS, weight_bits=BITS, kv_bits=BITS),
    hardware=st.fixed_dictionaries(
        {"profile": st.sampled_from(["rtx-4090", "t4", "mine.yaml"])},
        optional={
            "compute_efficiency": st.floats(1e-6, 1),
            "memory_efficiency": st.floats(1e-6, 1).map(format_share),
            "kernel_overhead": st.integers(0, 10**9),
            "pinned": st.booleans(),
            "cpu_flops": st.integers(1, 2**62),
            "cpu_efficiency": SHARES.filter(lambda share: share > 0).map(format_share),
            "cpu_overhead": st.integers(0, 10**9),
            "host_memory_bandwidth": st.sampled_from(["55GB/s", 10**11]),
            "disk": st.fixed_dictionaries(
                {"latency": st.sampled_from(["80us", 5]), "bandwidth": st.integers(1, 2**62)},
                optional={"queue_depth": st.integers(1, 64)},
            ),
            "h2d": sections(bandwidth=st.integers(1, 2**62), latency=st.sampled_from(["7us", 3])),
        },
    ),
    memory=sections(
        kv=SHARES.filter(lambda share: 0.01 < share < 0.8).map(format_share) | st.just("auto"),
        activations=st.just("auto") | st.integers(1, 2**30),
        staging=st.integers(1, 3),
        host_cache=st.sampled_from(["page", "expert"]),
        host=st.sampled_from(["unlimited", "1GiB", 2**31]),
        pinned=st.sampled_from(["auto", "all", "none", "40MB"]) | SHARES.map(format_share),
    ),
    engine=sections(
        launch=st.integers(0, 10**9) | st.just("5us"),
        copy_launch=st.integers(0, 10**9),
        layer_event=st.sampled_from(["20us", 0, 7]),
        sorting=st.sampled_from(["host", "device"]),
    ),
    placement=PLACEMENTS,
    cache=sections(slots=SHARES.map(format_share) | st.sampled_from(["rest", 7, "2/layer", "40MB"]))
    | st.fixed_dictionaries(
        {"policy": st.just("static"), "options": sections(profile=st.just("trace"))}
    ),
    workload=sections(
        arrivals=st.fixed_dictionaries({"kind": st.just("poisson"), "rate_per_s": POSITIVE})
        | st.just({"kind": "csv", "path": "arrivals.csv"})
        | st.fixed_dictionaries(
            {"kind": st.just("closed"), "clients": st.integers(1, 2**62)},
            optional={"think": st.sampled_from(["7us", {"mean": 3}, EXPONENTIAL])},
        ),
        lengths=st.just("recorded") | st.just({"prompt": 3, "output": 2}),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("written")
    tiny_trace(requests=2, prompt_tokens=2, output_tokens=2).save(made / "trace")
    (made / "arrivals.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,2,2\n1,3,1\n")
    profile = Path(load_scenario.__code__.co_filename).parents[1] / "hardware/profiles/t4.yaml"
    (made / "mine.yaml").write_text(profile.read_text(encoding="utf-8"), encoding="utf-8")
    (made / "runs" / "deep").mkdir(parents=True)
    (made / "link").symlink_to(made / "runs" / "deep")
    return made


def without_paths(scenario: Scenario) -> dict[str, Any]:
    return scenario.resolved(lambda key, _: key)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, place=st.sampled_from(["runs", "runs/deep", "link", "."]))
def test_a_resolved_scenario_reads_back_as_the_very_same_run(
    folder: Path, changes: dict[str, Any], place: str
) -> None:
    scenario = Scenario.model_validate({"trace": "trace", "hardware": "t4", **changes})
    scenario._base_dir = folder
    scenario.write(folder / place / "scenario.yaml", reader=folder / place)
    again = load_scenario(folder / place / "scenario.yaml")
    assert without_paths(again) == without_paths(scenario)
    assert {k: p.resolve() for k, p in again.paths().items()} == {
        k: p.resolve() for k, p in scenario.paths().items()
    }
    assert fingerprint(again) == fingerprint(scenario)
    trace = load_trace(folder / "trace")
    plans = [prepare(each, trace) for each in (scenario, again)]
    assert plans[0].budget == plans[1].budget
    assert plans[0].slots == plans[1].slots
    assert plans[0].places == plans[1].places
    assert plans[0].cost.shape == plans[1].cost.shape
    assert plans[0].cost.hardware == plans[1].cost.hardware


@given(share=SHARES)
def test_a_share_is_written_to_the_last_bit(share: float) -> None:
    assert parse_share(format_share(share)) == share
    assert format_share(0.125) == "12.5%"


def test_a_run_repeated_from_its_own_folder_is_the_same_run(folder: Path) -> None:
    data: dict[str, Any] = {
        "name": "1e3",
        "trace": str(folder / "trace"),
        "hardware": str(folder / "mine.yaml"),
    }
    data |= {"cache": {"slots": "33.3333333%"}, "bounds": False}
    first = run(data, out=folder / "first")
    again = run(folder / "first" / "scenario.yaml", out=folder / "again")
    assert fingerprint(first.scenario) == fingerprint(again.scenario)
    skipped = {"hardware"}  # the profile's path, as written
    assert {k: v for k, v in first.summary.items() if k not in skipped} == {
        k: v for k, v in again.summary.items() if k not in skipped
    }


PLACED: dict[str, dict[str, Any]] = {
    "experts": {"placement": {"policy": "cpu_experts", "options": {"by": "random"}}, "seed": 7},
    "layers": {"placement": {"policy": "cpu_layers", "options": {"whole_layers": 2}}},
    "disk": {
        "placement": "cost",
        "hardware": {"profile": "t4", "disk": {"latency": "80us", "bandwidth": "3GB/s"}},
        "memory": {"host": "31MiB", "host_cache": "expert", "pinned": "10%"},
    },
    "engine": {"engine": {"launch": "5us", "copy_launch": 7, "sorting": "device"}},
}


@pytest.mark.parametrize("name", PLACED)
def test_a_run_with_places_repeated_from_its_own_folder_has_the_same_result(
    folder: Path, name: str
) -> None:
    data: dict[str, Any] = {"trace": str(folder / "trace"), "hardware": "t4", "name": name}
    data |= {"cache": {"slots": 17}, **PLACED[name]}
    first = run(data, out=folder / f"first_{name}")
    again = run(folder / f"first_{name}" / "scenario.yaml", out=folder / f"again_{name}")
    assert fingerprint(first.scenario) == fingerprint(again.scenario)
    assert first.summary == again.summary
    for table, columns in first.columns.items():
        assert repr(columns) == repr(again.columns[table])


def test_a_path_that_climbs_out_of_a_linked_folder_is_written_as_it_leads(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x.yaml").write_text("trace: ../trace\nhardware: ../mine.yaml\n")
    (folder / "runs" / "linked").symlink_to(folder / "sub")
    scenario = load_scenario(folder / "runs" / "linked" / "x.yaml")
    scenario.write(folder / "runs" / "deep" / "y.yaml", reader=folder / "runs" / "deep")
    again = load_scenario(folder / "runs" / "deep" / "y.yaml")
    assert {key: path.resolve() for key, path in again.paths().items()} == {
        "trace": folder / "trace",
        "hardware.profile": folder / "mine.yaml",
    }


BARE = """
trace: trace
hardware: {profile: t4, kernel_overhead: 20, readback_latency: "7", h2d: {latency: 0}, flops: 5e13}
memory: {kv: 4000000000, activations: 1048576}
"""


def test_a_number_written_without_a_unit_is_noted_also_by_the_repeated_run(folder: Path) -> None:
    (folder / "bare.yaml").write_text(BARE)
    scenario = load_scenario(folder / "bare.yaml", ["hardware.h2d.bandwidth=2500000"])
    results = [run(scenario, out=folder / "bare")]
    again = load_scenario(folder / "bare" / "scenario.yaml")
    assert fingerprint(again) == fingerprint(scenario)
    results.append(run(again, out=folder / "bare_again"))
    for result in results:
        noted = [note for note in result.summary["notes"] if "without a unit" in note]
        assert sorted(noted) == [
            "hardware.flops is 50000000000000.0 without a unit: read as 50000000000000 FLOPS",
            "hardware.h2d.bandwidth is 2500000 without a unit: read as 2500000 B/s",
            "hardware.kernel_overhead is 20 without a unit: read as 20 ns",
            "hardware.readback_latency is 7 without a unit: read as 7 ns",
            "memory.activations is 1048576 without a unit: read as 1048576 B",
            "memory.kv is 4000000000 without a unit: read as 4000000000 B",
        ]
        assert "hardware.kernel_overhead has no unit" in result.summary["caveats"]


def test_a_swept_number_without_a_unit_is_noted_at_its_points(folder: Path) -> None:
    (folder / "swept.yaml").write_text(
        "trace: trace\nhardware: t4\nsweep: {hardware.kernel_overhead: [20, 20us]}\n"
    )
    points = expand_sweep(load_scenario(folder / "swept.yaml"))
    assert [len(point.without_unit()) for _, point in points] == [1, 0]


def test_integers_from_python_need_no_unit_and_are_written_with_one(folder: Path) -> None:
    data = {
        "trace": str(folder / "trace"),
        "hardware": {"profile": "t4", "kernel_overhead": 20, "vram": 24 * 2**30, "flops": 10**13}
        | {"h2d": {"bandwidth": 25 * 10**9}},
        "memory": {"capacity": 2**33},
    }
    scenario = load_scenario(data)
    assert scenario.without_unit() == {}
    assert list(load_scenario(data, ["memory.capacity=9000000000"]).without_unit()) == [
        ("memory", "capacity")
    ]
    written = scenario.resolved()
    assert written["hardware"]["kernel_overhead"] == "20ns"
    assert written["hardware"]["vram"] == "25769803776B"
    assert written["hardware"]["flops"] == "10000000000000FLOPS"
    assert written["hardware"]["h2d"] == {"bandwidth": "25000000000B/s"}
    assert written["memory"]["capacity"] == "8589934592B"
    assert fingerprint(load_scenario(written)) == fingerprint(scenario)


def test_an_assumed_figure_of_a_profile_without_a_unit_is_noted(folder: Path) -> None:
    text = (folder / "mine.yaml").read_text(encoding="utf-8")
    assert "value: 16GiB" in text
    bare = text.replace("value: 16GiB", "value: 17179869184").replace("320GB/s", '"320"')
    (folder / "bare_profile.yaml").write_text(bare, encoding="utf-8")
    data: dict[str, Any] = {"trace": str(folder / "trace"), "hardware": {}}
    data["hardware"]["profile"] = str(folder / "bare_profile.yaml")
    notes = run(data).summary["notes"]
    noted = [note.split("bare_profile.yaml ")[1] for note in notes if "without a unit" in note]
    assert noted == [
        "is 17179869184 without a unit: read as 17179869184 B",
        "is 320 without a unit: read as 320 B/s",
    ]
    data["hardware"] |= {"memory_bandwidth": "320GB/s"}
    assert str(run(data).summary["notes"]).count("without a unit") == 1
    measured = bare.replace("kind: assumed", "kind: measured")
    (folder / "bare_profile.yaml").write_text(measured, encoding="utf-8")
    assert "without a unit" not in str(run(data).summary["notes"])
