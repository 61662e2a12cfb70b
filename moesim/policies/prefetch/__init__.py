"""Prefetch policies: which experts are copied before they are needed, one idea per file."""

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.prefetch.layer_ahead import LayerAhead
from moesim.policies.prefetch.none import NoPrefetch
from moesim.policies.prefetch.oracle import Oracle
from moesim.policies.prefetch.predicted import Predicted

__all__ = ["DepthOptions", "LayerAhead", "NoPrefetch", "Oracle", "Predicted", "Prefetch"]
