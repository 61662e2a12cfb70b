"""A placement that cannot hold is refused before a run, at the line of what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from watched_machines import enlist
from workloads import TINY_CONFIG, plan_of, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation, ScenarioError
from moesim.hardware.topology import Topology
from moesim.policies.placement import Copy
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.unused import unused_keys
from moesim.simulate import prepare, result_of
from moesim.simulate.facts import knows_the_future


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("placements")
    tiny_trace(requests=2).save(made / "tiny")
    tiny_trace(requests=2, seed=3).save(made / "past")
    tiny_trace(requests=2, num_layers=3).save(made / "shallow")
    return made


def mistakes(folder: Path, placement: str, trace: str = "tiny") -> list[str]:
    """Return what is said of a scenario whose third line is `placement: ...`; none if it is right.

    The model has 4 MoE layers of 8 experts, and no others.
    """
    path = folder / "x.yaml"
    path.write_text(f"trace: {trace}\nhardware: rtx-4090\nplacement: {placement}\n")
    try:
        prepare(load_scenario(path))
    except ScenarioError as error:
        return [problem.replace(f"{path}:", "") for problem in error.problems]
    return []


RIGHT = [
    "copy",
    "cost",
    "two_queue",
    "cpu_experts",
    "cpu_layers",
    "{policy: cpu_layers, options: {layers: 4, whole_layers: 4, copy_rows: null}}",
    "{policy: cpu_layers, options: {layers: all, whole_layers: all}}",
    "{policy: cpu_experts, options: {by: frequency}}",
    "{policy: cpu_experts, options: {by: frequency, profile: past}}",
]


@pytest.mark.parametrize("placement", RIGHT)
def test_a_placement_that_can_hold_is_accepted(folder: Path, placement: str) -> None:
    assert mistakes(folder, placement) == []


@pytest.mark.parametrize(
    ("policy", "options", "wrong"),
    [
        (
            "cpu_layers",
            "layers: 5",
            {"layers": "is 5; it must be at most 4, the MoE layers of the trace, or all"},
        ),
        (
            "cpu_layers",
            "layers: 5, whole_layers: 9",
            {
                "layers": "is 5; it must be at most 4",
                "whole_layers": "is 9; it must be at most 4, the layers of the model, or all",
            },
        ),
        (
            "cpu_layers",
            "layers: 2, whole_layers: 3",
            {"layers": "is 2, and whole_layers: 3 has the experts of 3 MoE layers on the"},
        ),
        (
            "cpu_layers",
            "layers: 0, whole_layers: all",
            {"layers": "write layers: 4 or more, auto, or fewer whole_layers"},
        ),
        (
            "cpu_experts",
            "by: frequency, profile: nowhere",
            {"profile": "there is no file or folder 'nowhere'"},
        ),
        (
            "cpu_experts",
            "by: frequency, profile: x.yaml",
            {"profile": "is a file, and a trace is a folder"},
        ),
        (
            "cpu_experts",
            "by: frequency, profile: shallow",
            {"profile": "of another shape than the trace: 3 layers of 8 experts, not 4 of 8"},
        ),
        (
            "cpu_experts",
            "by: front, profile: past",
            {"profile": "is not read with by: front; write by: frequency"},
        ),
    ],
)
def test_options_that_cannot_hold_are_refused_at_the_place_of_their_value(
    folder: Path, policy: str, options: str, wrong: dict[str, str]
) -> None:
    text = f"{{policy: {policy}, options: {{{options}}}}}"
    said = mistakes(folder, text)
    for problem, (option, part) in zip(said, wrong.items(), strict=True):
        column = len("placement: ") + text.index(f"{option}: ") + len(f"{option}: ") + 1
        assert problem.startswith(f"3:{column}: placement.options.{option}: "), problem
        assert part in problem


@pytest.mark.parametrize("option", ["layers: most", "layers: -1", "copy_rows: 0", "whole: 1"])
def test_options_of_the_wrong_kind_are_refused_at_their_line(folder: Path, option: str) -> None:
    (said,) = mistakes(folder, f"{{policy: cpu_layers, options: {{{option}}}}}")
    assert said.startswith("3:")
    assert f": placement.options.{option.split(':')[0]}: " in said


def test_a_wrong_number_of_layers_is_one_mistake_that_says_what_to_write(folder: Path) -> None:
    (said,) = mistakes(folder, "{policy: cpu_layers, options: {layers: -1}}")
    assert said.endswith(": placement.options.layers: is -1; write a number from 0, auto or all")


def test_a_model_of_another_depth_than_the_trace_is_the_only_mistake(folder: Path) -> None:
    path = folder / "x.yaml"
    path.write_text(
        "trace: tiny\nhardware: rtx-4090\nmodel: olmoe-1b-7b\n"
        "placement: {policy: cpu_layers, options: {layers: 99}}\n"
    )
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    assert ["3:8: model" in problem for problem in caught.value.problems] == [True]


# --- the machine ----------------------------------------------------------------------------------


FIELDS = {"cpu_flops": "cpu_flops_per_s", "host_memory_bandwidth": "host_memory_bytes_per_s"}


def described_without(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Make the machines of scenarios ones whose profile lacks these figures."""
    load = Scenario.load_hardware

    def without(self: Scenario) -> Any:
        hardware = load(self)
        figures = {key: of for key, of in hardware.figures.items() if key not in keys}
        missing: dict[str, Any] = {FIELDS[key]: None for key in keys}
        return replace(hardware, figures=figures, **missing)

    monkeypatch.setattr(Scenario, "load_hardware", without)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (["cpu_flops"], "without cpu_flops;"),
        (["host_memory_bandwidth"], "without host_memory_bandwidth;"),
        (["cpu_flops", "host_memory_bandwidth"], "without host_memory_bandwidth and cpu_flops;"),
    ],
)
@pytest.mark.parametrize("placement", ["cost", "two_queue", "cpu_layers", "cpu_experts"])
def test_a_cpu_without_figures_computes_no_expert(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: list[str],
    named: str,
    placement: str,
) -> None:
    described_without(monkeypatch, *missing)
    (said,) = mistakes(folder, placement)
    assert said.startswith(f"3:12: placement.policy: {placement} computes experts on the CPU")
    assert named in said
    assert "set them in `hardware`" in said


