"""Softmax: every expert counts in every row, so this gate saves no work in training."""

from __future__ import annotations

from torch import Tensor

from moesim.training.gates.base import Gate, Gating, Scores, kept_of, no_loss


class Softmax(Gate):
    """A softmax over scores. `select` keeps the k largest, rescaled to sum to one.

    With k below n, this differs from the mixture that was trained.
    """

    def __init__(
        self, num_experts: int, k: int, *, features: int | None = None, tasks: int = 1
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        self.scores = Scores(num_experts, features, tasks)

    def _mix(self, features_BF: Tensor | None) -> Gating:
        weights_BN = self.scores(features_BF).softmax(dim=-1)
        return Gating(weights_BN, no_loss(weights_BN))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        probabilities_BN = self.scores(features_BF).softmax(dim=-1)
        return probabilities_BN, kept_of(probabilities_BN, self.k)
