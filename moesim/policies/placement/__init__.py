"""Placement policies: where an expert that is not in GPU memory is computed, one idea per file."""

from moesim.policies.placement.base import (
    Estimate,
    Placement,
    PlacementContext,
    fixes_residents,
)
from moesim.policies.placement.copy import Copy
from moesim.policies.placement.cost import Cost
from moesim.policies.placement.cpu_experts import CPUExperts
from moesim.policies.placement.cpu_layers import CPULayers
from moesim.policies.placement.two_queue import TwoQueue

__all__ = [
    "CPUExperts",
    "CPULayers",
    "Copy",
    "Cost",
    "Estimate",
    "Placement",
    "PlacementContext",
    "TwoQueue",
    "fixes_residents",
]
