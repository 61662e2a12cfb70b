"""Distillation targets and losses against loops over tokens, channels and experts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dense_decoders import LAYERS, WIDTH, ids, inner_activations, tiny_llama
from torch import Tensor
from torch.nn.functional import kl_div

from moesim.errors import UsageError
from moesim.training.readme.distill import _soft_overlap, agreement, loss, targets
from moesim.training.readme.ffn import Variant
from moesim.training.readme.masks import Masks, top_masks
from moesim.training.readme.scores import channel_scores

DOMAINS = ("law", "code", "verse")
WINDOWS = ids(2, 5, seed=9)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def masks(model: Any) -> Masks:
    texts = {domain: ids(3, 8, seed=n) for n, domain in enumerate(DOMAINS)}
    return top_masks(channel_scores(model, texts), DOMAINS, 0.5)


def naive_overlap(inner: list[float], masks: Masks, layer: int, expert: int) -> float:
    best = sorted(range(WIDTH), key=lambda c: -abs(inner[c]))[: WIDTH // 2]
    return sum(bool(masks.chosen[expert, layer, c]) for c in best)


def naive_soft_overlap(inner: list[float], masks: Masks, layer: int, expert: int) -> float:
    n = int(masks.own[0, layer].sum())
    total = 0.0
    for rank in (n - 1, 4 * n // 5, 3 * n // 5, 2 * n // 5, n // 5):
        threshold = sorted(inner, reverse=True)[rank]  # the code's index, which counts from 0
        for channel in range(WIDTH):
            if inner[channel] > threshold and masks.own[expert, layer, channel]:
                total += 1 / (3 * n)
    return total


def naive_targets(model: Any, masks: Masks, variant: Variant) -> Tensor:
    """Return targets `[W, T, L, N]` from loops, before the centring of `code`."""
    one = naive_overlap if variant == "paper" else naive_soft_overlap
    found = torch.zeros(*WINDOWS.shape, LAYERS, len(DOMAINS))
    for w, ids_T in enumerate(WINDOWS):
        for layer in range(LAYERS):
            for t, inner in enumerate(inner_activations(model, ids_T, layer).tolist()):
                for expert in range(len(DOMAINS)):
                    found[w, t, layer, expert] = one(inner, masks, layer, expert)
    return found


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_targets_are_those_of_the_loops(model: Any, masks: Masks, variant: Variant) -> None:
    naive = naive_targets(model, masks, variant)
    assert naive.std() > 0
    summed = naive.sum(dim=2)
    if variant == "code":
        naive, summed = 10 * (naive - naive.mean()), 10 * (summed - summed.mean())
    found = targets(model, WINDOWS, masks, variant)
    torch.testing.assert_close(found, summed, rtol=1e-4, atol=1e-4)
    each = targets(model, WINDOWS, masks, variant, layerwise=True)
    torch.testing.assert_close(each, naive, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


def test_the_code_counts_as_many_channels_as_its_ranks_say() -> None:
    """With five own channels the released indices are 4, 4, 3, 2, 1: of channels in falling order
    the first exceeds five thresholds, then 4, 3, 2 and none."""
    chosen = torch.zeros(6, 1, 10, dtype=torch.bool)
    chosen[0, 0, :5] = True
    for channel in range(5):
        chosen[1 + channel, 0, channel] = True
    masks = Masks(tuple("abcdef"), chosen, 0.5, "code")
    falling_TD = torch.arange(10, 0, -1.0)[None]
    scores_TN = _soft_overlap(falling_TD, masks.own[:, 0].T.float(), masks, 0)
    torch.testing.assert_close(15 * scores_TN[0], torch.tensor([14.0, 5, 4, 3, 2, 0]))


def test_the_code_s_signs_matter(model: Any, masks: Masks) -> None:
    """The released importance is of signed activations: turning a sign changes it."""
    before = targets(model, WINDOWS, masks, "code")
    paper = targets(model, WINDOWS, masks, "paper")
    flipped = tiny_llama()
    with torch.no_grad():
        for layer in flipped.model.layers:  # the same function, with negated inner activations
            layer.mlp.up_proj.weight.neg_()
            layer.mlp.down_proj.weight.neg_()
    torch.testing.assert_close(targets(flipped, WINDOWS, masks, "paper"), paper)
    assert not torch.allclose(targets(flipped, WINDOWS, masks, "code"), before)


def test_centring_changes_neither_the_best_expert_nor_the_softmax() -> None:
    scores = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    for mean in (scores.mean(), scores.mean(dim=-1, keepdim=True), 0.0):
        torch.testing.assert_close((scores - mean).softmax(-1), scores.softmax(-1))


def test_the_paper_s_loss_is_the_divergence_from_router_to_target() -> None:
    """By hand: router (3/4, 1/4), target (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(loss(logits, torch.zeros(1, 2))) == pytest.approx(expected, rel=1e-6)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(loss(torch.zeros(1, 2), logits)) != pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(reverse, rel=1e-3)


def test_the_paper_s_loss_is_zero_at_equality_and_positive_elsewhere() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 6, 7, 3, generator=draw)
    assert float(loss(target + 4.2, target)) == pytest.approx(0, abs=1e-6)
    assert float(loss(logits, target)) > 0.1
    one_by_one = [
        float(kl_div(b.log_softmax(0), a.softmax(0), reduction="sum"))
        for a, b in zip(logits.flatten(0, 1), target.flatten(0, 1), strict=True)
    ]
    assert float(loss(logits, target)) == pytest.approx(sum(one_by_one) / len(one_by_one), rel=1e-5)