def test_without_a_cpu_lane_no_figure_of_the_cpu_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described_without(monkeypatch, "cpu_flops", "host_memory_bandwidth")
    assert mistakes(folder, "copy") == []


ALL_BYTES = 32 * 3 * 512 * 1024 * 2


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (f"{{host: {ALL_BYTES - 1}B}}", "4:16: memory.host: "),
        (f"{{host_cache: expert, host: {ALL_BYTES - 1}B}}", "4:36: memory.host: "),
        (f"{{host: {ALL_BYTES}B}}", None),
        ("{}", None),
    ],
)
def test_a_disk_shares_host_memory_whose_bandwidth_must_be_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, said: str | None
) -> None:
    described_without(monkeypatch, "cpu_flops", "host_memory_bandwidth")
    path = folder / "x.yaml"
    path.write_text(
        "trace: tiny\nhardware: {profile: rtx-4090, disk: {latency: 1us, bandwidth: 3GB/s}}\n"
        f"placement: copy\nmemory: {host}\nsed: 1\n"
    )
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    found = [problem.replace(f"{path}:", "") for problem in caught.value.problems]
    starts = [*([said] if said else []), "5:1: sed: "]  # together with all other mistakes
    assert all(problem.startswith(start) for problem, start in zip(found, starts, strict=True))
    if said:
        assert "experts are read from disk, which shares host memory" in found[0]
        assert "set hardware.host_memory_bandwidth, like 60GB/s" in found[0]


@pytest.mark.parametrize("placement", ["cost", "cpu_layers"])
def test_a_cpu_and_a_disk_without_a_bandwidth_of_host_memory_are_one_mistake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    described_without(monkeypatch, "host_memory_bandwidth")
    text = f"{placement}\nmemory: {{host: 10MiB}}\nhardware: "
    text += "{profile: rtx-4090, disk: {latency: 1us, bandwidth: 3GB/s}}"
    path = folder / "x.yaml"
    path.write_text(f"trace: tiny\nplacement: {text}\n")
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(path))
    (said,) = caught.value.problems
    assert said.startswith(f"{path}:2:12: placement.policy: {placement} computes experts on")


