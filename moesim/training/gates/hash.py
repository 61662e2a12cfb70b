"""Hash: experts by the id of a token or task, drawn once and never learnt.

Roller et al., "Hash Layers For Large Sparse Models", NeurIPS 2021 (arXiv 2106.04426). Ids are in
blocks of n, and every block deals out all experts in its own order. So over ids all experts have
equal work. Over text they do not, because ids are unequally frequent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.training.gates.base import Gate, Gating, no_loss


class Hash(Gate):
    """A static gate: k experts of equal weight for each of `tasks` ids; `seed` fixes which."""

    table: Tensor

    def __init__(self, num_experts: int, k: int = 1, *, tasks: int, seed: int = 0) -> None:
        super().__init__(num_experts, k, tasks=tasks)
        draw = torch.Generator().manual_seed(seed)
        num_blocks = -(-tasks // num_experts)
        orders = torch.rand(num_blocks, num_experts, generator=draw).argsort(dim=1)
        # Position p of a block takes experts p to p + k - 1 of its order, so each expert is taken k
        # times.
        places = (torch.arange(num_experts)[:, None] + torch.arange(k)) % num_experts
        dealt = orders[:, places].reshape(-1, k)[:tasks]
        # Shuffled, so that consecutive ids are not in one block.
        ids = dealt[torch.randperm(tasks, generator=draw)]
        self.register_buffer("table", torch.zeros(tasks, num_experts).scatter(1, ids, 1 / k))

    def _mix(self, features_BF: Tensor | None) -> Gating:
        return Gating(self.table, no_loss(self.table))

    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.table, self.table