def test_the_code_s_loss_is_its_formula_token_by_token() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, target = torch.randn(2, 2, 5, 3, generator=draw)
    total = 0.0
    for row, want in zip(logits.flatten(0, 1).tolist(), target.flatten(0, 1).tolist(), strict=True):
        log_sum = math.log(sum(map(math.exp, row)))
        logs = [x - log_sum for x in row]
        smooth = [0.5 / 3 + 0.5 * (j == want.index(max(want))) for j in range(3)]
        soft = [math.exp(x) / sum(map(math.exp, want)) for x in want]
        total -= 0.75 * sum(p * log for p, log in zip(smooth, logs, strict=True))
        total -= 0.25 * sum(p * log for p, log in zip(soft, logs, strict=True))
    assert float(loss(logits, target, "code")) == pytest.approx(total / 10, rel=1e-5)


def test_one_router_answers_to_the_target_of_each_layer() -> None:
    """Two layers that disagree: the released code adds losses, not scores."""
    logits = torch.tensor([[0.3, -0.2, 0.1]])
    target = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    each = [float(loss(logits, target[:, layer], "code")) for layer in range(2)]
    assert float(loss(logits, target, "code")) == pytest.approx(sum(each) / 2, rel=1e-6)
    assert float(loss(logits, target.sum(1), "code")) != pytest.approx(sum(each) / 2, rel=1e-2)
    assert agreement(logits, target) == 0.5


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_router_that_follows_the_gradient_agrees(variant: Variant) -> None:
    """Also where counts saturate the softmax: the gradient stays finite."""
    target = torch.tensor([[900.0, 100, 0], [0, 900, 100], [100, 0, 900], [400, 800, 0]])
    logits = torch.zeros_like(target, requires_grad=True)
    before = loss(logits, target, variant)
    (gradient,) = torch.autograd.grad(before, logits)
    assert gradient.isfinite().all()
    with torch.no_grad():
        moved = logits - 0.5 * gradient / gradient.abs().max()
    assert float(loss(moved, target, variant)) < float(before.detach())
    assert agreement(moved, target) == 1.0
    assert agreement(moved.roll(1, dims=-1), target) == 0.0


def test_targets_refuse_masks_that_do_not_fit(model: Any, masks: Masks) -> None:
    with pytest.raises(UsageError, match="masks of 2 layers of 24 channels do not fit Llama"):
        targets(model, WINDOWS, Masks(DOMAINS, masks.chosen[:, :2], 0.5, "paper"))
    alike = Masks(DOMAINS, masks.chosen[:1].expand(3, -1, -1), 0.5, "paper")
    with pytest.raises(UsageError, match="expert 0 has no channel of its own in layer 0"):
        targets(model, WINDOWS, alike, "code")
