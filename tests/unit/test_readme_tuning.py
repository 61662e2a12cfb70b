"""Tuning in turn: what each stage changes, by which loss, and that a killed run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from refactored_models import dense_model, readme_model, some_masks, some_tokens
from safetensors.torch import save_file

from moesim.errors import MoesimError, UsageError
from moesim.training import checkpoint as checkpoints
from moesim.training.readme import distill, tuning
from moesim.training.readme.distill import targets
from moesim.training.readme.masks import Masks
from moesim.training.readme.schedule import PAPER, Schedule
from moesim.training.readme.tuning import Tuned, TuningText, evaluate
from moesim.training.tokens import WindowStream

QUICK = Schedule(
    rounds=2,
    router_steps=3,
    expert_steps=2,
    router_batch=4,
    expert_batch=2,
    router_rate=1e-2,
    expert_rate=1e-3,
)


def masks() -> Masks:
    return Masks(("a", "b", "c", "d"), some_masks(), 0.5, "random")


TRAIN = {"one": some_tokens(5, 12, seed=1), "two": some_tokens(4, 12, seed=2)}
HELD_OUT = {"one": some_tokens(2, 12, seed=3), "two": some_tokens(2, 12, seed=4)}


def text(held_out: Mapping[str, torch.Tensor] = HELD_OUT, *, seed: int = 0) -> TuningText:
    domains = torch.tensor([0] * len(TRAIN["one"]) + [1] * len(TRAIN["two"]))
    return TuningText(WindowStream(torch.cat(list(TRAIN.values())), domains, seed), held_out)


def tune(
    model: Any,
    schedule: Schedule,
    what: TuningText | None = None,
    *,
    variant: Any = "paper",
    **options: Any,
) -> Tuned:
    """Tune by the teacher of a variant, on `text()` unless told otherwise."""
    teacher = distill.teacher(model, dense_model(), masks(), variant)
    return tuning.tune(model, what or text(), schedule, teacher, variant=variant, **options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_papers_schedule() -> None:
    """Table 2, and the arithmetic that follows: 26.2 M and 104.9 M tokens a round, 1.049 B."""
    stages = list(PAPER.stages())
    assert [stage.kind for stage in stages] == ["router", "experts"] * 8
    tokens = [stage.steps * stage.batch * 4096 for stage in stages]
    assert (tokens[0], tokens[1]) == (26_214_400, 104_857_600)
    assert sum(tokens) == pytest.approx(1.049e9, rel=1e-3)
    assert stages[0].rate(0) == 5e-4
    assert stages[1].rate(0) == 5e-5
    assert stages[4].peak == pytest.approx(5e-4 * 0.8**2)
    assert stages[0].rate(50) == pytest.approx(2.5e-4)
    assert [stage.kind for stage in PAPER.stages(routers=False)] == ["experts"] * 8
    with pytest.raises(UsageError, match=r"rounds \(0\) must be at least 1"):
        Schedule(0, 1, 1, 1, 1)


@pytest.mark.parametrize("routing", ["decoupled", "layerwise"])
def test_a_stage_changes_its_own_parameters_alone(routing: str) -> None:
    model = readme_model(routing=routing)
    seen = [weights(model)]
    tune(model, QUICK, on_stage=lambda _: seen.append(weights(model)))
    for before, after, kind in zip(seen[1:], seen[2:], ["router", "experts"] * 2, strict=False):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        routers = {name for name in before if ".router." in name or name.startswith("router.")}
        assert changed
        assert changed <= (routers if kind == "router" else before.keys() - routers)
        if kind == "experts":
            assert any("embed_tokens" in name for name in changed)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("routing", ["decoupled", "layerwise"])
def test_both_stages_learn(routing: str, variant: Any) -> None:
    longer = Schedule(1, 40, 20, 8, 4, router_rate=3e-2, expert_rate=1e-2)
    model = readme_model(routing=routing)
    # Measured on the text that is learnt: random text has nothing in common with other text.
    start, router, experts = tune(model, longer, text(TRAIN), variant=variant).history
    assert (start.stage, router.stage, experts.stage) == (
        "start",
        "round 0 router",
        "round 0 experts",
    )
    assert start.agreement is not None
    assert router.agreement is not None
    assert router.agreement > start.agreement + 0.1
    assert experts.validation < start.validation
    assert (start.tokens, router.tokens, experts.tokens) == (0, 0, 20 * 4 * 12)
    assert (start.passes, router.passes, experts.passes) == (0, 40 * 8 / 9, (40 * 8 + 20 * 4) / 9)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("routing", ["decoupled", "layerwise"])
def test_targets_follow_the_tuned_backbone_in_code_and_the_frozen_model_in_paper(
    routing: str, variant: Any
) -> None:
    """By hand: a dense model is given the tuned weights, and asked for the targets."""
    model, windows = readme_model(routing=routing), some_tokens(3, 12, seed=5)
    teacher = distill.teacher(model, dense_model(), masks(), variant)
    by_stage: list[torch.Tensor] = []
    by_hand: list[torch.Tensor] = []
    layerwise = variant == "code" or routing == "layerwise"

    def ask(_: Any) -> None:
        dense = dense_model()
        if variant == "code":
            tuned = {
                name.removeprefix("base.").replace(".experts.ffn.", "."): tensor
                for name, tensor in model.state_dict().items()
                if name.startswith("base.") and ".router." not in name and "masks" not in name
            }
            dense.load_state_dict(tuned)
        by_hand.append(targets(dense, windows, masks(), variant, layerwise=layerwise))
        by_stage.append(teacher(windows))

    tune(model, QUICK, variant=variant, on_stage=ask)
    for hand, stage in zip(by_hand, by_stage, strict=True):
        torch.testing.assert_close(stage, hand, rtol=0, atol=0)
    start, router, experts = by_stage[:3]
    assert torch.equal(router, start)  # a router stage leaves the backbone alone
    assert torch.equal(experts, router) == (variant == "paper")


def test_routers_learn_the_targets_of_their_own_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = readme_model(), []
    teacher = distill.teacher(model, dense_model(), masks(), "code")

    def noting(windows: torch.Tensor) -> torch.Tensor:
        if model.training:
            asked.append(windows)
        return teacher(windows)

    routed = []
    router_logits = tuning._router_logits

    def route(model: Any, windows: torch.Tensor) -> torch.Tensor:
        if model.training:
            routed.append(windows)
        return router_logits(model, windows)

    monkeypatch.setattr(tuning, "_router_logits", route)
    tuning.tune(model, text(), QUICK, noting, variant="code")
    assert len(asked) == len(routed) == 2 * 3
    assert all(map(torch.equal, asked, routed))


def test_no_window_is_used_twice_before_all_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all stages in turn: nine windows, of which two rounds use 32."""
    taken: list[int] = []
    places: list[int] = []
    every = torch.cat(list(TRAIN.values())).tolist()

    def noting(stream: WindowStream, start: int, count: int) -> Any:
        windows, domains = take(stream, start, count)
        numbers = [every.index(window) for window in windows.tolist()]
        assert [int(number >= 5) for number in numbers] == domains.tolist()
        taken.extend(numbers)
        places.extend(range(start, start + count))
        return windows, domains

    take = WindowStream.take
    monkeypatch.setattr(WindowStream, "take", noting)
    history = tune(readme_model(), QUICK).history
    assert places == list(range(32))
    passes = [taken[start : start + 9] for start in range(0, 32, 9)]
    assert [sorted(numbers) for numbers in passes[:3]] == [list(range(9))] * 3
    assert len(set(passes[3])) == 5
    assert passes[0] != passes[1]
    assert history[-1].passes == 32 / 9


