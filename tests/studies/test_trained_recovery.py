"""Recovery with learnt experts: matching, supports by hand, bounds, criteria, and serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_scripts import study

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from torch import nn  # noqa: E402

from moesim.trace import load_trace  # noqa: E402
from moesim.training.gates import DSelectK, TopK  # noqa: E402

torch.set_num_threads(1)
recovery = study("dselect", "recovery")
experts = study("dselect", "trained_experts")
trained = study("dselect", "recovery_trained")
served = study("dselect", "served_recovery")
CELL = recovery.Cell(4, 2, 6)
SMALL = ["--strata", "1", "--draws", "2", "--seeds", "2", "--steps", "20"]
RATES = {"lr": 0.01, "gate_factor": 1.0}


def holding(teachers: Any, order: list[int]) -> Any:
    """Return experts that compute 2 · teacher + 1 on held-out inputs, in another order."""

    class Permuted(nn.Module):
        def forward(self, inputs: Any) -> Any:
            return (2 * teachers[:, order] + 1).transpose(0, 1)

    return Permuted()


# --- matching ---


def test_permuted_and_scaled_experts_are_matched_with_their_teachers() -> None:
    teachers = recovery.make_problem(CELL, 1).held_out
    order = [2, 0, 3, 1]
    match = experts.match_experts(3 * teachers[:, order] - 1, teachers)
    assert match.teachers.tolist() == order
    assert match.certain.tolist() == [True] * 4
    torch.testing.assert_close(match.correlations, torch.ones(4, dtype=torch.float64))


def test_a_match_is_uncertain_if_it_is_weak_or_if_another_expert_fits_better() -> None:
    teachers = recovery.make_problem(CELL, 1).held_out
    learnt = teachers.clone()
    learnt[:, 1] = teachers[:, 0]  # so the first teacher has two, and the second none
    learnt[:, 2] = 0  # constant
    match = experts.match_experts(learnt, teachers)
    assert sorted(match.teachers.tolist()) == [0, 1, 2, 3]
    assert match.certain.tolist().count(True) == 2
    assert not match.certain[2]
    assert match.certain[3]
    noisy = teachers.clone()
    noisy[:, 1] += torch.randn(noisy[:, 1].shape, generator=torch.Generator().manual_seed(0))
    weak = experts.match_experts(noisy, teachers)
    assert weak.teachers.tolist() == [0, 1, 2, 3]
    assert 0.6 < weak.correlations[1] < 0.8
    assert weak.certain.tolist() == [True, False, True, True]


def test_supports_are_compared_after_the_match() -> None:
    problem = recovery.make_problem(CELL, 1)
    order = [2, 0, 3, 1]
    gate = TopK(4, 2, tasks=6)
    with torch.no_grad():
        gate.scores.table.copy_(problem.truth[:, order].clamp(min=1e-9).log())
    seen = experts.look(gate, holding(problem.held_out, order), problem, 0)
    assert seen["exact"] == seen["hard_exact"] == seen["pairs"] == seen["certain"] == 1
    assert (seen["non_zeros"], seen["at_most_k"]) == (2, 1)
    wrong = experts.look(gate, holding(problem.held_out, [0, 1, 2, 3]), problem, 0)
    assert wrong["exact"] < 1
    assert wrong["pairs"] == 1  # which needs no match


def test_a_gate_that_is_not_sparse_counts_so_as_trained_and_not_hardened() -> None:
    problem = recovery.make_problem(CELL, 1)
    gate = DSelectK(4, 2, tasks=6)
    seen = experts.look(gate, holding(problem.held_out, [0, 1, 2, 3]), problem, 0)
    assert (seen["non_zeros"], seen["at_most_k"], seen["exact"]) == (4, 0, 0)
    assert (seen["hard_non_zeros"], seen["hard_at_most_k"], seen["binary"]) == (2, 1, 0)


def test_overlaps_and_lost_experts_by_hand() -> None:
    truth = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
    assert experts.equal_overlaps(truth[:, [3, 1, 0, 2]], truth) == 1
    same = truth[[0, 0, 2]]  # overlaps 2, 0, 0, and in the truth 1, 0, 1
    assert experts.equal_overlaps(same, truth) == pytest.approx(1 / 3)
    assert experts.equal_overlaps(truth[:1], truth[:1]) == 1
    assert experts.lost_experts(truth) == 0
    assert experts.lost_experts(truth[:1]) == 0.5


# --- training ---


def test_separate_experts_compute_what_they_compute_together() -> None:
    torch.manual_seed(0)
    together, inputs = experts.Experts(3), torch.randn(5, recovery.INPUTS)
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.normal_()
        apart = torch.stack([network(inputs) for network in together.separate()])
        torch.testing.assert_close(apart, together(inputs))


@pytest.mark.slow
def test_true_supports_reach_a_lower_loss_than_random_ones_and_choice_lies_between() -> None:
    losses = {}
    for name in (*experts.BOUNDS, "top_k"):
        run = experts.train(name, recovery.Cell(4, 2, 12), RATES, 0, 400).run
        losses[name] = experts.end_of(run)["hard_loss"]
    true = experts.end_of(experts.train("true_supports", CELL, RATES, 0, 400).run)
    assert true["exact"] == true["certain"] == 1
    assert losses["true_supports"] < losses["top_k"] < losses["random_supports"]
    assert losses["true_supports"] < losses["random_supports"] / 5


def test_random_supports_have_k_experts_and_depend_on_the_seed_alone() -> None:
    one, again, other = (experts.random_supports(CELL, seed) for seed in (0, 0, 1))
    assert one.sum(dim=1).tolist() == [2] * 6
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_all_gates_of_a_seed_start_with_the_same_experts() -> None:
    options = {"top_k": {}, "noisy_top_k": {"balance": 0.0}, "random_supports": {}}
    starts = [
        experts.train(name, CELL, {**RATES, "lr": 1e-12, **own}, 3, 1).experts.inner
        for name, own in options.items()
    ]
    for start in starts[1:]:
        torch.testing.assert_close(start, starts[0])


# --- the study ---


def run_of(loss: float, non_zeros: float, **setting: Any) -> dict[str, Any]:
    return {"setting": setting, "snapshots": [{"hard_loss": loss, "non_zeros": non_zeros}]}


def choices_of(trials: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, out: Path) -> Any:
    kept = trained.Study(out, strata=1, draws=1, seeds=1, steps=1)
    monkeypatch.setattr(kept, "trials_of", lambda cell, gate: trials)
    monkeypatch.setattr(
        kept, "seeds_of", lambda cell, gate, setting, name="seed": [(name, setting)]
    )
    return kept.choices(CELL, "dselect_k")


def test_two_criteria_choose_among_the_same_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse, worse = run_of(0.1, 4, a=1), run_of(0.2, 2, a=2), run_of(0.3, 1, a=3)
    chosen = choices_of([worse, sparse, dense], monkeypatch, tmp_path)
    assert chosen["loss"].setting == {"a": 1}
    assert chosen["at most k"].runs == [("sparse-seed", {"a": 2})]
    alike = choices_of([worse, sparse], monkeypatch, tmp_path)
    assert alike["loss"] is alike["at most k"]
    none = choices_of([dense, run_of(0.2, 2.5, a=4)], monkeypatch, tmp_path)
    assert (none["at most k"].runs, none["at most k"].least) == ([], 2.5)


def test_the_study_resumes_and_shows_bounds_losses_and_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), *SMALL, "--cells", "4x2x6", "--sweep-cells", "4x2x6"]
    arguments += ["--sweep-seeds", "1"]
    trained.main(arguments)
    first = capsys.readouterr().out
    for text in ("true_supports", "random_supports", "no setting: 4.0 experts at the least"):
        assert text in first
    assert "| softmax | at most k |" in first
    sweep = first[first.index("against its entropy weight") :]
    assert sweep.count("| 4x2x6 |") == len(trained.GAMMAS) * (2 * len(trained.ENTROPIES) - 1)
    files = sorted(tmp_path.rglob("*.json"))
    before = {file: file.read_bytes() for file in files}
    for file in (files[0], files[-1]):
        file.unlink()
    trained.main(arguments)
    assert capsys.readouterr().out == first
    assert {file: file.read_bytes() for file in files} == before


# --- serving ---


def test_served_mixtures_answer_as_measured_and_their_traces_hold_the_supports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), *SMALL, "--experts", "8", "--tasks", "2", "6", "--requests", "12"]
    arguments += ["--sequences", "8", "16"]
    arguments += ["--gates", "true_supports", "dselect_k", "top_k"]
    served.main(arguments)
    first = capsys.readouterr().out
    for text in ("Measured: loss", "change of time a row", "Simulated, 2 slots", "less the other"):
        assert text in first
    cell = recovery.Cell(8, 2, 6)
    for seed in (0, 1):
        folders = [tmp_path / str(cell) / gate for gate in ("true_supports", "top_k")]
        traces = [load_trace(folder / f"trace-12-{seed}") for folder in folders]
        for column in ("domain", "prompt_tokens"):
            assert len({tuple(trace.requests[column]) for trace in traces}) == 1
        truth = recovery.make_problem(cell, seed).truth
        for number, domain in enumerate(traces[0].requests["domain"]):
            row = traces[0].slice(number).start
            ids = np.asarray(traces[0].expert_ids[row])[0]
            support = truth[int(domain.removeprefix("task_"))].nonzero()[:, 0]
            assert sorted(ids.tolist()) == support.tolist()
    kept = json.loads((tmp_path / str(cell) / "top_k/served-12-0.json").read_text())
    assert kept["seed"] == 0
    served.main(arguments)
    assert capsys.readouterr().out == first


def test_a_mixture_to_be_served_computes_what_was_trained() -> None:
    result = experts.train("top_k", CELL, RATES, 0, 5)
    problem = recovery.make_problem(CELL, 0)
    names = [f"task_{n}" for n in range(6)]
    with torch.no_grad():
        outputs = served.mixture_of(result, names)(problem.held_out_inputs, hardened=True).outputs
        mixed = torch.einsum(
            "tn,nbo->bto", result.gate.select().dense(), result.experts(problem.held_out_inputs)
        )
    for task, name in enumerate(names):
        torch.testing.assert_close(outputs[name], mixed[:, task], atol=1e-5, rtol=1e-4)
