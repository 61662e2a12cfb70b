"""Expert-aware batching: form steps in which few experts serve many tokens.

Algorithm 1 of Read-ME (Cai et al., NeurIPS 2024, arXiv 2410.19123). Each request joins the queue of
the expert that its next token wants in the first MoE layer. The longest queues go first.

The printed algorithm uses a stale loop variable and does not end once all queues are empty. This
policy takes requests from the queues until the budget or the requests are used up. The paper also
leaves some choices open:

- Queues of equal length: the one whose first request arrived first goes first.
- `unit`: a queue's length counts tokens or requests.
- `prefill`: the tokens of a prompt may want different experts. With `majority`, the prompt queues
  for the expert that most of its next tokens want (ties: the lowest). With `every`, it counts for
  all of them, and requests go in the order of `fewest.py`.

The rule can starve requests for rare experts. `max_wait`, which is not in the paper, limits this:
requests that were passed over in that many steps go first, in order of arrival.
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
    """`unit`: whether a queue's length counts tokens or requests.

    `prefill`: which experts a prompt queues for. `max_wait`: number of steps after which a request
    that was passed over goes first.
    """

    unit: Literal["tokens", "requests"] = "tokens"
    prefill: Literal["majority", "every"] = "majority"
    max_wait: Annotated[int, Ge(1)] | None = None


@register("batching", "expert_aware")
class ExpertAware(Batching):
    """Requests for the most wanted expert go first. Needs a router that reveals routing early."""

    needs_routing = True
    Options = ExpertAwareOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ageing = Ageing(self.options.max_wait)

    def plan(self, queue: Queue) -> StepPlan:
        requests = sorted((*queue.running, *queue.waiting), key=lambda request: request.index)
        weight = {request.index: self._weight(request, queue) for request in requests}
        # Tokens that cannot be in this step do not count, nor do their experts.
        wants = {
            request.index: Counter(
                expert
                for row in queue.experts(request, queue.most_tokens(request))
                for expert in row
            )
            for request in requests
        }
        old, others = self._ageing.split(requests)
        if self.options.prefill == "majority":
            rest = _longest_queue_first(others, wants, weight)
        else:
            sets = {index: frozenset(counts) for index, counts in wants.items()}
            groups = fewest_experts_first(others, sets, weight, queue.token_budget)
            rest = chain.from_iterable(groups)
        plan = fill(queue, [*old, *rest])
        self._ageing.note(requests, plan)
        return plan

    def _weight(self, request: Any, queue: Queue) -> int:
        if self.options.unit == "requests":
            return 1
        return queue.most_tokens(request)


def _longest_queue_first(
    requests: Sequence[Any], wants: dict[int, Counter[int]], weight: dict[int, int]
) -> Iterator[Any]:
    queues: dict[int, list[Any]] = defaultdict(list)
    for request in requests:
        counts = wants[request.index]  # empty where a router leaves all places unused
        most = max(counts.values(), default=0)
        queues[min((e for e in counts if counts[e] == most), default=-1)].append(request)
    length = {e: sum(weight[request.index] for request in q) for e, q in queues.items()}
    for expert in sorted(queues, key=lambda e: (-length[e], queues[e][0].index)):
        yield from queues[expert]
