"""The load of this folder's serving studies: how many requests are in the system, and in a step."""

from __future__ import annotations

from typing import Any, Final

CAP: Final = 8
"""C: the most tokens of a step, where clients are many."""


def closed(clients: int, requests: int, tokens: int = CAP) -> dict[str, Any]:
    """Return the sections of `clients` that each send the next request when their last one ends.

    All of them are admitted. If they are more than a step's `tokens`, some wait for a place in it.
    """
    return {
        "workload": {
            "requests": requests,
            "order": "resampled",
            "arrivals": {"kind": "closed", "clients": clients},
        },
        "batching": {
            "policy": "expert_aware",
            "token_budget": tokens,
            "max_sequences": clients,
        },
    }


def queued(places: int, requests: int, tokens: int = 64) -> dict[str, Any]:
    """Return the sections of requests that all arrive at once and are admitted `places` at a time.

    The router has routed the prompts of all requests that still wait.
    """
    return {
        "workload": {"requests": requests, "order": "resampled"},
        "batching": {
            "policy": "expert_aware",
            "token_budget": tokens,
            "max_sequences": places,
        },
    }
