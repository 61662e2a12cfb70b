"""Placement policies: where an expert without a slot is computed. There is one so far: `copy`."""

from __future__ import annotations

from moesim.policies.base import Policy
from moesim.policies.registry import register

__all__ = ["Copy", "Placement"]


class Placement(Policy):
    """Base class of placement policies."""


@register("placement", "copy")
class Copy(Placement):
    """Copy every missing expert to the GPU and compute it there."""
