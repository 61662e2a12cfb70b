"""The multi-task mixture: what it computes and skips, how it is trained and resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from multitask_problem import TASKS, examples, gate, mixture  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from moesim.errors import MoesimError, UsageError  # noqa: E402
from moesim.training.gates import GATES, Softmax, TopK  # noqa: E402
from moesim.training.gates.mixing import mix, mix_shared  # noqa: E402
from moesim.training.multitask import (  # noqa: E402
    Examples,
    FitSettings,
    Mixture,
    Task,
    evaluate,
    fit,
    flops_per_row,
)
from moesim.training.multitask.tasks import (  # noqa: E402
    binary_cross_entropy,
    right_side,
    squared_error,
    total,
)

torch.set_num_threads(1)
QUICK = FitSettings(epochs=3, batch=16, rate=0.01, gate_factor=10, seed=4)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, other.state_dict()[name]) for name, a in one.state_dict().items())


# --- the network ---


@pytest.mark.parametrize("name", sorted(GATES))
def test_every_task_gets_the_weighted_sum_of_the_same_experts(name: str) -> None:
    model = mixture(gate(name)).eval()
    rows = examples(7).inputs
    states = torch.stack([expert(rows) for expert in model.experts], dim=1)
    for hardened in (False, True):
        chosen = model.gates[0].select().dense() if hardened else model.gates[0]().weights
        out = model(rows, hardened=hardened).outputs
        for number, (task, tower) in enumerate(model.towers.items()):
            naive = tower(torch.einsum("n,bnh->bh", chosen[number], states))
            torch.testing.assert_close(out[task], naive)


def test_hardened_no_task_has_more_than_k_experts() -> None:
    for name in GATES:
        weights, _ = mixture(gate(name)).eval().weights(examples(5).inputs, hardened=True)
        assert (weights != 0).sum(dim=2).max().item() <= 2


def test_per_example_gates_read_the_trunk_and_are_one_a_task() -> None:
    gates = [TopK(4, 2, features=3, balance=weight) for weight in (1.0, 2.0)]
    trunk = nn.Linear(6, 3)
    towers = {"side": nn.Linear(8, 2), "sum": nn.Linear(8, 1)}
    model = Mixture([nn.Linear(3, 8) for _ in range(4)], gates, towers, trunk=trunk)
    rows = examples(5).inputs
    weights, _ = model.weights(trunk(rows))
    for own, each in zip(gates, weights, strict=True):
        torch.testing.assert_close(each, own(trunk(rows)).weights)
    mixed = model(rows)
    assert mixed.outputs["sum"].shape == (5, 1)
    assert mixed.loss.item() >= 3  # each balance loss is at least 1, and weighs 1 and 2
    torch.testing.assert_close(mixed.loss, sum(own(trunk(rows)).loss for own in gates))


def test_many_mixtures_are_each_as_if_alone_and_learn_as_if_all_had_run() -> None:
    torch.manual_seed(0)
    experts = [nn.Linear(6, 3).double() for _ in range(4)]
    inputs = torch.randn(9, 6, dtype=torch.float64)
    weights = torch.rand(2, 9, 4, dtype=torch.float64) * (torch.rand(2, 9, 4) < 0.4)
    weights[0, 0, 0] = 0.5
    together = mix_shared(weights, experts, inputs)
    for number in range(2):
        torch.testing.assert_close(together[number], mix(weights[number], experts, inputs))
    dense = torch.einsum("tbn,bno->tbo", weights, torch.stack([e(inputs) for e in experts], 1))
    parameters = [p for expert in experts for p in expert.parameters()]
    ours = torch.autograd.grad(together.square().sum(), parameters)
    theirs = torch.autograd.grad(dense.square().sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


class Counting(nn.Module):
    """Counts when and on how many rows it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.rows = 0
        self.layer = nn.Linear(6, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(inputs)
        out: Tensor = self.layer(inputs)
        return out


def test_an_expert_runs_once_for_all_tasks_and_not_at_all_for_none() -> None:
    experts = [Counting() for _ in range(4)]
    top = gate("top_k")
    with torch.no_grad():
        top.scores.table.copy_(torch.tensor([[5.0, 4, 0, 0], [5.0, 0, 0, 4]]))
    model = Mixture(experts, [top], {"side": nn.Linear(8, 2), "sum": nn.Linear(8, 1)})
    activity = model(examples(10).inputs).activity
    assert [expert.rows for expert in experts] == [10, 10, 0, 10]
    assert [expert.calls for expert in experts] == [1, 1, 0, 1]
    assert (activity.pairs, activity.experts, activity.share) == (30, 3, 0.75)
    assert flops_per_row(experts[0], torch.zeros(6)) == 2 * 6 * 8


def test_gates_of_other_sizes_are_refused() -> None:
    towers = {"side": nn.Linear(8, 2), "sum": nn.Linear(8, 1)}
    experts = [nn.Linear(6, 8)] * 3
    with pytest.raises(UsageError, match="weights of 1 tasks, not of 2"):
        Mixture(experts, [TopK(3, 1)], towers)
    with pytest.raises(UsageError, match="a gate of 4 experts cannot mix 3"):
        Mixture(experts, [gate("top_k")], towers)


# --- tasks ---


def test_rows_without_a_target_add_nothing_to_a_loss() -> None:
    rows = examples(8, known=3)
    wrong = Examples(rows.inputs, {**rows.targets, "sum": rows.targets["sum"].clone()}, rows.known)
    wrong.targets["sum"][3:] = math.nan
    outputs = {"side": torch.zeros(8, 2), "sum": torch.zeros(8, 1, requires_grad=True)}
    loss = total(TASKS, outputs, wrong)
    expected = 0.5 * math.log(2) + 2 * rows.targets["sum"][:3].square().mean()
    assert loss.item() == pytest.approx(float(expected))
    loss.backward()
    assert outputs["sum"].grad is not None
    assert outputs["sum"].grad[3:].abs().sum() == 0
    model = mixture()
    assert evaluate(model, TASKS, wrong) == evaluate(model, TASKS, rows)
    alone = evaluate(model, TASKS, rows[slice(0, 3)])
    assert evaluate(model, TASKS, rows)["sum"].loss == pytest.approx(alone["sum"].loss)


def test_losses_of_yes_or_no_and_of_numbers() -> None:
    outputs, yes = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 1, 0])
    p = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5)]
    expected = [-math.log(p[0]), -math.log(p[1]), -math.log(1 - p[2])]
    assert binary_cross_entropy(outputs, yes).tolist() == pytest.approx(expected)
    assert right_side(outputs, yes).tolist() == [1, 0, 0]
    assert squared_error(outputs, torch.tensor([1.0, 1, 1])).tolist() == [1, 4, 0.25]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_task_has_a_positive_weight(weight: float) -> None:
    with pytest.raises(UsageError, match="weight of task 'a'"):
        Task("a", squared_error, weight)


