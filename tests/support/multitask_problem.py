"""A small multi-task problem: two tasks on the same random inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moesim.training.gates import GATES, Gate
from moesim.training.multitask import Examples, Mixture, Task
from moesim.training.multitask.tasks import cross_entropy, right_class, squared_error

TASKS = (Task("side", cross_entropy, 0.5, right_class), Task("sum", squared_error, 2.0))


def examples(count: int, seed: int = 0, *, known: int | None = None) -> Examples:
    """Return random inputs with two targets: the side of a plane, and a sum.

    With `known`, only the first `known` rows have the second target.
    """
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=draw)
    targets = {"side": (inputs[:, 0] > 0).long(), "sum": inputs.sum(dim=1)}
    if known is None:
        return Examples(inputs, targets)
    return Examples(inputs, targets, {"sum": torch.arange(count) < known})


def mixture(*gates: Gate, experts: int = 4, seed: int = 0, dropout: float = 0.0) -> Mixture:
    """Return a mixture of one-layer experts with these gates (default: DSelect-k)."""
    torch.manual_seed(seed)
    own = gates or (gate("dselect_k", experts),)
    layers = [
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout)) for _ in range(experts)
    ]
    return Mixture(layers, own, {"side": nn.Linear(8, 2), "sum": nn.Linear(8, 1)})


def gate(name: str, experts: int = 4, **options: Any) -> Gate:
    """Return a static gate of both tasks that selects two experts for each (Switch: one)."""
    torch.manual_seed(0)
    return GATES[name](experts, 1 if name == "switch" else 2, tasks=2, **options)