# --- policies of other packages -------------------------------------------------------------------


def foreign(**members: Any) -> type[Copy]:
    return type("Elsewhere", (Copy,), {"__module__": __name__, **members})


def test_a_policy_that_names_only_the_gpu_needs_no_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlist(monkeypatch, "placement", foreign(lanes=("gpu",)))
    plan = plan_of(tiny_scenario(placement=name), tiny_trace(requests=1))
    assert plan.places.topology == Topology.single_gpu()
    chunk = {"profile": "rtx-4090", "h2d": {"chunk": "1MiB"}}
    data = tiny_scenario(placement=name, hardware=chunk)
    assert unused_keys(Scenario.model_validate(data)) == ["hardware.h2d.chunk"]
    described_without(monkeypatch, "cpu_flops", "host_memory_bandwidth")
    assert mistakes(folder, name) == []


def test_a_lane_that_no_machine_has_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlist(monkeypatch, "placement", foreign(lanes=("cpu", "npu")))
    (said,) = mistakes(folder, name)
    assert said.startswith("3:12: placement.policy: elsewhere computes on npu; machines compute on")


def test_a_placement_without_the_base_class_is_a_violation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = enlist(monkeypatch, "placement", type("Baseless", (), {}))
    with pytest.raises(PolicyViolation, match="not a subclass of"):
        mistakes(folder, name)


def test_a_placement_of_another_package_states_its_own_mistakes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(cls: Any, options: Any, context: Any) -> Any:
        said = f"{context.num_layers} of {context.num_model_layers} x {context.num_experts}"
        return [("size", said)]

    name = enlist(monkeypatch, "placement", foreign(mistakes=classmethod(found)))
    assert mistakes(folder, name) == ["3:12: placement.options.size: 4 of 4 x 8"]


def test_mistakes_that_fail_are_a_violation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = classmethod(lambda cls, options, context: 1 / 0)
    name = enlist(monkeypatch, "placement", foreign(mistakes=fails))
    with pytest.raises(PolicyViolation, match="ZeroDivisionError"):
        mistakes(folder, name)


# --- foresight ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "seers"),
    [
        ({"by": "uniform"}, ""),
        ({"by": "frequency"}, "placement cpu_experts"),
        ({"by": "frequency", "profile": "past"}, ""),
        ({"by": "frequency", "profile": "tiny"}, "placement cpu_experts"),
    ],
)
def test_a_placement_learnt_on_the_replayed_trace_knows_the_future(
    folder: Path, options: dict[str, str], seers: str
) -> None:
    options = {
        key: str(folder / value) if key == "profile" else value for key, value in options.items()
    }
    placement = {"policy": "cpu_experts", "options": options}
    data = tiny_scenario(trace=str(folder / "tiny"), placement=placement, cache={"slots": 9})
    summary = result_of(prepare(load_scenario(data))).summary
    assert summary["knows_the_future"] == seers
    hindsight = any("learnt on the replayed trace itself" in note for note in summary["notes"])
    assert hindsight == bool(seers)


def test_a_clairvoyant_placement_knows_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlist(monkeypatch, "placement", foreign(clairvoyant=True))
    made = Scenario.model_validate(tiny_scenario(placement=name))
    assert knows_the_future(made) == ["placement elsewhere"]


def test_dense_layers_count_as_layers_of_the_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def found(cls: Any, options: Any, context: Any) -> Any:
        seen.append((context.model_layers, context.num_model_layers, context.num_layers))
        return []

    name = enlist(monkeypatch, "placement", foreign(mistakes=classmethod(found)))
    config = {
        **TINY_CONFIG,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 1024,
        "num_experts": 8,
        "num_hidden_layers": 5,
        "mlp_only_layers": [0],
        "decoder_sparse_step": 1,
    }
    plan_of(tiny_scenario(placement=name), tiny_trace(requests=1).with_meta(model_config=config))
    assert set(seen) == {((1, 2, 3, 4), 5, 4)}
