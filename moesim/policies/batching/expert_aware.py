"""Expert-aware batching: few experts for many tokens, where routing is known beforehand.

Algorithm 1 of Read-ME (Cai et al., NeurIPS 2024, arXiv 2410.19123): requests queue by the expert
that their next token wants, and the longest queues go first. As printed it uses a stale loop
variable, never ends once all queues are empty, and leaves open what it counts, where prompts
queue and who wins a tie. Here: queues are drained until the budget is spent or nobody is left;
`unit` says what a queue's length counts; among equal queues the one whose first request came
first wins; and a prompt, whose tokens may want different experts, queues

- `majority`: with the expert that most of its next tokens want (ties: the lowest), or
- `every`: for all that they want at once: of all remaining requests the one whose missing experts
  admit most tokens an expert (no more than the batch still holds) goes next, with all whose
  experts are then chosen.

Longest queue first starves rare experts. `max_wait` (not in the paper) lets whoever was passed
over in so many steps go first, in order of arrival.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from moesim.policies.batching.base import Batching, Plan, Queue, fill
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
        self._passed_over: Counter[int] = Counter()  # steps since it was last served

    def plan(self, queue: Queue) -> Plan:
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
        old = [request for request in everyone if self._is_old(request.index)]
        others = [request for request in everyone if not self._is_old(request.index)]
        if self.options.prefill == "majority":
            rest = _longest_queue_first(others, wants, weight)
        else:
            rest = _fewest_experts_first(others, wants, weight, queue.token_budget)
        plan = fill(queue, [*old, *rest])
        served = {request.index for request, _ in plan}
        present = [request.index for request in everyone if request.index not in served]
        self._passed_over = Counter({index: self._passed_over[index] + 1 for index in present})
        return plan

    def _weight(self, request: Any, queue: Queue) -> int:
        if self.options.unit == "requests":
            return 1
        return min(int(request.tokens_wanted), queue.token_budget)

    def _is_old(self, index: int) -> bool:
        limit = self.options.max_wait
        return limit is not None and self._passed_over[index] >= limit


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


def _fewest_experts_first(
    requests: Sequence[Any], wants: dict[int, Counter[int]], weight: dict[int, int], room: int
) -> Iterator[Any]:
    left = list(requests)
    chosen: set[int] = set()
    while left:
        missing = [wants[request.index].keys() - chosen for request in left]
        sizes = [weight[request.index] for request in left]
        best = max(missing, key=lambda more: _worth(more, missing, sizes, room))
        chosen |= best
        admitted = [request for request, more in zip(left, missing, strict=True) if more <= best]
        room = max(0, room - sum(weight[request.index] for request in admitted))
        yield from admitted
        left = [request for request in left if request not in admitted]


def _worth(more: set[int], missing: Sequence[set[int]], sizes: Sequence[int], room: int) -> float:
    """What these experts would admit, for each of them; whatever needs none goes at once."""
    if not more:
        return float("inf")
    admits = sum(size for size, need in zip(sizes, missing, strict=True) if need <= more)
    return min(admits, room) / len(more)
