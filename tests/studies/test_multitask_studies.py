"""The studies of multi-task mixtures do what their documents say, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from study_scripts import study

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from multitask_problem import TASKS, examples, mixture  # noqa: E402
from random_datasets import made_up_digits, made_up_ratings  # noqa: E402

from moesim.errors import UsageError  # noqa: E402

torch.set_num_threads(1)


multitask, tables, digits, movielens = (
    study("dselect", name) for name in ("multitask", "multitask_tables", "digits", "movielens")
)


def world(**changes: Any) -> Any:
    """Made-up tasks; rows of the test split can be watched."""
    rows = {name: examples(32, seed) for seed, name in enumerate(("train", "validation", "test"))}
    options = {
        "tasks": TASKS,
        "splits": lambda seed: rows,
        "network": lambda gates: mixture(*gates, seed=torch.initial_seed()),
        "n": 4,
        "k": 2,
        "features": None,
        "epochs": 2,
        "batch": 16,
        "rates": (1e-3, 1e-1),
        "size": {"epochs": 2},
    }
    return multitask.World(**(options | changes))


def test_every_gate_has_the_same_rates_factors_and_number_of_trials() -> None:
    bounds = (1e-3, 1e-2)
    every = {gate: multitask.draw_settings(gate, 3, bounds) for gate in multitask.SPACES}
    rates = [setting["lr"] for setting in every["top_k"]]
    assert len(set(rates)) == multitask.STRATA
    assert bounds[0] < min(rates) < max(rates) < bounds[1]
    for gate, settings in every.items():
        assert [setting["lr"] for setting in settings] == rates
        factors = [setting.get("gate_factor") for setting in settings]
        assert factors == [s.get("gate_factor") for s in every["top_k"]] or gate == "hash"
        for rate in set(rates):
            at = {s["gate_factor"] for s in every["top_k"] if s["lr"] == rate}
            assert at == set(multitask.FACTORS["gate_factor"])


@pytest.mark.parametrize("gate", sorted(multitask.SPACES))
def test_many_draws_try_every_option_of_a_gates_own_space(gate: str) -> None:
    settings = multitask.draw_settings(gate, 40, (1e-3, 1e-2))
    for key, values in multitask.SPACES[gate].items():
        assert {setting[key] for setting in settings} == set(values)


def test_gates_that_learn_nothing_have_no_parameters_and_equal_trials_run_once(
    tmp_path: Path,
) -> None:
    for gate in multitask.SPACES:
        made = multitask.make_gates(gate, world(), multitask.draw_settings(gate, 1, (1, 2))[0], 1)
        learns = any(True for each in made for _ in each.parameters())
        assert learns == (gate not in multitask.LEARN_NOTHING)
    study = multitask.Study(tmp_path, world(), draws=3, seeds=1)
    trials = study.trials_of("hash")
    assert len(trials) == 3 * multitask.STRATA
    assert trials[0] == trials[multitask.STRATA]
    assert len(list(tmp_path.rglob("trial-*.json"))) == multitask.STRATA


def test_the_control_is_top_k_with_the_rate_and_factor_of_dselect_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = multitask.Study(tmp_path, world(), draws=1, seeds=2)
    rates = {"lr": 0.02, "gate_factor": 10.0}
    chosen = {"dselect_k": {**rates, "gamma": 0.1}, "top_k": {"lr": 0.05, "gate_factor": 1.0}}
    monkeypatch.setattr(
        study, "trials_of", lambda gate: [{"setting": chosen[gate], "validation": 1.0}]
    )
    control = study.control()
    assert [run["setting"] for run in control] == [rates] * 2
    assert [run["seed"] for run in control] == [0, 1]
    alone = multitask.train("top_k", world(), rates, 1, test=True)
    assert control[1]["scores"] == alone["scores"]
    chosen["top_k"] = rates
    assert study.control() == study.runs_of("top_k")
    assert len(list(tmp_path.rglob("*.json"))) == 4  # equal settings have no runs of their own


def test_differences_are_paired_by_seed_for_each_task_and_for_the_sum_that_is_trained() -> None:
    def run(side: float, total: float) -> Any:
        scores = {
            name: {"loss": loss, "accuracy": 0.5}
            for name, loss in zip([task.name for task in TASKS], (side, total), strict=True)
        }
        return {"scores": {"test": {"hardened": scores}}}

    results = {
        "dselect_k": [run(1.0, 2.0), run(2.0, 4.0)],
        "other": [run(1.5, 2.0), run(2.5, 5.0)],
    }
    table = tables.by_difference(TASKS, results)
    row = dict(zip(table.columns, (cell.text for cell in table.rows[0]), strict=False))
    assert row[f"{TASKS[0].name} loss"] == "-0.500 ± 0.000"
    assert row[f"{TASKS[1].name} loss"].startswith("-0.500 ± 6.3")
    expected = -0.5 * TASKS[0].weight - 0.5 * TASKS[1].weight
    assert row["weighted sum of losses"].startswith(f"{expected:+.3f}")


def test_losses_by_rate_are_the_best_of_each_rate_whatever_the_order_of_trials() -> None:
    def trial(lr: float, validation: float) -> Any:
        return {"setting": {"lr": lr}, "validation": validation}

    runs = [trial(0.02, 0.5), trial(0.01, 0.9), trial(0.02, 0.4), trial(0.01, 0.7)]
    table = tables.by_rate({"one": runs, "other": [trial(0.01, 0.2), trial(0.02, 0.3)]})
    assert list(table.columns)[1:] == ["0.01", "0.02", "chosen rate"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["one", "0.700", "0.400", "2 of 2"],
        ["other", "0.200", "0.300", "1 of 2"],
    ]


def test_whatever_the_gate_experts_and_towers_of_a_seed_begin_alike() -> None:
    drawn = []

    def network(gates: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return mixture(*gates)

    here = world(network=network)
    own = {"dselect_k": {"entropy": 0.0}, "noisy_top_k": {"balance": 0.1}}
    for gate, seed in (("top_k", 0), ("noisy_top_k", 0), ("dselect_k", 0), ("top_k", 1)):
        setting = {"lr": 1e-3, "gate_factor": 1.0, **own.get(gate, {})}
        multitask.train(gate, here, setting, seed, test=False)
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


@pytest.mark.parametrize("features", [None, 6])
@pytest.mark.parametrize("gate", sorted(multitask.SPACES))
def test_every_gate_runs_static_and_but_for_hash_per_example(
    gate: str, features: int | None
) -> None:
    here = world(features=features)
    setting = multitask.draw_settings(gate, 1, here.rates)[0]
    if (gate, features) == ("hash", 6):
        with pytest.raises(UsageError, match="hash routes by id"):
            multitask.train(gate, here, setting, 0, test=True)
        return
    run = multitask.train(gate, here, setting, 0, test=True)
    assert run["served_experts"] <= 4
    assert run["expert_flops"] == 2 * 6 * 8
    assert set(run["scores"]) == {"validation", "test"}
    hardened = run["scores"]["validation"]["hardened"]
    weighted = sum(task.weight * hardened[task.name]["loss"] for task in TASKS)
    assert run["validation"] == weighted
    assert weighted == pytest.approx(min(epoch["validation"] for epoch in run["history"]))


def test_the_setting_with_the_least_validation_loss_is_kept_and_tuning_sees_no_test(
    tmp_path: Path,
) -> None:
    runs = multitask.Study(tmp_path, world(), draws=1, seeds=1).runs_of("top_k")
    trials = [json.loads(file.read_text()) for file in tmp_path.rglob("trial-*.json")]
    assert len(trials) == 4
    assert runs[0]["setting"] == min(trials, key=lambda run: run["validation"])["setting"]
    assert {run["seed"] for run in trials} == {multitask.TUNING_SEED}
    assert all(set(run["scores"]) == {"validation"} for run in trials)


def test_a_run_that_was_killed_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    setting = multitask.draw_settings("dselect_k", 1, (1e-2, 1e-1))[0]
    whole = multitask.train("dselect_k", world(), setting, 0, test=True)
    steps: list[int] = []

    def kill(done: int, of: int) -> None:
        steps.append(done)
        if done == 3:
            raise KeyboardInterrupt

    file = tmp_path / "seed-0.safetensors"
    with pytest.raises(KeyboardInterrupt):
        multitask.train("dselect_k", world(), setting, 0, test=True, checkpoint=file, on_step=kill)
    again = multitask.train(
        "dselect_k",
        world(),
        setting,
        0,
        test=True,
        checkpoint=file,
        on_step=lambda done, of: steps.append(done),
    )
    assert again == whole
    assert steps == [1, 2, 3, 3, 4]


def test_runs_made_otherwise_are_refused(tmp_path: Path) -> None:
    multitask.Study(tmp_path, world(), draws=1, seeds=1).runs_of("top_k")
    other = multitask.Study(tmp_path, world(size={"epochs": 3}), draws=1, seeds=1)
    with pytest.raises(UsageError, match="made with other settings; choose another folder"):
        other.runs_of("top_k")
    with pytest.raises(UsageError, match=r"seeds \(0\) must be at least 1"):
        multitask.Study(tmp_path, world(), draws=1, seeds=0)


SMALL = ["--experts", "3", "--epochs", "2", "--draws", "1", "--seeds", "2"]
DIGITS = [*SMALL, "--pairs", "32", "--held-out", "16", "--batch", "16"]
RATINGS = [*SMALL, "--width", "4", "--batch", "64"]


@pytest.mark.parametrize(
    ("script", "arguments", "made_up"),
    [(digits, DIGITS, made_up_digits), (movielens, RATINGS, made_up_ratings)],
    ids=["digits", "movielens"],
)
def test_a_study_keeps_every_run_resumes_and_prints_losses_beside_wins(
    script: Any, arguments: list[str], made_up: Any, tmp_path: Path, capsys: Any
) -> None:
    script.main([str(tmp_path), *arguments], made_up())
    first = capsys.readouterr().out
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    controls = len(list(tmp_path.rglob("*-control.json")))
    assert controls in (0, 2)  # none if tuning chose the same rate and factor for both gates
    assert [len(list((tmp_path / gate).iterdir())) for gate in ("dselect_k", "top_k")] == [
        6,
        6 + controls,
    ]
    assert {file.suffix for file in files} == {".json"}  # no checkpoint outlives its run
    for header in (
        "On test rows",
        "DSelect-k less",
        "Work of the experts",
        "top_k, rates of dselect_k",
        "Tuning: least validation loss at each learning rate",
        "along training",
        "Chosen",
    ):
        assert header in first
    assert any(word in first for word in ("ahead", "behind", "not seen"))
    before = {file: file.read_bytes() for file in files}
    files[0].unlink()
    files[-1].unlink()
    script.main([str(tmp_path), *arguments], made_up())
    assert capsys.readouterr().out == first
    assert {file: file.read_bytes() for file in files} == before


def test_too_many_selected_or_a_hash_of_examples_is_refused_before_any_run(tmp_path: Path) -> None:
    for extra, match in (
        (["--k", "4"], r"k \(4\)"),
        (["--per-example", "--gates", "top_k", "hash"], "hash routes by id"),
    ):
        with pytest.raises(UsageError, match=match):
            digits.main([str(tmp_path), *DIGITS, *extra], made_up_digits())
    assert not list(tmp_path.iterdir())
