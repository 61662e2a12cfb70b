"""Switch: one expert a row, scaled by its probability.

Fedus et al., "Switch Transformers", JMLR 2022 (arXiv 2101.03961), section 2.1. Gradients reach the
router only through the probability. There are no capacities, so no row is dropped.
"""

from __future__ import annotations

from torch import Tensor

from moesim.errors import UsageError
from moesim.training.gates.balance import shares_product
from moesim.training.gates.base import Gate, Gating, Scores, keep_largest, no_loss


class Switch(Gate):
    """Top-1; `balance` weighs the product of shares (the paper: 0.01). `k` must be 1."""

    def __init__(
        self,
        num_experts: int,
        k: int = 1,
        *,
        features: int | None = None,
        tasks: int = 1,
        balance: float = 0.01,
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        if k != 1:
            raise UsageError(f"k ({k}) must be 1: Switch routes to one expert; for more, top_k")
        self.scores = Scores(num_experts, features, tasks)
        self.balance = balance

    def _mix(self, features_BF: Tensor | None) -> Gating:
        probabilities_BN, weights_BN = self._harden(features_BF)
        if not self.training:
            return Gating(weights_BN, no_loss(weights_BN))
        return Gating(weights_BN, self.balance * shares_product(probabilities_BN, weights_BN > 0))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        probabilities_BN = self.scores(features_BF).softmax(dim=-1)
        return probabilities_BN, probabilities_BN * keep_largest(probabilities_BN, 1)
