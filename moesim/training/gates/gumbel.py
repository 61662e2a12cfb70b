"""Gumbel-softmax: a softmax of scores with Gumbel noise, whose argmax is a sample.

Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017 (arXiv 1611.01144).
The k largest of the noisy scores are a sample of k without replacement (Kool et al., ICML 2019,
arXiv 1903.06059).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moesim.errors import UsageError
from moesim.training.gates.base import Gate, Gating, Scores, kept_of, no_loss


class GumbelSoftmax(Gate):
    """In training a dense, noisy softmax at `temperature`; in evaluation the k largest, no noise.

    With `straight_through`, training uses the k largest of the noisy softmax, rescaled, with the
    gradient of the dense one.
    """

    def __init__(
        self,
        num_experts: int,
        k: int = 1,
        *,
        features: int | None = None,
        tasks: int = 1,
        temperature: float = 1.0,
        straight_through: bool = False,
    ) -> None:
        super().__init__(num_experts, k, features=features, tasks=tasks)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise UsageError(f"temperature ({temperature}) must be positive and finite")
        self.scores = Scores(num_experts, features, tasks)
        self.temperature = temperature
        self.straight_through = straight_through

    def _mix(self, features_BF: Tensor | None) -> Gating:
        scores_BN = self.scores(features_BF)
        if not self.training:
            _, weights_BN = self._harden(features_BF)
            return Gating(weights_BN, no_loss(weights_BN))
        noise_BN = -torch.empty_like(scores_BN).exponential_().log()
        soft_BN = ((scores_BN + noise_BN) / self.temperature).softmax(dim=-1)
        if not self.straight_through:
            return Gating(soft_BN, no_loss(soft_BN))
        # In this order zeros stay exactly zero, because x - x is added to them.
        weights_BN = kept_of(soft_BN, self.k).detach() + (soft_BN - soft_BN.detach())
        return Gating(weights_BN, no_loss(weights_BN))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        probabilities_BN = (self.scores(features_BF) / self.temperature).softmax(dim=-1)
        return probabilities_BN, kept_of(probabilities_BN, self.k)
