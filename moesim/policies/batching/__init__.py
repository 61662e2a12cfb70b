"""Batching policies: what forms the next step."""

from moesim.policies.batching.base import (
    Batching,
    Candidate,
    ClairvoyantCandidate,
    Experts,
    Plan,
    Queue,
    Wants,
    fill,
    unknown_experts,
    unknown_wants,
)
from moesim.policies.batching.expert_aware import ExpertAware
from moesim.policies.batching.orders import DecodeFirst, FirstComeFirstServed, PrefillFirst
from moesim.policies.batching.task_aware import TaskAware

__all__ = [
    "Batching",
    "Candidate",
    "ClairvoyantCandidate",
    "DecodeFirst",
    "ExpertAware",
    "Experts",
    "FirstComeFirstServed",
    "Plan",
    "PrefillFirst",
    "Queue",
    "TaskAware",
    "Wants",
    "fill",
    "unknown_experts",
    "unknown_wants",
]
