"""The optimizer of a small model's training: AdamW (Loshchilov and Hutter, 2019), and its rate.

The learning rate rises linearly during the first steps, then falls along half a cosine.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from moesim.training.presets import GatedPreset, Preset

__all__ = ["adamw", "share_of_peak"]

_WARM_UP = 0.05  # of all steps
_LOWEST = 0.1  # of the peak learning rate, at the end


def adamw(model: Any, shape: Preset) -> torch.optim.Optimizer:
    """Return the optimizer of a new model; gates may learn at another rate than the rest."""
    own: set[int] = set()
    factor = 1.0
    if isinstance(shape, GatedPreset):
        own = {id(p) for router in model.routers for p in router.parameters()}
        factor = shape.gate_factor
    others = [p for p in model.parameters() if id(p) not in own]
    # Only matrices get weight decay: norms, biases and gates have none.
    groups = (
        ([p for p in others if p.ndim >= 2], 0.1, 1.0),
        ([p for p in others if p.ndim < 2], 0.0, 1.0),
        ([p for p in model.parameters() if id(p) in own], 0.0, factor),
    )
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "lr": shape.learning_rate * times}
            for params, decay, times in groups
            if params
        ],
        lr=shape.learning_rate,
        betas=(0.9, 0.95),
    )


def share_of_peak(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a linear rise, then half a cosine down."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return _LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * done))
