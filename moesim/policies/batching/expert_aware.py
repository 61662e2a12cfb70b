"""Expert-aware batching: few experts for many tokens, where routing is known beforehand.

Algorithm 1 of Read-ME (Cai et al., NeurIPS 2024, arXiv 2410.19123): requests queue by the expert
that their next token wants, and the longest queues go first. As printed it uses a stale loop
variable, never ends once all queues are empty, and leaves open what it counts, where prompts
queue and who wins a tie. Here: queues are drained until the budget is spent or nobody is left;
`unit` says what a queue's length counts; among equal queues the one whose first request came
first wins; and a prompt, whose tokens may want different experts, queues

- `majority`: with the expert that most of its next tokens want (ties: the lowest), or
- `every`: for all that they want at once, fewest experts first (`fewest.py`).

Longest queue first starves rare experts. `max_wait` (not in the paper) lets whoever was passed
over in so many steps go first, in order of arrival.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from annotated_types import Ge

from moesim.policies.batching.ageing import Ageing
from moesim.policies.batching.base import Batching, Queue, StepPlan, fill
from moesim.policies.batching.fewest import fewest_experts_first
from moesim.policies.registry import register


@dataclass(frozen=True, slots=True)
class ExpertAwareOptions:
    """`unit`: a queue's length in tokens or in requests; `prefill`: where prompts queue;
    `max_wait`: steps after which a request that was passed over goes first."""

    unit: Literal["tokens", "requests"] = "tokens"
    prefill: Literal["majority", "every"] = "majority"
    max_wait: Annotated[int, Ge(1)] | None = None


@register("batching", "expert_aware")
class ExpertAware(Batching):
    """Those who want the most wanted expert first: needs a router that reveals its choices."""

    needs_routing = True
    Options = ExpertAwareOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ageing = Ageing(self.options.max_wait)

    def plan(self, queue: Queue) -> StepPlan:
        everyone = sorted((*queue.running, *queue.waiting), key=lambda request: request.index)
        weight = {request.index: self._weight(request, queue) for request in everyone}
        wants = {
            request.index: Counter(
                expert
                for row in queue.experts(request, min(request.tokens_wanted, queue.token_budget))
                for expert in row
            )
            for request in everyone
        }
        old, others = self._ageing.split(everyone)
        if self.options.prefill == "majority":
            rest = _longest_queue_first(others, wants, weight)
        else:
            sets = {index: frozenset(counts) for index, counts in wants.items()}
            groups = fewest_experts_first(others, sets, weight, queue.token_budget)
            rest = chain.from_iterable(groups)
        plan = fill(queue, [*old, *rest])
        self._ageing.note(everyone, plan)
        return plan

    def _weight(self, request: Any, queue: Queue) -> int:
        if self.options.unit == "requests":
            return 1
        return min(int(request.tokens_wanted), queue.token_budget)


def _longest_queue_first(
    requests: Sequence[Any], wants: dict[int, Counter[int]], weight: dict[int, int]
) -> Iterator[Any]:
    queues: dict[int, list[Any]] = defaultdict(list)
    for request in requests:
        counts = wants[request.index]
        most = max(counts.values(), default=0)
        queues[min((e for e in counts if counts[e] == most), default=-1)].append(request)
    length = {e: sum(weight[request.index] for request in q) for e, q in queues.items()}
    for expert in sorted(queues, key=lambda e: (-length[e], queues[e][0].index)):
        yield from queues[expert]
