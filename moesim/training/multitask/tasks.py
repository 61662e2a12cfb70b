"""Tasks: the target, the loss, and the rows that have a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from moesim.errors import UsageError

Losses = Callable[[Tensor, Tensor], Tensor]  # outputs (B, O) and targets (B,) to (B,)


def cross_entropy(outputs_BO: Tensor, targets_B: Tensor) -> Tensor:
    """Return the loss of classes, nats a row."""
    return functional.cross_entropy(outputs_BO, targets_B, reduction="none")


def binary_cross_entropy(outputs_B1: Tensor, targets_B: Tensor) -> Tensor:
    """Return the loss of yes (1) or no (0), nats a row."""
    return functional.binary_cross_entropy_with_logits(
        outputs_B1[:, 0], targets_B.float(), reduction="none"
    )


def squared_error(outputs_B1: Tensor, targets_B: Tensor) -> Tensor:
    """Return the loss of a number."""
    return (outputs_B1[:, 0] - targets_B).square()


def right_class(outputs_BO: Tensor, targets_B: Tensor) -> Tensor:
    """Return 1 where the most likely class is the true one."""
    return (outputs_BO.argmax(dim=1) == targets_B).float()


def right_side(outputs_B1: Tensor, targets_B: Tensor) -> Tensor:
    """Return 1 where the more likely of yes and no is the true one."""
    return ((outputs_B1[:, 0] > 0) == (targets_B > 0)).float()


@dataclass(frozen=True, slots=True)
class Task:
    """A task: the loss of each row, its weight in the sum, and, for classes, what is right."""

    name: str
    losses: Losses
    weight: float = 1.0
    right: Losses | None = None

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise UsageError(
                f"the weight of task {self.name!r} ({self.weight}) must be positive and finite"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows: `inputs [B, ...]` and `targets [B]` of each task.

    `known[task] [B]` marks the rows that have a target. A task missing in `known` has a target in
    every row.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Tensor | slice) -> Examples:
        return Examples(
            self.inputs[rows],
            {name: targets[rows] for name, targets in self.targets.items()},
            {name: known[rows] for name, known in self.known.items()},
        )

    def mask(self, task: Task) -> Tensor:
        """Return `[B]` of bool: which rows have a target."""
        everywhere = torch.ones(len(self), dtype=torch.bool, device=self.inputs.device)
        return self.known.get(task.name, everywhere)

    def check(self, tasks: Sequence[Task], what: str) -> None:
        """Raise `UsageError` if a task has no rows to learn from or be measured by."""
        for task in tasks:
            if task.name not in self.targets:
                raise UsageError(
                    f"task {task.name!r} has no {what} data; there are targets of "
                    f"{', '.join(self.targets) or 'no task'}"
                )
            if len(self.targets[task.name]) != len(self):
                raise UsageError(
                    f"task {task.name!r} has {len(self.targets[task.name])} {what} targets for "
                    f"{len(self)} rows"
                )
            if not bool(self.mask(task).any()):
                raise UsageError(
                    f"task {task.name!r} has no {what} data: none of {len(self)} rows has a target"
                )


def total(tasks: Sequence[Task], outputs: Mapping[str, Tensor], rows: Examples) -> Tensor:
    """Return the weighted sum of the tasks' mean losses; a task without targets here adds 0."""
    loss = torch.zeros(())
    for task in tasks:
        mask_B = rows.mask(task)
        each = task.losses(outputs[task.name][mask_B], rows.targets[task.name][mask_B])
        # Not `mean`, which is NaN for a batch in which this task has no target.
        loss = loss + task.weight * each.sum() / max(1, len(each))
    return loss
