"""Continuous batching in three fixed orders: decodes first, prompts first, or first come.

Continuous batching forms a new batch for every step (Orca, Yu et al., OSDI 2022). With chunked
prefill a prompt may be spread over several steps (Sarathi-Serve, arXiv 2403.02310). The orders
differ in which requests get the token budget first.
"""

from __future__ import annotations

from itertools import chain

from moesim.policies.batching.base import Batching, Queue, StepPlan, fill
from moesim.policies.registry import register


@register("batching", "decode_first")
class DecodeFirst(Batching):
    """Decodes first, then prompts: steady times between tokens, as in Sarathi-Serve."""

    def plan(self, queue: Queue) -> StepPlan:
        decodes = (request for request in queue.running if request.decoding)
        prefills = (request for request in queue.running if not request.decoding)
        return fill(queue, chain(decodes, prefills, queue.waiting))


@register("batching", "prefill_first")
class PrefillFirst(Batching):
    """Prompts first, then decodes: early first tokens, uneven times between later ones."""

    def plan(self, queue: Queue) -> StepPlan:
        decodes = (request for request in queue.running if request.decoding)
        prefills = (request for request in queue.running if not request.decoding)
        return fill(queue, chain(prefills, queue.waiting, decodes))


@register("batching", "fcfs")
class FirstComeFirstServed(Batching):
    """Requests in their order of arrival, prompts and decodes alike."""

    def plan(self, queue: Queue) -> StepPlan:
        # A preempted request waits again, so running requests are not always the older ones.
        requests = sorted(chain(queue.running, queue.waiting), key=lambda request: request.index)
        return fill(queue, requests)
