"""Tuning in turn: what each stage changes, by which loss, and that a killed run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refactored_models import dense_model, readme_model, some_masks, some_tokens
from safetensors.torch import save_file

from moesim.errors import MoesimError, UsageError
from moesim.models.readme import tuning
from moesim.models.readme.distill import targets
from moesim.models.readme.masks import Masks
from moesim.models.readme.schedule import PAPER, Schedule
from moesim.models.readme.tuning import TuningText, evaluate, tune

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


def text(*, layerwise: bool = False) -> TuningText:
    pool = some_tokens(10, 12)
    return TuningText(
        pool,
        targets(dense_model(), pool, masks(), "paper", layerwise=layerwise),
        {"one": some_tokens(5, 12, seed=1), "two": some_tokens(4, 12, seed=2)},
        {"one": some_tokens(2, 12, seed=3), "two": some_tokens(2, 12, seed=4)},
    )


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
    tune(
        model,
        text(layerwise=routing == "layerwise"),
        QUICK,
        on_stage=lambda _: seen.append(weights(model)),
    )
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
    model, what = readme_model(routing=routing), text(layerwise=routing == "layerwise")
    start, router, experts = tune(model, what, longer, variant=variant).history
    assert (start.stage, router.stage, experts.stage) == (
        "start",
        "round 0 router",
        "round 0 experts",
    )
    assert start.agreement is not None
    assert router.agreement is not None
    assert router.agreement > start.agreement + 0.1
    learnt = evaluate(model, what.train)
    assert sum(learnt.values()) < sum(evaluate(readme_model(routing=routing), what.train).values())
    assert (start.tokens, router.tokens, experts.tokens) == (0, 0, 20 * 4 * 12)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_SAVE_EVERY_S", 0.0)
    whole = readme_model()
    expected = tune(whole, text(), QUICK).history
    for fatal in range(1, 10):
        checkpoint, steps = tmp_path / f"{fatal}.safetensors", iter(range(1, 100))

        def die(*_: Any, steps: Any = steps, fatal: int = fatal) -> None:
            if next(steps) == fatal:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(readme_model(), text(), QUICK, checkpoint=checkpoint, on_step=die)
        model = readme_model()
        history = tune(model, text(), QUICK, checkpoint=checkpoint).history
        assert history == expected
        for name, parameter in weights(whole).items():
            assert torch.equal(parameter, weights(model)[name]), (fatal, name)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuning.safetensors"
    tune(readme_model(), text(), QUICK, checkpoint=checkpoint)
    assert tune(readme_model(), text(), QUICK, checkpoint=checkpoint).history[-1].tokens == 96
    with pytest.raises(MoesimError, match="belongs to another run"):
        tune(readme_model(), text(), QUICK, seed=1, checkpoint=checkpoint)
    save_file({"scores": torch.zeros(1)}, tmp_path / "scores.safetensors")
    for other in (b"not tensors", (tmp_path / "scores.safetensors").read_bytes()):
        checkpoint.write_bytes(other)
        with pytest.raises(MoesimError, match="is not a checkpoint of a training"):
            tune(readme_model(), text(), QUICK, checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tuning.safetensors"
    model = readme_model()
    with torch.no_grad():
        assert model.router is not None
        model.router.head.weight.fill_(float("nan"))
    with pytest.raises(MoesimError, match=r"nan at step 1 of round 0 router.*last good"):
        tune(model, text(), QUICK, checkpoint=checkpoint)
    assert checkpoint.exists()


def test_one_expert_needs_no_router() -> None:
    from moesim.models.readme.model import refactor

    model = refactor(dense_model(), some_masks(1), router={"hidden": 16, "heads": 2, "ffn": 8})
    what = text()
    history = tune(model, what, QUICK).history
    assert [m.stage for m in history] == ["start", "round 0 experts", "round 1 experts"]
    assert history[0].agreement is None