def test_experts_of_all_kinds_see_the_same_windows_in_the_same_order() -> None:
    alone = list(QUICK.stages(routers=False))
    assert alone == [stage for stage in QUICK.stages() if stage.kind == "experts"]


def test_agreement_is_with_the_targets_of_held_out_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.Tensor] = []
    model = readme_model()
    teacher = distill.teacher(model, dense_model(), masks(), "paper")

    def noting(windows: torch.Tensor) -> torch.Tensor:
        if not model.training:
            asked.append(windows)
        return teacher(windows)

    history = tuning.tune(model, text(), QUICK, noting).history
    held_out = torch.cat(list(HELD_OUT.values()))
    assert torch.equal(torch.cat(asked), held_out.repeat(len(history), 1))
    with torch.no_grad():
        expected = distill.agreement(model.route(held_out), teacher(held_out))
    assert history[-1].agreement == pytest.approx(expected)


def test_own_experts_are_those_of_the_text() -> None:
    """Each domain's loss is that of the model whose every token takes that domain's expert."""
    model = readme_model()
    (*_, last) = tune(model, QUICK).history
    assert last.own_experts is not None
    for number, (domain, windows) in enumerate(HELD_OUT.items()):
        paths = torch.full_like(windows, number)
        with torch.no_grad():
            loss = model(input_ids=windows, labels=windows, path_ids=paths).loss
        assert last.own_experts[domain] == pytest.approx(float(loss), rel=1e-5)
        assert last.own_experts[domain] != pytest.approx(last.by_domain[domain], rel=1e-4)


