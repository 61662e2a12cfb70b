"""Task-aware batching: requests of the same task together, where a task's routing is known.

A converged static gate (DSelect-k, Hazimeh et al., NeurIPS 2021, arXiv 2106.03760) routes by the
task alone, so what a request will ever want, in all layers, is known when it arrives. Nobody names
the tasks here: requests that want the same keys are one. Those that want no more than the last
step did go first, since their experts were just used; once there are none, the keys that admit
most tokens a key are chosen anew. What is left of the budget goes to those for whom fewest further
keys must be chosen (`mix`), or to nobody: then a step wants the keys of one choice alone.

Whoever stays with a task starves the others as long as it lasts. `max_wait` lets whoever was
passed over in so many steps go first, in order of arrival, whatever it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from annotated_types import Ge

from moesim.policies.batching.ageing import Ageing
from moesim.policies.batching.base import Batching, Queue, StepPlan, fill
from moesim.policies.batching.fewest import fewest_experts_first
from moesim.policies.registry import register
from moesim.policies.view import Key


@dataclass(frozen=True, slots=True)
class TaskAwareOptions:
    """`mix`: whether budget that is left goes to requests that want further experts; `max_wait`:
    steps after which a request that was passed over goes first."""

    mix: bool = True
    max_wait: Annotated[int, Ge(1)] | None = None


@register("batching", "task_aware")
class TaskAware(Batching):
    """Those whose experts were just used first: needs a static router, which reveals them all."""

    needs_static = True
    Options = TaskAwareOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ageing = Ageing(self.options.max_wait)
        self._held: frozenset[Key] = frozenset()  # what the last step wanted

    def plan(self, queue: Queue) -> StepPlan:
        waiting = queue.waiting if queue.free_sequences else ()  # or a choice might admit nobody
        everyone = sorted((*queue.running, *waiting), key=lambda request: request.index)
        wants = {request.index: queue.wants(request) for request in everyone}
        weight = {r.index: min(r.tokens_wanted, queue.token_budget) for r in everyone}
        old, others = self._ageing.split(everyone)
        chosen = _union(wants[request.index] for request in old)
        if not old or self.options.mix:
            held = self._held
            chosen |= held if any(wants[one.index] <= held for one in others) else frozenset()
        room = max(0, queue.token_budget - sum(weight[request.index] for request in old))
        rest: Iterator[Any]
        groups = fewest_experts_first(others, wants, weight, room, chosen)
        if self.options.mix:
            rest = chain.from_iterable(groups)
        elif chosen:
            rest = (request for request in others if wants[request.index] <= chosen)
        else:
            rest = iter(next(groups, ()))
        plan = fill(queue, chain(old, rest))
        self._held = _union(wants[request.index] for request, _ in plan)
        self._ageing.note((*queue.running, *queue.waiting), plan)
        return plan


def _union(sets: Iterable[frozenset[Key]]) -> frozenset[Key]:
    return frozenset().union(*sets)
