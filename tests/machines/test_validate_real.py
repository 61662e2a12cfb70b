"""`moesim validate` with torch: measured costs, a real executor, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from measured_profiles import measured_profile, random_times
from paths import ROOT
from typer.testing import CliRunner

from moesim.calibrate.calibrate import Slices
from moesim.calibrate.profile import Profile
from moesim.cli import app
from moesim.errors import MissingExtra, ScenarioError
from moesim.record import extra
from moesim.validate import costs, session

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

SHIPPED = ROOT / "scenarios/validate.yaml"
PATIENCE_S = 120  # a wait this long is a hang


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A few steps of the shipped trace."""
    return write(tmp_path / "few.yaml")


def write(file: Path, **changes: Any) -> Path:
    plain = {
        "trace": str(ROOT / "traces/shallow"),
        "hardware": {"profile": "t4", "h2d": {"latency": "20us", "bandwidth": "150MB/s"}},
        "workload": {"requests": 3, "lengths": {"prompt": 6, "output": 4}},
        "batching": {"token_budget": 8, "max_sequences": 2},
        "cache": {"policy": "lru", "slots": "4/layer"},
        **changes,
    }
    file.write_text(yaml.safe_dump(plain))
    return file


def validate(*arguments: str | int | Path) -> Any:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure too briefly to be right, and long enough to run."""
    monkeypatch.setattr(costs, "BRIEF_S", 1.5)
    monkeypatch.setattr(costs, "SLICE_S", 0.2)


@pytest.mark.usefixtures("brief")
def test_costs_are_measured_and_the_executor_decides_as_the_simulator(
    scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = validate(scenario, "--runs", 2, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["decisions_equal"] is True
    assert summary["cost_kind"] == "measured"
    assert summary["step_time_rows"] > 5
    assert (out / "profile.yaml").exists()
    assert (out / "profile.points.csv").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["machine"]["processor"]
    assert manifest["calibration_s"] == 1.5


@pytest.mark.usefixtures("brief")
def test_calibration_continues_before_each_run_and_all_its_samples_are_fitted(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, write = Slices.sample, Profile.write
    slices: list[int] = []
    fitted: list[int] = []

    def counted(self: Slices, budget_s: float, *, seed: int) -> Any:
        samples = sample(self, budget_s, seed=seed)
        slices.append(len(samples.fronts))
        return samples

    def written(self: Profile, path: Path) -> None:
        fitted.append(len(self.samples.fronts))
        write(self, path)

    monkeypatch.setattr(Slices, "sample", counted)
    monkeypatch.setattr(Profile, "write", written)
    out = tmp_path / "out"
    done = validate(scenario, "--runs", 2, "--out", out, "--no-plots")
    assert done.exit_code == 0, done.output
    assert len(slices) == 2
    assert min(slices) > 0
    first, last = fitted
    assert last == first + sum(slices)
    rows = (out / "profile.points.csv").read_text().splitlines()
    assert sum(row.startswith("front,") for row in rows) == last


@pytest.mark.parametrize("prefetch", ["none", "predicted"])
def test_a_device_that_is_late_at_random_decides_the_same(
    prefetch: str, scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = validate(
        scenario, "--device", "fake", "--runs", 2, "--out", out, "--json", "--no-plots",
        "--set", f"prefetch.policy={prefetch}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["decisions_equal"] is True
    assert summary["cost_kind"] == "assumed"
    assert not (out / "profile.yaml").exists()


DISK = {"profile": "t4", "disk": {"latency": "10us", "bandwidth": "5GB/s"}}
PLACED: dict[str, dict[str, Any]] = {
    "cost": {"placement": "cost"},
    "layers": {"placement": {"policy": "cpu_layers", "options": {"copy_rows": 3}}},
    "disk": {"placement": "cost", "hardware": DISK, "memory": {"host": "700kB"}},
}


@pytest.mark.parametrize("device", ["cpu", "fake"])
@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.usefixtures("brief")
def test_experts_on_the_cpu_and_on_disk_are_validated(
    placed: str, device: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "placed.yaml", **PLACED[placed])
    done = validate(file, "--device", device, "--runs", 1, "--out", out, "--no-plots")
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["decisions_equal"] is True
    assert summary["decisions_timed"] is False
    assert summary["cpu_cost_kind"] == "assumed"
    assert summary["disk_cost_kind"] == ("assumed" if placed == "disk" else None)
    assert "costs of the CPU" in done.output
    assert ("costs of the disk" in done.output) == (placed == "disk")
    assert "no calibration measures them" in done.output


def test_what_no_real_machine_runs_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(session, "measured_costs", measure)
    placement = {"policy": "cpu_layers", "options": {"whole_layers": 1}}
    done = validate(write(tmp_path / "whole.yaml", placement=placement), "--out", tmp_path / "out")
    assert isinstance(done.exception, ScenarioError)
    said = str(done.exception)
    assert re.search(r"whole\.yaml:\d+:\d+: placement\.options\.whole_layers: ", said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["llama.cpp", {"profile": "llama.cpp", "launch": "5us"}])
def test_an_engine_with_kernels_of_its_own_is_refused_because_other_kernels_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    def measure(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(session, "measured_costs", measure)
    done = validate(write(tmp_path / "engine.yaml", engine=engine), "--out", tmp_path / "out")
    assert isinstance(done.exception, ScenarioError)
    said = str(done.exception)
    assert re.search(r"engine\.yaml:\d+:\d+: engine: the real machine runs moesim's own", said), (
        said
    )
    assert "Write engine: ideal" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("prefill", "skip"), ("cached_prefix", 3)])
def test_prompts_that_nothing_computes_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    done = validate(write(tmp_path / "cached.yaml", workload={key: value}), "--out", tmp_path / "o")
    assert isinstance(done.exception, ScenarioError)
    said = str(done.exception)
    assert re.search(
        rf"cached\.yaml:\d+:\d+: workload\.{key}: the real machine has no KV ", said
    ), said
    assert not (tmp_path / "o").exists()


def test_a_prefix_cache_is_refused(tmp_path: Path) -> None:
    row = '{"timestamp": 0, "input_length": 4, "output_length": 2, "hash_ids": [1, 2]}\n'
    (tmp_path / "r.jsonl").write_text(row * 2, encoding="utf-8")
    arrivals = {"kind": "file", "path": str(tmp_path / "r.jsonl"), "block_tokens": 2}
    memory = {"prefix_cache": True, "kv_block_tokens": 2}
    file = write(tmp_path / "shared.yaml", workload={"arrivals": arrivals}, memory=memory)
    done = validate(file, "--out", tmp_path / "o")
    assert isinstance(done.exception, ScenarioError)
    assert "memory.prefix_cache: the real machine shares no KV entries" in str(done.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "poisson", "rate_per_s": 40},
        {"kind": "closed", "clients": 2, "think": {"mean": "2ms", "distribution": "exponential"}},
    ],
    ids=["poisson", "closed"],
)
def test_spread_arrivals_are_replayed_on_the_executor(
    tmp_path: Path, arrivals: dict[str, Any]
) -> None:
    lengths = {"prompt": 6, "output": 4}
    workload = {"requests": 4, "lengths": lengths, "arrivals": arrivals}
    file = write(tmp_path / "open.yaml", workload=workload)
    done = validate(file, "--runs", 3, "--out", tmp_path / "out", "--json", "--no-plots")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["schedule"] == "replayed"
    assert summary["decisions_equal"] is True


def test_a_profile_of_another_machine_is_refused_and_both_are_named(
    scenario: Path, tmp_path: Path
) -> None:
    profile = measured_profile(tmp_path / "theirs.yaml")
    data = yaml.safe_load(profile.read_text())
    data["measured"]["machine"] = {"processor": "Abacus 3000", "cores": 77}
    profile.write_text(yaml.safe_dump(data))
    done = validate(scenario, "--profile", profile, "--out", tmp_path / "out")
    assert isinstance(done.exception, ScenarioError)
    said = str(done.exception)
    assert "Abacus 3000" in said
    assert "cores 77" in said
    assert f"cores {os.cpu_count()}" in said
    assert "moesim calibrate" in said
    assert not (tmp_path / "out").exists()


def test_only_a_profile_of_this_machine_and_device_is_accepted(tmp_path: Path) -> None:
    from moesim.calibrate.bench import machine_facts
    from moesim.hardware import load_hardware

    here = machine_facts("cpu")
    profile = measured_profile(tmp_path / "ours.yaml")
    data = yaml.safe_load(profile.read_text())
    data["measured"]["machine"] = dict(here)
    profile.write_text(yaml.safe_dump(data))
    hardware = load_hardware(profile)
    assert costs.check_machine(hardware, "cpu", here) is None
    assert "device cuda" in str(costs.check_machine(hardware, "cuda", here))
    for key in ("processor", "cores", "torch", "threads"):
        assert key in str(costs.check_machine(hardware, "cpu", {**here, key: "else"})), key


def test_a_profile_of_another_model_is_refused_and_both_are_named(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from measured_profiles import tiny_shape

    monkeypatch.setattr(costs, "check_machine", lambda *_: None)
    profile = measured_profile(tmp_path / "ours.yaml", random_times(0, tiny_shape()))
    done = validate(scenario, "--profile", profile, "--out", tmp_path / "out")
    assert isinstance(done.exception, ScenarioError)
    assert "mixtral" in str(done.exception)
    assert "qwen3_moe" in str(done.exception)


def test_a_trace_that_does_not_fit_the_model_is_refused(scenario: Path, tmp_path: Path) -> None:
    done = validate(scenario, "--set", "model=mixtral-8x7b", "--out", tmp_path / "out")
    assert getattr(done.exception, "exit_code", None) == 2
    assert "4 MoE layers, 16 experts" in str(done.exception)
    assert "32, 8" in str(done.exception)


def test_cuda_without_a_gpu_is_a_usage_error(scenario: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = validate(scenario, "--device", "cuda", "--out", tmp_path / "out")
    assert getattr(done.exception, "exit_code", None) == 2
    assert "CUDA" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_without_torch_it_says_what_to_install(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    done = validate(scenario, "--out", tmp_path / "out")
    assert isinstance(done.exception, MissingExtra)
    assert ".[torch]" in str(done.exception)


BRIEFLY = (
    "import sys; from moesim.cli import main; from moesim.validate import costs\n"
    "costs.BRIEF_S = 1.5; sys.argv[0] = 'moesim'; main()"
)


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["", "profile.yaml"], ids=["calibrating", "running"])
def test_an_interrupt_ends_with_130_and_leaves_nothing(mark: str, tmp_path: Path) -> None:
    """`mark`: the file whose appearance says that it is time."""
    out = tmp_path / "kept/out"
    arguments = ["validate", str(SHIPPED), "--runs", "1000", "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-c", BRIEFLY, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(out.parent.glob(f".out.partial-*/{mark}")):
        assert started.poll() is None, "it ended before it was interrupted"
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=PATIENCE_S)
    assert started.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(out.parent.iterdir())


@pytest.mark.slow
def test_the_shipped_scenario_validates_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moesim", "validate", str(SHIPPED), "--device", "cpu", "--json",
         "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["decisions_equal"] is True
    assert summary["runs"] == 5
    assert {"step_time_error_median_pct", "total_time_error_pct", "executor_spread_pct"} <= set(
        summary
    )