def test_tuning_by_domain_asks_no_router_and_measures_own_experts() -> None:
    model, other = readme_model(), readme_model()
    with torch.no_grad():
        assert other.router is not None
        other.router.head.weight.neg_()
    for each in (model, other):
        history = tuning.tune(each, text(), QUICK, None, by_domain=True).history
        assert history[-1].by_domain == evaluate(each, HELD_OUT, by_domain=True)
        assert [m.stage for m in history] == ["start", "round 0 experts", "round 1 experts"]
        assert history[-1].own_experts is None
    left, right = weights(model), weights(other)
    assert all(torch.equal(left[n], right[n]) for n in left if not n.startswith("router."))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_killed_run_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Any
) -> None:
    monkeypatch.setattr(tuning, "_SAVE_EVERY_S", 0.0)
    whole = readme_model()
    expected = tune(whole, QUICK, variant=variant).history
    for fatal in range(1, 10):
        checkpoint, steps = tmp_path / f"{fatal}.safetensors", iter(range(1, 100))

        def die(*_: Any, steps: Any = steps, fatal: int = fatal) -> None:
            if next(steps) == fatal:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(readme_model(), QUICK, variant=variant, checkpoint=checkpoint, on_step=die)
        model = readme_model()
        history = tune(model, QUICK, variant=variant, checkpoint=checkpoint).history
        assert history == expected
        for name, parameter in weights(whole).items():
            assert torch.equal(parameter, weights(model)[name]), (fatal, name)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuning.safetensors"
    tune(readme_model(), QUICK, checkpoint=checkpoint)
    assert tune(readme_model(), QUICK, checkpoint=checkpoint).history[-1].tokens == 96
    with pytest.raises(MoesimError, match="belongs to another run"):
        tune(readme_model(), QUICK, text(seed=1), checkpoint=checkpoint)
    story, tensors = checkpoints.load(checkpoint)
    for key in ("windows", "by_domain"):  # as checkpoints were before windows were streamed
        del story["run"][key]
    checkpoints.save(checkpoint, story, tensors)
    with pytest.raises(MoesimError, match="belongs to another run"):
        tune(readme_model(), QUICK, checkpoint=checkpoint)
    save_file({"scores": torch.zeros(1)}, tmp_path / "scores.safetensors")
    for other in (b"not tensors", (tmp_path / "scores.safetensors").read_bytes()):
        checkpoint.write_bytes(other)
        with pytest.raises(MoesimError, match="is not a checkpoint of a training"):
            tune(readme_model(), QUICK, checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuning.safetensors"
    model = readme_model()
    with torch.no_grad():
        assert model.router is not None
        model.router.head.weight.fill_(float("nan"))
    with pytest.raises(MoesimError, match=r"nan at step 1 of round 0 router.*last good"):
        tune(model, QUICK, checkpoint=checkpoint)
    assert checkpoint.exists()


def test_one_expert_needs_no_router() -> None:
    from moesim.training.readme.model import refactor

    model = refactor(dense_model(), some_masks(1), router={"hidden": 16, "heads": 2, "ffn": 8})
    history = tuning.tune(model, text(), QUICK, None).history
    assert [m.stage for m in history] == ["start", "round 0 experts", "round 1 experts"]
    assert history[0].agreement is None
