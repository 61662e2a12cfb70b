"""Estimates with durations chosen by a test, and layer events to place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moesim.policies import View, find, parse_options
from moesim.policies.placement import Placement, PlacementContext


@dataclass
class PricedExperts:
    """Durations in nanoseconds: a fixed part for each call, and a part for each row.

    `copies` and `reads` give the durations of single keys that differ from `copy` and 0. `front`
    is that of a layer without its experts, times the layer's number from 1 on.
    """

    rows: int = 1
    cpu_call_ns: int = 0
    gpu_call_ns: int = 0
    cpu_row: int = 10
    gpu_row: int = 1
    copy: int = 100
    copies: Mapping[int, int] = field(default_factory=dict)
    reads: Mapping[int, int] = field(default_factory=dict)
    has_cpu: bool = True
    front: int = 0

    def front_ns(self, layer: int, rows: int) -> int:
        return self.front * (layer + 1) + rows

    def copy_ns(self, key: int) -> int:
        return self.copies.get(key, self.copy)

    def read_ns(self, key: int) -> int:
        return self.reads.get(key, 0)

    def gpu_ns(self, key: int, rows: int) -> int:
        return self.gpu_call_ns + rows * self.gpu_row

    def cpu_ns(self, key: int, rows: int) -> int:
        return self.cpu_call_ns + rows * self.cpu_row


def context(layers: int = 4, experts: int = 8, dense: int = 0, **changes: Any) -> PlacementContext:
    """Return the context of a model with `dense` layers before its MoE layers."""
    return PlacementContext(
        **{
            "model_layers": tuple(range(dense, dense + layers)),
            "num_model_layers": dense + layers,
            "num_experts": experts,
            "top_k": 2,
            "rng": np.random.default_rng(0),
            **changes,
        }
    )


def placement(name: str, where: PlacementContext | None = None, **options: Any) -> Placement:
    """Return a built-in placement policy with these options."""
    policy = find("placement", name)
    made: Placement = policy(where or context(), parse_options(policy, options))
    return made


def event(loads: Mapping[int, int]) -> View:
    """Return the view of one layer event: the rows of each wanted key."""
    return View(0, tuple(loads), tuple(loads.values()))
