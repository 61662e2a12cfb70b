"""The three classic orders of continuous batching with chunked prefill."""

from __future__ import annotations

from itertools import chain

from moesim.policies.batching.base import Batching, Queue, StepPlan, fill
from moesim.policies.registry import register


@register("batching", "decode_first")
class DecodeFirst(Batching):
    """Running decodes first, prompts fill the rest: steady inter-token latency (Sarathi-Serve,
    arXiv 2403.02310)."""

    def plan(self, queue: Queue) -> StepPlan:
        decodes = (request for request in queue.running if request.decoding)
        prefills = (request for request in queue.running if not request.decoding)
        return fill(queue, chain(decodes, prefills, queue.waiting))


@register("batching", "prefill_first")
class PrefillFirst(Batching):
    """Prompts first, decodes take what is left: early first tokens, uneven gaps after."""

    def plan(self, queue: Queue) -> StepPlan:
        decodes = (request for request in queue.running if request.decoding)
        prefills = (request for request in queue.running if not request.decoding)
        return fill(queue, chain(prefills, queue.waiting, decodes))


@register("batching", "fcfs")
class FirstComeFirstServed(Batching):
    """Strict order of arrival, whatever phase a request is in."""

    def plan(self, queue: Queue) -> StepPlan:
        everyone = sorted(chain(queue.running, queue.waiting), key=lambda request: request.index)
        return fill(queue, everyone)
