"""Batching policies: which requests form the next step, one idea per file."""

from moesim.policies.batching.base import (
    Batching,
    Candidate,
    ClairvoyantCandidate,
    Queue,
    QueuedExperts,
    RequestKeys,
    StepPlan,
    fill,
    unknown_experts,
    unknown_wants,
)
from moesim.policies.batching.expert_aware import ExpertAware
from moesim.policies.batching.fixed_order import DecodeFirst, FirstComeFirstServed, PrefillFirst
from moesim.policies.batching.task_aware import TaskAware

__all__ = [
    "Batching",
    "Candidate",
    "ClairvoyantCandidate",
    "DecodeFirst",
    "ExpertAware",
    "FirstComeFirstServed",
    "PrefillFirst",
    "Queue",
    "QueuedExperts",
    "RequestKeys",
    "StepPlan",
    "TaskAware",
    "fill",
    "unknown_experts",
    "unknown_wants",
]
