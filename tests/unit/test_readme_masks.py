"""Scores, the masks they give, and their controls."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dense_decoders import LAYERS, WIDTH, ids, inner_activations, tiny_llama
from torch import Tensor

from moesim.errors import UsageError
from moesim.training.readme.masks import Masks, check_masks, random_masks, top_masks
from moesim.training.readme.scores import channel_scores

DOMAINS = ("law", "code", "verse")


@pytest.fixture
def scores() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(3, LAYERS, 20, generator=draw, dtype=torch.float64)


def test_scores_are_mean_absolute_inner_activations() -> None:
    model = tiny_llama()
    windows = {"a": ids(3, 8, seed=1), "b": ids(2, 5, seed=2)}
    ticks: list[tuple[int, int]] = []
    found = channel_scores(model, windows, on_window=lambda done, of: ticks.append((done, of)))
    assert found.shape == (2, LAYERS, WIDTH)
    assert found.dtype == torch.float64
    assert ticks == [(n, 5) for n in range(1, 6)]
    for n, ids_WT in enumerate(windows.values()):
        for layer in range(LAYERS):
            inner = torch.cat([inner_activations(model, ids_T, layer) for ids_T in ids_WT])
            expected = inner.abs().double().mean(dim=0)
            torch.testing.assert_close(found[n, layer], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(found, channel_scores(model, windows))


def test_the_paper_s_scores_are_of_the_gate_alone() -> None:
    model = tiny_llama()
    window = ids(1, 6)
    gates: list[Tensor] = []
    hook = model.model.layers[1].mlp.gate_proj.register_forward_hook(
        lambda *args: gates.append(args[2])
    )
    found = channel_scores(model, {"a": window}, "paper")
    hook.remove()
    torch.testing.assert_close(found[0, 1], gates[0][0].double().abs().mean(dim=0))


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.7, 1.0])
def test_the_paper_takes_exactly_the_share_and_the_highest(scores: Tensor, share: float) -> None:
    masks = top_masks(scores, DOMAINS, share)
    for n in range(3):
        for layer in range(LAYERS):
            row = scores[n, layer].tolist()
            best = sorted(range(20), key=lambda c: (-row[c], c))[: int(share * 20)]
            assert masks.chosen[n, layer].nonzero().flatten().tolist() == sorted(best)


def test_of_equal_scores_the_paper_takes_the_first_and_the_code_none() -> None:
    scores = torch.tensor([5.0, 1, 3, 3, 3, 0]).expand(2, 1, 6).double()
    paper = top_masks(scores, ("a", "b"), 0.5)
    assert paper.chosen[0, 0].tolist() == [True, False, True, True, False, False]
    code = top_masks(scores, ("a", "b"), 0.5, "code")
    assert code.chosen[0, 0].tolist() == [True, False, False, False, False, False]
    level = top_masks(torch.ones(2, 1, 3000).double(), ("a", "b"), 0.5)
    assert level.chosen[:, :, :1500].all()


def test_the_code_takes_one_channel_fewer(scores: Tensor) -> None:
    assert set(top_masks(scores, DOMAINS, 0.5, "code").sizes.flatten().tolist()) == {9}
    with pytest.raises(UsageError, match=r"share \(0.05\) of 20 channels leaves an expert 0"):
        top_masks(scores, DOMAINS, 0.05, "code")


def test_a_share_is_not_lost_to_floating_point() -> None:
    scores = torch.rand(2, 1, 100, generator=torch.Generator().manual_seed(0)).double()
    assert int(0.29 * 100) == 28
    assert top_masks(scores, ("a", "b"), 0.29).sizes.tolist() == [[29], [29]]


def test_permanent_and_own_channels_partition_a_mask(scores: Tensor) -> None:
    masks = top_masks(scores, DOMAINS, 0.7)
    permanent, own = masks.permanent, masks.own
    assert torch.equal(permanent, masks.chosen[0] & masks.chosen[1] & masks.chosen[2])
    assert torch.equal(own | permanent, masks.chosen)
    assert not (own & permanent).any()
    assert permanent.any()
    for i in range(3):
        for j in range(3):
            common = int((masks.chosen[i] & masks.chosen[j]).sum())
            assert masks.overlap[i, j] == pytest.approx(common / int(masks.chosen[i].sum()))
    told = masks.describe()
    assert told["channels"] == [14, 14, 14]
    assert told["permanent_channels"] == int(permanent.sum()) / LAYERS
    assert told["permanent_share_of_expert"] == pytest.approx(int(permanent.sum()) / LAYERS / 14)


def test_a_larger_share_holds_the_smaller_one(scores: Tensor) -> None:
    grown = [top_masks(scores, DOMAINS, share).chosen for share in (0.1, 0.4, 0.5, 0.9)]
    assert all(bool((small <= large).all()) for small, large in pairwise(grown))


def test_an_expert_with_nothing_of_its_own_is_flagged() -> None:
    alike = torch.rand(1, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    masks = top_masks(alike.expand(2, 2, 8), ("a", "b"), 0.5)
    assert masks.empty_own == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_an_empty_expert_is_refused() -> None:
    flat = torch.ones(2, 1, 8, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"expert 0 \(a\) has no channel in layer 0"):
        top_masks(flat, ("a", "b"), 0.5, "code")


@pytest.mark.parametrize(
    ("domains", "width", "share", "message"),
    [
        (DOMAINS, 20, 0.0, r"share \(0.0\) must be above 0 and at most 1"),
        (DOMAINS, 20, 1.5, r"share \(1.5\) must be above 0 and at most 1"),
        (DOMAINS, 20, float("nan"), r"share \(nan\) must be above 0"),
        (DOMAINS[:1], 20, 0.5, "1 domains: at least 2 are needed"),
        (DOMAINS, 2, 0.5, "3 experts are more than an FFN of 2 channels"),
        (DOMAINS, 20, 0.01, r"share \(0.01\) of 20 channels leaves an expert 0 channels"),
    ],
)
def test_impossible_masks_are_refused(
    domains: tuple[str, ...], width: int, share: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_masks(domains, width, share, "paper")


def test_random_masks_keep_every_size_and_depend_on_the_seed(scores: Tensor) -> None:
    masks = top_masks(scores.round(decimals=1), DOMAINS, 0.5, "code")  # equals: sizes differ
    control = random_masks(masks, seed=1)
    assert len(set(masks.sizes.flatten().tolist())) > 1
    assert torch.equal(control.sizes, masks.sizes)
    assert not torch.equal(control.chosen, masks.chosen)
    assert torch.equal(control.chosen, random_masks(masks, seed=1).chosen)
    assert not torch.equal(control.chosen, random_masks(masks, seed=2).chosen)
    assert control.describe()["origin"] == "random"


def test_random_masks_are_uniform(scores: Tensor) -> None:
    masks = top_masks(scores, DOMAINS, 0.5)
    drawn = torch.stack([random_masks(masks, seed).chosen for seed in range(200)]).double()
    # 200 x 9 draws of one half for each channel: four standard errors are 0.047.
    assert bool(((drawn.mean(dim=(0, 1, 2)) - 0.5).abs() < 0.047).all())


def test_masks_are_read_back_as_written(scores: Tensor, tmp_path: Path) -> None:
    masks = top_masks(scores, DOMAINS, 0.3, "code")
    masks.save(tmp_path / "deep" / "masks.safetensors")
    again = Masks.load(tmp_path / "deep" / "masks.safetensors")
    assert torch.equal(again.chosen, masks.chosen)
    assert again.describe() == masks.describe()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["masks.safetensors"]
    (tmp_path / "other").write_text("hello")
    for name in ("other", "absent"):
        with pytest.raises(UsageError, match=f"{name}: no masks in this file"):
            Masks.load(tmp_path / name)
