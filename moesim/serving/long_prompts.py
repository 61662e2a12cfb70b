"""Refuse requests that would exceed the token budget where `batching.long_prompts` is `refuse`.

Without chunked prefill, a request computes all rows that it lacks in one step. These are the rows
of its prompt; after a preemption, they also include the tokens that it has emitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moesim.errors import ScenarioError
from moesim.serving.budget import useful_blocks
from moesim.serving.request import Request

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["check_prompts", "check_recomputes"]

_REMEDY = "or write long_prompts: exceed or chunked_prefill: true"


def check_prompts(scenario: Scenario, requests: Sequence[Request]) -> None:
    """Raise `ScenarioError` with the longest prompt, if it exceeds the budget and may not.

    With a skipped prefill, requests have no prompt to compute.
    """
    longest = max(requests, key=lambda request: request.tokens_wanted)
    budget = scenario.batching.token_budget
    if _refuses(scenario) and longest.tokens_wanted > budget:
        raise ScenarioError.at(
            scenario,
            "batching.long_prompts",
            f"refuses request {longest.index}: the longest prompt, {longest.tokens_wanted} tokens, "
            f"exceeds the token budget of {budget}; set batching.token_budget to at least "
            f"{longest.tokens_wanted}, {_REMEDY}",
        )


def check_recomputes(scenario: Scenario, requests: Sequence[Request], kv_blocks: int) -> None:
    """Raise `ScenarioError` if a preempted request might exceed the budget and may not.

    Requests are preempted only if `kv_blocks` are too few for the longest that run at once. Which
    are preempted, and when, is not known before the run, so any that fits the memory counts.
    """
    if not _refuses(scenario):
        return
    kv_tokens = [request.max_kv_tokens for request in requests]
    if kv_blocks >= useful_blocks(scenario, kv_tokens):
        return
    room = kv_blocks * scenario.memory.kv_block_tokens
    fitting = [request for request in requests if request.max_kv_tokens <= room]
    rows = {request.index: request.max_kv_tokens - request.position for request in fitting}
    longest, budget = max(rows, key=rows.__getitem__), scenario.batching.token_budget
    if rows[longest] > budget:
        raise ScenarioError.at(
            scenario,
            "batching.long_prompts",
            f"refuses request {longest}: if it is preempted, it computes up to {rows[longest]} "
            f"tokens in one step, over the token budget of {budget}; set batching.token_budget to "
            f"at least {rows[longest]}, give KV blocks more memory, {_REMEDY}",
        )


def _refuses(scenario: Scenario) -> bool:
    batching = scenario.batching
    return not batching.chunked_prefill and batching.long_prompts == "refuse"