# --- fitting ---


def test_evaluation_is_the_same_in_batches_and_weighs_rows_equally(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = mixture(dropout=0.5), examples(50, known=21)
    whole = evaluate(model, TASKS, rows)
    monkeypatch.setattr("moesim.training.multitask.fitting._EVALUATION_BATCH", 7)
    for task, score in evaluate(model, TASKS, rows).items():
        assert score.loss == pytest.approx(whole[task].loss)
        assert score.accuracy == whole[task].accuracy
    assert whole["sum"].accuracy is None


@pytest.mark.parametrize("name", ["dselect_k", "top_k", "softmax"])
def test_fitting_learns_and_keeps_the_best_epoch(name: str) -> None:
    model, rows, held_out = mixture(gate(name)), examples(256), examples(64, 1)
    before = evaluate(model, TASKS, held_out)
    fitted = fit(model, TASKS, rows, held_out, replace(QUICK, epochs=12))
    after = evaluate(model, TASKS, held_out)
    assert after["sum"].loss < before["sum"].loss / 2
    assert (after["side"].accuracy or 0) > 0.8
    losses = [epoch.validation for epoch in fitted.history]
    assert fitted.best == losses.index(min(losses))
    assert 0.5 * after["side"].loss + 2 * after["sum"].loss == pytest.approx(min(losses))


def test_what_is_left_is_the_best_epoch_and_not_the_last() -> None:
    model = mixture()

    def spoil(done: int, of: int) -> None:
        if done == of:
            with torch.no_grad():
                model.towers["sum"].bias.add_(10)

    held_out = examples(64, 1)
    fitted = fit(model, TASKS, examples(40), held_out, QUICK, on_step=spoil)
    assert fitted.best < 2
    scores = evaluate(model, TASKS, held_out)
    best = fitted.history[fitted.best].validation
    assert 0.5 * scores["side"].loss + 2 * scores["sum"].loss == pytest.approx(best)


def test_gates_have_a_rate_of_their_own() -> None:
    for factor, moves in ((1e-6, False), (1.0, True)):
        model = mixture()
        before = [tensor.detach().clone() for tensor in model.parameters()]
        fit(model, TASKS, examples(40), examples(16), replace(QUICK, gate_factor=factor))
        moved = {
            name: not torch.allclose(old, new, atol=1e-5)
            for (name, new), old in zip(model.named_parameters(), before, strict=True)
        }
        assert {moved[name] for name in moved if name.startswith("gates.")} == {moves}
        assert moved["towers.sum.bias"]


def test_the_task_that_weighs_more_is_learnt_better() -> None:
    losses = []
    for weight in (0.01, 10.0):
        tasks = (TASKS[0], replace(TASKS[1], weight=weight))
        model = mixture(gate("softmax"))
        fit(model, tasks, examples(256), examples(64, 1), replace(QUICK, rate=0.003))
        losses.append(evaluate(model, tasks, examples(64, 2))["sum"].loss)
    assert losses[1] < losses[0]


def test_work_is_counted_where_it_was_done() -> None:
    softmax = fit(mixture(gate("softmax")), TASKS, examples(40), examples(8), QUICK)
    assert [(epoch.pairs, epoch.share) for epoch in softmax.history] == [(160, 1.0)] * 3
    sparse = fit(mixture(gate("switch")), TASKS, examples(40), examples(8), QUICK)
    assert all(epoch.pairs <= 80 for epoch in sparse.history)


def test_patience_ends_a_training_that_gets_no_better() -> None:
    settings = FitSettings(epochs=50, batch=16, rate=1e-9, patience=2)
    fitted = fit(mixture(gate("softmax")), TASKS, examples(32), examples(8), settings)
    assert len(fitted.history) < 50
    assert len(fitted.history) == fitted.best + 3


class Killed(Exception):
    """The error that ends a training, as a power cut would."""


@pytest.mark.parametrize("name", ["dselect_k", "noisy_top_k"])
def test_a_killed_run_resumes_to_the_same_result(name: str, tmp_path: Path) -> None:
    def run(stop: int | None, file: Path, seed: int = 0) -> tuple[Any, Any]:
        model = mixture(gate(name), dropout=0.3, seed=seed)

        def on_step(done: int, of: int) -> None:
            assert of == 9
            if done == stop:
                raise Killed

        return model, fit(
            model, TASKS, examples(40), examples(16, 1), QUICK, checkpoint=file, on_step=on_step
        )

    whole, history = run(None, tmp_path / "whole")
    with pytest.raises(Killed):
        run(5, tmp_path / "killed")
    resumed, after = run(None, tmp_path / "killed", seed=1)  # weights come from the file
    assert after == history
    assert same_state(whole, resumed)
    again, finished = run(1, tmp_path / "killed", seed=1)  # nothing is left to do: no step, no kill
    assert finished == history
    assert same_state(whole, again)


def test_a_checkpoint_of_another_run_or_of_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"

    def run(model: Mixture, rows: Examples, settings: FitSettings = QUICK) -> None:
        fit(model, TASKS, rows, examples(16, 1), settings, checkpoint=file)

    run(mixture(), examples(40))
    for model, rows, settings in (
        (mixture(), examples(40), replace(QUICK, seed=5)),
        (mixture(), examples(40, 3), QUICK),
        (mixture(gate("top_k")), examples(40), QUICK),
        (mixture(gate("dselect_k", gamma=0.5)), examples(40), QUICK),
    ):
        with pytest.raises(MoesimError, match="belongs to another run"):
            run(model, rows, settings)
    file.write_bytes(b"something else")
    with pytest.raises(MoesimError, match="is not a checkpoint of a training"):
        run(mixture(), examples(40))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    file = tmp_path / "checkpoint"
    model = mixture()

    def spoil(done: int, of: int) -> None:
        if done == 4:
            with torch.no_grad():
                next(model.experts.parameters()).fill_(math.nan)

    rows, held_out = examples(40), examples(16, 1)
    with pytest.raises(
        MoesimError, match=r"the loss is nan at step 5; .*checkpoint holds the last good .* epoch 1"
    ):
        fit(model, TASKS, rows, held_out, QUICK, checkpoint=file, on_step=spoil)
    good = fit(mixture(), TASKS, rows, held_out, QUICK, checkpoint=file)
    assert good == fit(mixture(), TASKS, rows, held_out, QUICK)
    with pytest.raises(MoesimError, match=r"at step \d; no checkpoint was kept"):
        fit(mixture(), TASKS, rows, held_out, replace(QUICK, rate=math.inf))


def test_a_task_without_data_is_an_error_before_any_work() -> None:
    def never(done: int, of: int) -> None:
        raise AssertionError("work was done")

    rows, none = examples(8), examples(8, known=0)
    lacking = Examples(rows.inputs, {"side": rows.targets["side"]})
    short = Examples(rows.inputs, {**rows.targets, "sum": rows.targets["sum"][:3]})
    for train, validation, match in (
        (none, rows, "task 'sum' has no training data: none of 8 rows"),
        (rows, none, "task 'sum' has no validation data: none of 8 rows"),
        (lacking, rows, "task 'sum' has no training data; there are targets of side"),
        (short, rows, "task 'sum' has 3 training targets for 8 rows"),
        (rows[slice(0, 0)], rows, "task 'side' has no training data"),
    ):
        with pytest.raises(UsageError, match=match):
            fit(mixture(), TASKS, train, validation, QUICK, on_step=never)
    with pytest.raises(UsageError, match="towers of"):
        fit(mixture(), TASKS[:1], rows, rows, QUICK)


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", 0), ("batch", 0), ("patience", 0), ("rate", 0.0)]
)
def test_impossible_settings_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        replace(QUICK, **{option: value})


def test_softmax_cut_to_k_is_another_mixture_than_was_trained() -> None:
    model = mixture(Softmax(4, 2, tasks=2)).eval()
    rows = examples(8)
    assert evaluate(model, TASKS, rows) != evaluate(model, TASKS, rows, hardened=False)
