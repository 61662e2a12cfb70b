"""Top-k: a softmax over the k largest scores, the others exactly zero.

Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
ICLR 2017 (arXiv 1701.06538), section 2.1. The gate is not continuous: if the k-th and the next
score swap their order, weight jumps from one expert to the other. With k = 1 the one weight is
always 1, and no gradient of the data loss reaches the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moesim.training.gates.balance import expected_load, shares_product, squared_variation
from moesim.training.gates.base import Gate, Gating, Scores, keep_largest, no_loss


class TopK(Gate):
    """Plain Top-k. `balance` weighs the product of shares (Switch's loss, for k choices)."""

    def __init__(
        self,
        num_experts: int,
        k: int,
        *,
        features: int | None = None,
        tasks: int = 1,
        balance: float = 0.0,
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        self.scores = Scores(num_experts, features, tasks)
        self.balance = balance

    def _mix(self, features_BF: Tensor | None) -> Gating:
        scores_BN = self.scores(features_BF)
        weights_BN = softmax_of_largest(scores_BN, self.k)
        if not (self.training and self.balance):
            return Gating(weights_BN, no_loss(weights_BN))
        loss = shares_product(scores_BN.softmax(dim=-1), keep_largest(scores_BN, self.k))
        return Gating(weights_BN, self.balance * loss)

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        scores_BN = self.scores(features_BF)
        return scores_BN.softmax(dim=-1), softmax_of_largest(scores_BN, self.k)


class NoisyTopK(Gate):
    """Top-k with noise on the scores in training, and none in evaluation.

    The noise is normal; its deviation is learnt, as the softplus of a second set of scores.
    `importance` and `load` weigh the squared variation over experts of summed weights and of
    expected counts.
    """

    def __init__(
        self,
        num_experts: int,
        k: int,
        *,
        features: int | None = None,
        tasks: int = 1,
        importance: float = 0.1,
        load: float = 0.1,
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        self.scores = Scores(num_experts, features, tasks)
        self.noise = Scores(num_experts, features, tasks)
        self.noise.silence()  # all deviations start equal, so no expert is favoured
        self.importance = importance
        self.load = load

    def _mix(self, features_BF: Tensor | None) -> Gating:
        clean_BN = self.scores(features_BF)
        if not self.training:
            weights_BN = softmax_of_largest(clean_BN, self.k)
            return Gating(weights_BN, no_loss(weights_BN))
        scale_BN = functional.softplus(self.noise(features_BF))
        noisy_BN = clean_BN + scale_BN * torch.randn_like(clean_BN)
        weights_BN = softmax_of_largest(noisy_BN, self.k)
        loads_N = expected_load(clean_BN, noisy_BN, scale_BN, self.k)
        loss = self.importance * squared_variation(weights_BN.sum(dim=0))
        return Gating(weights_BN, loss + self.load * squared_variation(loads_N))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        scores_BN = self.scores(features_BF)
        return scores_BN.softmax(dim=-1), softmax_of_largest(scores_BN, self.k)


def softmax_of_largest(scores_BN: Tensor, k: int) -> Tensor:
    """Return a softmax over the k largest scores of each row; exactly zero elsewhere."""
    return scores_BN.masked_fill(~keep_largest(scores_BN, k), -torch.inf).softmax(dim=-1)
