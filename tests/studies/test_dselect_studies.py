"""The studies of DSelect-k do what their documents say, in small."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from study_scripts import study

from moesim.errors import MoesimError, UsageError
from moesim.report.statistics import Estimate
from moesim.training.gates import TopK

torch.set_num_threads(1)


recovery = study("dselect", "recovery")
CELL = recovery.Cell(4, 2, 3)
SMALL = ["--cells", "4x2x3", "--strata", "2", "--draws", "1", "--seeds", "2", "--steps", "40"]


def test_a_problem_mixes_k_experts_a_task_with_weights_that_matter() -> None:
    problem = recovery.make_problem(recovery.Cell(8, 3, 50), 1)
    truth = problem.truth
    assert (truth != 0).sum(dim=1).tolist() == [3] * 50
    torch.testing.assert_close(truth.sum(dim=1), torch.ones(50))
    assert truth[truth > 0].min().item() >= 0.5 / 3 - 1e-6
    both = torch.cat([problem.train, problem.held_out])
    torch.testing.assert_close(both.std(dim=0), torch.ones(8, 4))
    residual = problem.train_targets - torch.einsum("tn,bno->bto", truth, problem.train)
    assert residual.std().item() == pytest.approx(recovery.NOISE, rel=0.02)


def test_the_truth_has_no_loss_and_nothing_has_a_loss_near_one() -> None:
    problem = recovery.make_problem(CELL, 1)
    assert recovery.relative_loss(problem.truth, problem) == pytest.approx(0, abs=1e-10)
    nothing = recovery.relative_loss(torch.zeros_like(problem.truth), problem)
    assert nothing == pytest.approx(1, abs=0.05)
    assert recovery.exact_support(problem.truth, problem.truth) == 1
    almost = problem.truth.clone()
    almost[0, (almost[0] == 0).nonzero()[0]] = 1e-30
    assert recovery.exact_support(almost, problem.truth) == pytest.approx(2 / 3)


def test_a_gate_that_holds_the_truth_scores_as_the_truth() -> None:
    problem = recovery.make_problem(CELL, 1)
    gate = TopK(4, 2, tasks=3)
    with torch.no_grad():
        gate.scores.table.copy_(problem.truth.clamp(min=1e-9).log())
    seen = recovery.look(gate, problem, 0)
    assert seen["loss"] == pytest.approx(0, abs=1e-9)
    assert seen["hard_loss"] == pytest.approx(0, abs=1e-9)
    assert seen["exact"] == seen["hard_exact"] == 1
    assert (seen["non_zeros"], seen["most_non_zeros"], seen["active_share"]) == (2, 2, 0.5)


def test_every_gate_tries_the_same_rates_and_runs_equal_settings_once(tmp_path: Path) -> None:
    study_of_all = recovery.Study(tmp_path, strata=3, draws=60, seeds=1, steps=1)
    rates = {setting["lr"] for setting in study_of_all.settings_of("top_k")}
    assert len(rates) == 3
    for gate, space in recovery.SPACES.items():
        settings = study_of_all.settings_of(gate)
        assert {setting["lr"] for setting in settings} == rates
        assert len(settings) == 3 * len(list(product(*space.values())))
        for key, values in space.items():
            assert {setting[key] for setting in settings} == set(values)


def test_a_study_keeps_every_run_resumes_and_prints_losses_beside_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recovery.main([str(tmp_path), *SMALL])
    first = capsys.readouterr().out
    files = sorted(tmp_path.rglob("*.json"))
    assert [len(sorted((tmp_path / "4x2x3" / g).iterdir())) for g in ("dselect_k", "top_k")] == [
        4,
        4,
    ]
    drawn = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"recovery_trajectories", "gate_trajectories"}
    looks = (tmp_path / "plots/gate_trajectories.csv").read_text().splitlines()
    assert len(looks) == 1 + 3 * 4 * 21  # gates, experts, looks
    for header in ("At the end", "DSelect-k less the other gate", "Along training", "Chosen"):
        assert header in first
    assert any(word in first for word in ("ahead", "behind", "not seen"))
    before = {file: file.read_bytes() for file in files}
    files[0].unlink()
    files[-1].unlink()
    recovery.main([str(tmp_path), *SMALL])
    assert capsys.readouterr().out == first
    assert {file: file.read_bytes() for file in files} == before
    trajectory = json.loads(files[0].read_text())["snapshots"]
    assert [s["step"] for s in trajectory] == list(range(0, 41, 2))
    assert len(trajectory[0]["first_task"]) == 4


def test_runs_made_otherwise_are_refused(tmp_path: Path) -> None:
    one = recovery.Study(tmp_path, strata=1, draws=1, seeds=1, steps=5)
    one.runs_of(CELL, "top_k")
    with pytest.raises(UsageError, match="made with other settings; choose another folder"):
        recovery.Study(tmp_path, strata=1, draws=1, seeds=1, steps=6).runs_of(CELL, "top_k")
    with pytest.raises(UsageError, match=r"seeds \(0\) must be at least 1"):
        recovery.Study(tmp_path, strata=1, draws=1, seeds=0, steps=6)


def test_the_setting_with_the_least_hardened_loss_is_kept(tmp_path: Path) -> None:
    runs = recovery.Study(tmp_path, strata=4, draws=1, seeds=1, steps=30).runs_of(CELL, "top_k")
    trials = [json.loads(file.read_text()) for file in tmp_path.rglob("trial-*.json")]
    best = min(trials, key=lambda run: run["snapshots"][-1]["hard_loss"])
    assert len(trials) == 4
    assert runs[0]["setting"] == best["setting"]
    assert {run["seed"] for run in trials} == {recovery.TUNING_SEED}


@pytest.mark.parametrize("gate", sorted(recovery.SPACES))
def test_every_gate_gets_better_at_an_easy_problem(gate: str) -> None:
    setting = {"dselect_k": {"gamma": 1.0}, "noisy_top_k": {"balance": 0.0}}.get(gate, {})
    run = recovery.train(gate, recovery.Cell(3, 2, 8), {"lr": 0.1, **setting}, 0, 150)
    first, last = run["snapshots"][0], run["snapshots"][-1]
    assert last["hard_loss"] < first["hard_loss"] / 2
    assert last["hard_exact"] > first["hard_exact"]


def test_a_loss_that_is_not_finite_stops_with_the_step() -> None:
    setting = {"lr": float("inf"), "gamma": 1.0}
    with pytest.raises(MoesimError, match=r"dselect_k on 4x2x3, seed 0.* is nan at step 2"):
        recovery.train("dselect_k", CELL, setting, 0, 5)


@pytest.mark.parametrize("text", ["16x2", "16x0x2", "axbxc", "2x3x1"])
def test_impossible_cells_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cell"):
        recovery.Cell.parse(text)
    assert str(recovery.Cell.parse("16x2x128")) == "16x2x128"


def test_a_reading_is_of_the_side_on_which_the_whole_interval_lies() -> None:
    for mean, half, good, expected in (
        (-0.2, 0.1, -1, "ahead"),
        (-0.2, 0.1, 1, "behind"),
        (0.2, 0.3, 1, "not seen"),
        (0.0, 0.0, 1, "not seen"),
    ):
        assert recovery.reading(Estimate(mean, half, 10), good) == expected
    assert recovery.reading(Estimate(0.2, None, 1), 1) == "one seed"
