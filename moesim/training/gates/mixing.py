"""Conditional computation: run an expert only on the rows in which it has weight.

With DSelect-k and Top-k a weight that is exactly zero has gradient exactly zero in every parameter.
So skipping its expert changes neither the output nor the learning. Straight-through gates do learn
from experts without weight, and skipping those experts removes this gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesim.errors import UsageError

Expert = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Activity:
    """The experts' work that a batch of `rows` rows needs."""

    rows: int
    num_experts: int
    pairs: int  # (row, expert) with a weight that is not zero
    experts: int  # distinct experts that some row needs

    @property
    def share(self) -> float:
        """Return the share of the FLOPs that all experts on all rows would take."""
        return self.pairs / (self.rows * self.num_experts)

    def flops(self, flops_per_row: float) -> float:
        """Return the experts' FLOPs, if an expert takes `flops_per_row` for a row."""
        return self.pairs * flops_per_row


def activity(weights_BN: Tensor) -> Activity:
    """Count the weights that are not exactly zero."""
    used_BN = weights_BN.detach() != 0
    rows, num_experts = used_BN.shape
    return Activity(rows, num_experts, int(used_BN.sum()), int(used_BN.any(dim=0).sum()))


def mix(weights_BN: Tensor, experts: Sequence[Expert], inputs_BF: Tensor) -> Tensor:
    """Return the sum over i of weights[:, i] · experts[i](inputs), `[B, O]`; zero weights skip.

    Raise `UsageError` if no expert has weight in any row.
    """
    return mix_shared(weights_BN[None], experts, inputs_BF)[0]


def mix_shared(weights_TBN: Tensor, experts: Sequence[Expert], inputs_BF: Tensor) -> Tensor:
    """Return `mix` for each of T mixtures of the same experts, `[T, B, O]`.

    An expert runs once on every row in which some mixture needs it. Raise as `mix` does.
    """
    # Exactly zero, not small: only a weight of exactly zero has no gradient.
    used_BN = (weights_TBN.detach() != 0).any(dim=0)
    out: Tensor | None = None
    for expert, weights_TB, used_B in zip(
        experts, weights_TBN.unbind(dim=2), used_BN.T, strict=True
    ):
        rows = used_B.nonzero()[:, 0]
        if not len(rows):
            continue
        states = expert(inputs_BF[rows]) * weights_TB[:, rows, None]
        if out is None:
            out = states.new_zeros(len(weights_TBN), len(inputs_BF), states.shape[2])
        out = out.index_add(1, rows, states)
    if out is None:
        raise UsageError(f"none of the {len(experts)} experts has weight in any row")
    return out


def places(weights_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return dense weights as (weights `[B, n]`, ids `[B, n]`), -1 where a weight is zero."""
    ids_N = torch.arange(weights_BN.shape[1], device=weights_BN.device)
    return weights_BN, torch.where(weights_BN != 0, ids_N, -1)
