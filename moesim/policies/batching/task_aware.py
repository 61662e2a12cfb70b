"""Task-aware batching: serve requests of the same task together, because they share experts.

A converged static gate (DSelect-k, Hazimeh et al., NeurIPS 2021, arXiv 2106.03760) routes by the
task alone. So the keys that a request will want in all layers are known when it arrives. Requests
that want the same keys count as one task. The policy itself comes from no paper:

1. Requests whose keys were all used by the last step go first.
2. If there are none, new keys are chosen: those that admit most tokens per key (`fewest.py`).
3. With `mix`, the rest of the budget goes to the requests that need fewest further keys. Without
   `mix` it stays unused, so a step uses the keys of one choice alone.

A long task can starve all others. `max_wait` limits this: requests that were passed over in that
many steps go first, in order of arrival.
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
    """`mix`: whether requests that want further experts may use the rest of the budget.

    `max_wait`: number of steps after which a request that was passed over goes first.
    """

    mix: bool = True
    max_wait: Annotated[int, Ge(1)] | None = None


@register("batching", "task_aware")
class TaskAware(Batching):
    """Requests whose experts were just used go first. Needs a static router."""

    needs_static = True
    Options = TaskAwareOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ageing = Ageing(self.options.max_wait)
        self._held: frozenset[Key] = frozenset()  # what the last step wanted

    def plan(self, queue: Queue) -> StepPlan:
        # Keys chosen for requests that cannot be admitted could leave the step empty.
        waiting = queue.waiting if queue.free_sequences else ()
        requests = sorted((*queue.running, *waiting), key=lambda request: request.index)
        wants = {request.index: queue.wants(request) for request in requests}
        weight = {request.index: queue.most_tokens(request) for request in requests}
        old, others = self._ageing.split(requests)
        chosen = _union(wants[request.index] for request in old)
        if not old or self.options.mix:
            held = self._held
            if any(wants[request.index] <= held for request in others):
                chosen |= held
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
        # `fill` may stop early, so the keys held are those of the plan, not those chosen.
        self._held = _union(wants[request.index] for request, _ in plan)
        self._ageing.note((*queue.running, *queue.waiting), plan)
        return plan


def _union(sets: Iterable[frozenset[Key]]) -> frozenset[Key]:
    return frozenset().union(*sets)
