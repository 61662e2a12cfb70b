"""`moesim validate`: what it writes, what it prints, and how it ends."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from paths import ROOT
from stand_in_machines import PretendBench
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import MoesimError, ThresholdError
from moesim.report.validation import load_validation, plots_for_validation
from moesim.simulate.build import Plan
from moesim.validate import session

TABLES = ("steps", "events", "requests", "runs")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A small workload on the shipped trace."""
    file = tmp_path / "small.yaml"
    plain = {
        "trace": str(ROOT / "traces/shallow"),
        "hardware": "rtx-4090",
        "workload": {"requests": 3, "lengths": {"prompt": 12, "output": 5}},
        "batching": {"token_budget": 16, "max_sequences": 2},
        "cache": {"policy": "lru", "slots": "4/layer"},
    }
    file.write_text(yaml.safe_dump(plain))
    return file


class Slow(PretendBench):
    """A machine that is a tenth slower than simulated."""

    def __init__(self, device: str, plans: Any) -> None:
        super().__init__(device, plans, slower=1.1)


class Interrupted(PretendBench):
    def run(self, plan: Plan, script: Any = None) -> Any:
        if len(self.runs) == 2:
            raise KeyboardInterrupt
        return super().run(plan, script)


class Otherwise(PretendBench):
    """A machine that asks for one miss less."""

    def run(self, plan: Plan, script: Any = None) -> Any:
        made = super().run(plan, script)
        decisions = replace(made.decisions, misses=made.decisions.misses[:-1])
        return replace(made, decisions=decisions)


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no machine here: costs come from the scenario, and runs are simulated."""
    monkeypatch.setattr(session, "RealBench", Slow)
    monkeypatch.setattr(
        session, "measured_costs", lambda plan, *_, **__: (plan, {"costs": "given"})
    )


def validate(*arguments: str | int | Path) -> Any:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


def test_everything_is_written(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = validate(scenario, "--out", out, "--runs", 3)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    assert "whole workload" in done.stdout
    assert "time to first token" in done.stdout
    for name in TABLES:
        rows = pq.read_table(out / f"{name}.parquet").to_pylist()
        with (out / f"{name}.csv").open(newline="") as lines:
            assert len(list(csv.DictReader(lines))) == len(rows) > 0
    steps = pq.read_table(out / "steps.parquet").to_pylist()
    for row in steps:
        assert row["error_ns"] == row["simulated_ns"] - row["real_ns"]
        assert row["absolute_error_pct"] == abs(row["error_pct"])
        assert row["real_p10_ns"] <= row["real_ns"] <= row["real_p90_ns"]
    for name in ("predicted_measured", "residuals"):
        assert (out / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"plots/{name}.svg").exists()
        assert (out / f"plots/{name}.csv").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "validation"
    assert manifest["costs"] == "given"
    assert "steps.parquet" in manifest["outputs"]
    assert len(pq.read_table(out / "runs.parquet")) == 3


def test_json_is_all_of_standard_output(scenario: Path, tmp_path: Path) -> None:
    done = validate(scenario, "--out", tmp_path / "out", "--json", "--no-plots", "--runs", 2)
    summary = json.loads(done.stdout)
    assert summary["decisions_equal"] is True
    assert summary["step_time_error_median_pct"] == pytest.approx(9.5, abs=0.6)
    assert summary["total_time_bias_pct"] == pytest.approx(-9.5, abs=0.6)
    assert 0 <= summary["executor_spread_pct"] < 1
    assert summary["out"] == str(tmp_path / "out")
    assert summary["schedule"] == "all at once"
    assert not (tmp_path / "out/plots").exists()


def test_the_figures_can_be_drawn_again_from_the_folder(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    validate(scenario, "--out", out, "--runs", 2)
    before = (out / "plots/residuals.png").read_bytes()
    plots_for_validation(out)
    assert (out / "plots/residuals.png").read_bytes() == before
    with pytest.raises(MoesimError, match="not the folder of a validation"):
        load_validation(tmp_path)


@pytest.mark.parametrize("option", ["--max-step-error", "--max-total-error"])
def test_a_stated_error_that_is_exceeded_exits_with_3(
    option: str, scenario: Path, tmp_path: Path
) -> None:
    arguments = (scenario, "--runs", 2, "--no-plots", "--force", "--out", tmp_path / "out", option)
    assert validate(*arguments, "50").exit_code == 0
    done = validate(*arguments, "5")
    assert isinstance(done.exception, ThresholdError)
    assert done.exception.exit_code == 3
    assert option in str(done.exception)
    assert (tmp_path / "out/summary.json").exists(), "the evidence is kept"


def test_different_decisions_exit_with_1_whatever_the_errors(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RealBench", Otherwise)
    out = tmp_path / "out"
    done = validate(scenario, "--runs", 2, "--no-plots", "--out", out, "--max-total-error", "0")
    assert isinstance(done.exception, MoesimError)
    assert done.exception.exit_code == 1
    assert "miss (step, layer, key)" in str(done.exception)
    assert json.loads((out / "summary.json").read_text())["decisions_equal"] is False
    assert "miss" in (out / "differences.json").read_text()


@pytest.mark.parametrize(
    "arrivals",
    [
        "{kind: poisson, rate_per_s: 2000}",
        "{kind: closed, clients: 1, think: {mean: 1ms, distribution: exponential}}",
    ],
)
def test_spread_arrivals_are_replayed_and_reported_apart(
    scenario: Path, tmp_path: Path, arrivals: str
) -> None:
    done = validate(
        scenario, "--runs", 2, "--no-plots", "--json", "--out", tmp_path / "out",
        "--set", f"workload.arrivals={arrivals}",
    )  # fmt: skip
    summary = json.loads(done.stdout)
    assert summary["schedule"] == "replayed"
    assert summary["decisions_equal"] is True
    assert summary["open_steps_real"] > 0
    assert summary["open_e2e_mean_bias_pct"] is not None


def test_an_interrupt_leaves_nothing_behind(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RealBench", Interrupted)
    done = validate(scenario, "--out", tmp_path / "kept/out")
    assert done.exit_code == 130
    assert list((tmp_path / "kept").iterdir()) == []


def test_what_is_there_is_replaced_only_by_force(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (scenario, "--runs", 1, "--no-plots", "--out", out)
    assert validate(*arguments).exit_code == 0
    assert "already exists" in str(validate(*arguments).exception)
    assert validate(*arguments, "--force").exit_code == 0


def test_a_sweep_is_refused(scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(scenario.read_text() + "\nsweep: {seed: [0, 1]}\n")
    done = validate(scenario, "--out", tmp_path / "out")
    assert getattr(done.exception, "exit_code", None) == 2
    assert not (tmp_path / "out").exists()
