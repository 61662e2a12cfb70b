"""Batching policies: what forms the next step."""

from moesim.policies.batching.base import Batching, Candidate, Plan, Queue, fill
from moesim.policies.batching.orders import DecodeFirst, FirstComeFirstServed, PrefillFirst

__all__ = [
    "Batching",
    "Candidate",
    "DecodeFirst",
    "FirstComeFirstServed",
    "Plan",
    "PrefillFirst",
    "Queue",
    "fill",
]
