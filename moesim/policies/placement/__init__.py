"""Placement policies: where an expert that is not in GPU memory is computed, one idea per file."""

from moesim.policies.placement.base import Estimate, Placement, PlacementContext
from moesim.policies.placement.copy import Copy

__all__ = ["Copy", "Estimate", "Placement", "PlacementContext"]
