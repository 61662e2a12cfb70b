"""`moesim calibrate` measures this machine with a tiny model, and scenarios can name the result."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from late_clock import LateClock
from typer.testing import CliRunner
from workloads import TINY_CONFIG, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.calibrate import Subject, calibrate, calibrate_plan
from moesim.cli import app
from moesim.cost.measured import OperationCost
from moesim.errors import MoesimError, OutputError, ScenarioError, UsageError
from moesim.hardware import load_hardware
from moesim.model.hf_config import shape_from_config

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from moesim.calibrate import copies  # noqa: E402
from moesim.executor import cpu  # noqa: E402
from moesim.executor.cpu import CpuDevice  # noqa: E402
from moesim.hardware.hardware import Link  # noqa: E402
from moesim.hardware.topology import D2H, H2D  # noqa: E402

CONFIG = {**TINY_CONFIG, "architectures": ["MixtralForCausalLM"], "dtype": "float32"}


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


def failure(*arguments: str) -> MoesimError:
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    assert isinstance(result.exception, MoesimError), result.output
    return result.exception


def test_a_profile_is_written_that_scenarios_can_name(tmp_path: Path) -> None:
    config, out = tmp_path / "config.json", tmp_path / "mine.yaml"
    config.write_text(json.dumps(CONFIG))
    arguments = ["--model", str(config), "--budget", "1s", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["out"] == str(out)
    assert {"experts", "front", "tail", "readback"} <= said["residuals"].keys()

    hardware = load_hardware(out)
    assert hardware.cost_kind == "measured"
    assert hardware.measured is not None
    assert hardware.measured.device == "cpu"
    assert hardware.measured.machine["torch"] == torch.__version__
    assert "--budget 1s" in hardware.measured.command
    with (tmp_path / hardware.measured.points).open() as file:
        kinds = {row["kind"] for row in csv.DictReader(file)}
    assert kinds == {"experts", "front", "tail", "readback", "expert copy", "h2d", "d2h"}

    trace = tiny_trace().with_meta(model_config=CONFIG)
    plan = plan_of(tiny_scenario(hardware=str(out)), trace)
    assert isinstance(plan.cost, OperationCost)
    assert run_on(plan).now_ns > 0
    assert "exists" in str(failure("--model", str(config), "--out", str(out)))


def test_a_plan_is_calibrated_with_its_own_steps_and_links() -> None:
    link = {"latency": "1ms", "bandwidth": "1GB/s"}
    trace = tiny_trace(requests=3).with_meta(model_config=CONFIG)
    plan = plan_of(
        tiny_scenario(
            hardware={"profile": "rtx-4090", "h2d": link},
            batching={"token_budget": 8, "max_sequences": 2},
            memory={"capacity": "8GiB"},
        ),
        trace,
    )
    told: dict[str, list[tuple[int, int]]] = {}
    profile = calibrate_plan(
        plan,
        budget_s=0.5,
        progress=lambda phase, *numbers: told.setdefault(phase, []).append(numbers),
    )
    assert list(told) == ["building the model", "rates", "copies", "overlap", "operations"]
    assert all(numbers[-1][0] == numbers[-1][1] for numbers in told.values())
    assert max(layer.batch.sequences for layer, _ in profile.samples.fronts) == 2
    assert max(layer.batch.tokens for layer, _ in profile.samples.fronts) <= 8
    assert profile.times.copy_factor >= 1
    priced = profile.priced(plan)
    assert isinstance(priced.cost, OperationCost)
    assert priced.cost.hardware.h2d == plan.cost.hardware.h2d
    assert run_on(priced).now_ns > 0
    # A device that emulates no link has its own: only the size of a chunk is the plan's choice.
    real = replace(profile, links={"h2d": Link(1, 2, 3, None), "d2h": Link(4, 5, 6, 7)})
    hardware, own = real.priced(plan).cost.hardware, plan.cost.hardware
    assert hardware.h2d == Link(1, 2, 3, own.h2d.chunk_bytes)
    assert hardware.d2h == Link(4, 5, 6, own.d2h.chunk_bytes)


def test_an_emulated_link_is_measured_as_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = LateClock()
    monkeypatch.setattr(cpu, "time", clock)
    monkeypatch.setattr(copies, "time", clock)
    device = CpuDevice(h2d=Link(1_000_000, 10**9, 10**9), d2h=Link(50_000, 10**8, 10**8))
    points = copies.measure_copies(device, 1 << 20, budget_s=1.0)
    lines: dict[str, tuple[int, int]] = {H2D: (1_000_000, 1), D2H: (50_000, 10)}
    for direction, line in lines.items():
        fitted = copies.fit_copies(points, direction, pinned=True)
        assert fitted.coefficients == pytest.approx(line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--model or --scenario"),
        (("--model", "mixtral-8x7b", "--scenario", "x.yaml"), "--model or --scenario"),
        (("--model", "mixtral-8x7"), "did you mean 'mixtral-8x7b'"),
        (("--model", "mixtral-8x7b", "--device", "tpu"), "'tpu' is none of cpu, cuda"),
        (("--model", "mixtral-8x7b", "--budget", "soon"), "--budget"),
        (("--model", "mixtral-8x7b", "--budget", "0s"), "leaves none"),
        (("--model", "mixtral-8x7b", "--out", "x.json"), "must end in .yaml"),
        (("--scenario", "x.yaml", "--bits", "16"), "--bits goes with --model"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = failure(*arguments)
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    error = failure("--device", "cuda", "--model", "mixtral-8x7b")
    assert isinstance(error, UsageError)
    assert "no CUDA device" in str(error)


def test_a_model_that_cannot_be_built_or_does_not_fit_is_refused() -> None:
    shape = shape_from_config(CONFIG)
    with pytest.raises(ScenarioError, match=r"4\.25"):
        calibrate(Subject(shape.with_bits(expert_bits=4.25), CONFIG), budget_s=1.0)
    huge = {**CONFIG, "hidden_size": 1 << 22, "intermediate_size": 1 << 22}
    with pytest.raises(UsageError, match="free memory"):
        calibrate(Subject(shape_from_config(huge), huge), budget_s=1.0)


def test_a_profile_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profile = calibrate(Subject(shape_from_config(CONFIG), CONFIG), budget_s=1.0)
    with pytest.raises(OutputError, match="cannot write"):
        profile.write(tmp_path / "file" / "mine.yaml")
