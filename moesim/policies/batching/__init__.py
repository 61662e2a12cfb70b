"""Batching policies: what forms the next step."""

from moesim.policies.batching.base import (
    Batching,
    Candidate,
    Experts,
    Plan,
    Queue,
    fill,
    unknown_experts,
)
from moesim.policies.batching.expert_aware import ExpertAware
from moesim.policies.batching.orders import DecodeFirst, FirstComeFirstServed, PrefillFirst

__all__ = [
    "Batching",
    "Candidate",
    "DecodeFirst",
    "ExpertAware",
    "Experts",
    "FirstComeFirstServed",
    "Plan",
    "PrefillFirst",
    "Queue",
    "fill",
    "unknown_experts",
]
