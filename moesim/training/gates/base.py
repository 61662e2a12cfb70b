"""A gate: the weight of each of n experts in a row, and the few experts that must run.

A *row* is the unit of routing: an example, a token, or a task. A *per-example* gate computes a
row's weights from its features. A *static* gate has free parameters for each task, so its routing
is known before any input. `forward` returns dense weights, for training. `select` returns the at
most k experts of each row that inference runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moesim.errors import UsageError


class Gating(NamedTuple):
    """Weights to mix experts by; an expert whose weight is exactly zero need not run."""

    weights: Tensor  # (B, n), not negative, differentiable
    loss: Tensor  # (), to add to the training loss; 0 in evaluation mode


class Selection(NamedTuple):
    """At most k experts a row, the heaviest first; none in a row without any weight."""

    probabilities: Tensor  # (B, n), rows sum to one; experts were chosen by them
    weights: Tensor  # (B, k), 0 where a place is unused
    ids: Tensor  # (B, k) integers, -1 where a place is unused

    def dense(self) -> Tensor:
        """Return the weights as `[B, n]`, zero where an expert was not selected."""
        empty_BN = torch.zeros_like(self.probabilities)
        return empty_BN.scatter_add(1, self.ids.clamp(min=0), self.weights)


class Gate(nn.Module, ABC):
    """Base of gates of `num_experts` experts, of which `select` keeps `k`.

    With `features` F the gate is per-example: `inputs` are floats `[B, F]`. Without, it is static:
    `inputs` are task ids `[B]`, and None stands for all `tasks`, each once, in order. The loss of a
    static gate counts each task once, for any batch. Raises `UsageError` if k is not in 1..n, and
    for inputs of the other kind.
    """

    def __init__(
        self, num_experts: int, k: int, *, features: int | None = None, tasks: int = 1
    ) -> None:
        super().__init__()
        check_k(num_experts, k)
        for name, value in (("features", features), ("tasks", tasks)):
            if value is not None and value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        if features is not None and tasks != 1:
            raise UsageError(
                f"a per-example gate (features {features}) has no parameters for each of {tasks} "
                "tasks; use a static gate, or a gate for each task"
            )
        self.num_experts = num_experts
        self.k = k
        self.features = features
        self.tasks = tasks

    @property
    def static(self) -> bool:
        """Return whether routing depends on ids alone, so that it is known ahead of every input."""
        return self.features is None

    def forward(self, inputs: Tensor | None = None) -> Gating:
        """Return dense weights and the auxiliary loss; only in training mode can they be random."""
        self._check(inputs)
        if not self.static:
            return self._mix(inputs)
        # All tasks at once: the loss must not depend on how often a task is in the batch.
        weights, loss = self._mix(None)
        return Gating(weights if inputs is None else weights[inputs], loss)

    @torch.no_grad()
    def select(self, inputs: Tensor | None = None) -> Selection:
        """Return the experts to run at inference; never random, in either mode."""
        self._check(inputs)
        selection = self._select(None if self.static else inputs)
        if self.static and inputs is not None:
            return Selection(*(part[inputs] for part in selection))
        return selection

    @abstractmethod
    def _mix(self, features_BF: Tensor | None) -> Gating:
        """Return weights of each row, or of each task if `features_BF` is None."""

    def _select(self, features_BF: Tensor | None) -> Selection:
        """Return the selection of each row, or of each task if `features_BF` is None."""
        return heaviest(*self._harden(features_BF), self.k)

    @abstractmethod
    def _harden(self, features_BF: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return probabilities `[B, n]` and weights `[B, n]` of at most k experts a row."""

    def _check(self, inputs: Tensor | None) -> None:
        name = type(self).__name__
        if self.features is not None:
            if inputs is None or inputs.ndim != 2 or inputs.shape[1] != self.features:
                raise UsageError(
                    f"a per-example {name} reads inputs of shape (rows, {self.features}), not "
                    f"{None if inputs is None else tuple(inputs.shape)}"
                )
            return
        if inputs is None:
            return
        if inputs.ndim != 1 or inputs.dtype not in (torch.int32, torch.int64):
            raise UsageError(
                f"a static {name} reads integer ids of shape (rows,), not {inputs.dtype} of "
                f"shape {tuple(inputs.shape)}"
            )
        if len(inputs) and not 0 <= int(inputs.min()) <= int(inputs.max()) < self.tasks:
            raise UsageError(
                f"ids from {int(inputs.min())} to {int(inputs.max())}: this {name} knows 0 to "
                f"{self.tasks - 1}"
            )


def check_k(num_experts: int, k: int) -> None:
    """Raise `UsageError` unless k of `num_experts` experts can be selected."""
    if num_experts < 1:
        raise UsageError(f"the number of experts ({num_experts}) must be at least 1")
    if not 1 <= k <= num_experts:
        raise UsageError(
            f"k ({k}) must be at least 1 and at most the number of experts ({num_experts}): "
            "a row cannot select more experts than there are"
        )


class Scores(nn.Module):
    """`width` scores a row: linear in its features, or free parameters of each task."""

    def __init__(self, width: int, features: int | None, tasks: int) -> None:
        super().__init__()
        self.linear = None if features is None else nn.Linear(features, width)
        self.table = None
        if features is None:
            self.table = nn.Parameter(torch.empty(tasks, width).uniform_(-0.05, 0.05))

    def forward(self, features_BF: Tensor | None) -> Tensor:
        """Return scores `[B, width]`, or `[tasks, width]` of free parameters."""
        if self.table is not None:
            return self.table
        assert self.linear is not None
        scores: Tensor = self.linear(features_BF)
        return scores

    def silence(self) -> None:
        """Set all scores to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def heaviest(probabilities_BN: Tensor, weights_BN: Tensor, k: int) -> Selection:
    """Return the selection of weights of which at most k a row are not zero."""
    kept, ids = weights_BN.topk(k, dim=-1)
    return Selection(probabilities_BN, kept, torch.where(kept > 0, ids, -1))


def keep_largest(values_BN: Tensor, k: int) -> Tensor:
    """Return `[B, n]` of bool: the k largest of each row; among equals, any."""
    ids = values_BN.topk(k, dim=-1).indices
    return torch.zeros_like(values_BN, dtype=torch.bool).scatter(-1, ids, True)


def kept_of(weights_BN: Tensor, k: int) -> Tensor:
    """Return the k largest of each row, rescaled to sum to one; an all-zero row stays so."""
    return scaled(weights_BN * keep_largest(weights_BN, k))


def scaled(weights_BN: Tensor) -> Tensor:
    """Return rows scaled to sum to one; an all-zero row stays so."""
    mass_B1 = weights_BN.sum(dim=-1, keepdim=True)
    return weights_BN / torch.where(mass_B1 > 0, mass_B1, 1)


def no_loss(like: Tensor) -> Tensor:
    """Return a zero loss, on the device and of the type of `like`."""
    return like.new_zeros(())
