"""Prefill-first batching whose decodes take turns, as a study's own policy.

The shipped order serves decodes in order of admission: the first requests run to their end, and
later ones pause. A server that puts each request back at the end of a queue serves all in turn.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from moesim.policies.batching.base import Batching, Queue, StepPlan, fill

NAME: Final = "rotating_prefill_first"


class RotatingPrefillFirst(Batching):
    """Prompts first, then decodes, those that were served longest ago first."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._step = 0
        self._last_served: dict[int, int] = {}

    def plan(self, queue: Queue) -> StepPlan:
        prompts = (request for request in queue.running if not request.decoding)
        decodes = sorted(
            (request for request in queue.running if request.decoding),
            key=lambda request: (self._last_served.get(request.index, 0), request.index),
        )
        plan = fill(queue, chain(prompts, queue.waiting, decodes))
        self._step += 1
        self._last_served |= {request.index: self._step for request, _ in plan}
        return plan
