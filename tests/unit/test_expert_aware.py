"""Algorithm 1 of Read-ME, repaired: no request is lost, budget and order hold, few experts run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import ScenarioError
from moesim.policies import find, parse_options
from moesim.policies.batching import Queue, StepPlan

VARIANTS: list[dict[str, Any]] = [
    {"unit": unit, "prefill": prefill}
    for unit in ("tokens", "requests")
    for prefill in ("majority", "every")
]


@dataclass(frozen=True)
class Request:
    index: int
    wants: tuple[int, ...]  # the expert of each of its next tokens

    @property
    def decoding(self) -> bool:
        return len(self.wants) == 1

    @property
    def tokens_wanted(self) -> int:
        return len(self.wants)


def experts(request: Request, tokens: int) -> Sequence[Sequence[int]]:
    return [[expert] for expert in request.wants[:tokens]]


def queue_of(wants: Sequence[Sequence[int]], budget: int, free: int = 99) -> Queue:
    requests = [Request(number, tuple(each)) for number, each in enumerate(wants)]
    return Queue((), requests, budget, free, experts)


def policy(**options: Any) -> Any:
    made = find("batching", "expert_aware")
    return made(parse_options(made, options))


def served(plan: StepPlan) -> list[int]:
    return [request.index for request, _ in plan]


@st.composite
def queues(draw: st.DrawFn, longest: int = 5) -> Queue:
    expert = st.integers(0, 4)
    wants = draw(st.lists(st.lists(expert, min_size=1, max_size=longest), max_size=8))
    requests = [Request(number, tuple(each)) for number, each in enumerate(wants)]
    split = draw(st.integers(0, len(requests)))
    budget, free = draw(st.integers(1, 20)), draw(st.integers(0, 4))
    return Queue(requests[:split], requests[split:], budget, free, experts)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@given(queue=queues())
def test_no_request_is_planned_twice_and_the_budget_is_spent(options: Any, queue: Queue) -> None:
    plan = policy(**options).plan(queue)
    requests = [request for request, _ in plan]
    assert len(set(requests)) == len(requests)
    assert set(requests) <= {*queue.running, *queue.waiting}
    assert all(1 <= tokens <= request.tokens_wanted for request, tokens in plan)
    assert sum(tokens for _, tokens in plan) <= queue.token_budget
    admitted = [request for request in requests if request in queue.waiting]
    assert len(admitted) <= queue.free_sequences
    left = [r for r in queue.running if r not in requests]
    assert not left or sum(tokens for _, tokens in plan) == queue.token_budget


@given(queue=queues(longest=1))
def test_within_an_expert_it_is_first_come_first_served(queue: Queue) -> None:
    plan = policy().plan(queue)
    for expert in range(5):
        running = [r.index for r, _ in plan if r.wants == (expert,) and r in queue.running]
        others = [r.index for r in queue.running if r.wants == (expert,)]
        assert running == others[: len(running)]


@given(
    wants=st.lists(st.integers(0, 4), max_size=9),
    budget=st.integers(1, 9),
    prefill=st.sampled_from(["majority", "every"]),
)
def test_no_full_batch_takes_fewer_experts(wants: list[int], budget: int, prefill: str) -> None:
    """Decoding requests, one expert each: brute force over all sets of experts."""
    plan = policy(prefill=prefill).plan(queue_of([[expert] for expert in wants], budget))
    size = min(budget, len(wants))
    assert len(plan) == size
    have = Counter(wants)
    fewest = next(
        count
        for count in range(len(have) + 1)
        if any(sum(have[e] for e in chosen) >= size for chosen in combinations(have, count))
    )
    assert len({request.wants for request, _ in plan}) == fewest


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_empty_queues_end(options: Any) -> None:
    assert policy(**options).plan(queue_of([], 8)) == []


def test_the_longest_queue_goes_first_and_ties_go_to_the_earliest_request() -> None:
    assert served(policy().plan(queue_of([[2], [1], [0], [1], [0]], 4))) == [1, 3, 2, 4]


def test_what_a_queue_counts_matters() -> None:
    wants = [[0, 0, 0, 0], [1], [1]]
    assert served(policy(unit="tokens").plan(queue_of(wants, 5))) == [0, 1]
    assert served(policy(unit="requests").plan(queue_of(wants, 5))) == [1, 2, 0]


def test_where_a_prompt_queues_matters() -> None:
    wants = [[3, 3, 2, 1], [2], [2], [2]]
    assert served(policy(prefill="majority").plan(queue_of(wants, 9))) == [0, 1, 2, 3]
    assert served(policy(prefill="every").plan(queue_of(wants, 9))) == [1, 2, 3, 0]


def test_more_experts_are_worth_no_more_than_the_batch_holds() -> None:
    """Two experts would admit five prompts of 4 rows; where one prompt fits, one expert will do."""
    wants = [[0, 1, 0, 1]] * 5 + [[5, 5, 5, 5]]
    assert served(policy(prefill="every").plan(queue_of(wants, 4))) == [5]
    assert served(policy(prefill="every").plan(queue_of(wants, 20))) == [0, 1, 2, 3, 4]


def test_a_rare_expert_starves_unless_it_may_go_first_after_a_while() -> None:
    crowd = [[0] for _ in range(4)]

    def waits(**options: Any) -> int:
        """Return the steps until the request for expert 9 is served, while others keep arriving."""
        made = policy(**options)
        for step in range(20):
            if 0 in served(made.plan(queue_of([[9], *crowd], 2))):
                return step
        return 20

    assert waits() == 20
    assert waits(max_wait=3) == 3


def test_a_layerwise_router_does_not_reveal_what_it_asks_for() -> None:
    scenario = tiny_scenario(batching={"policy": "expert_aware"})
    with pytest.raises(ScenarioError, match="expert_aware needs the experts of queued tokens"):
        plan_of(scenario, tiny_trace())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_serves_whole_workloads(options: Any) -> None:
    trace = tiny_trace(requests=6, prompt_tokens=5, output_tokens=6).with_meta(router="decoupled")
    batching = {"policy": "expert_aware", "options": options, "token_budget": 8, "max_sequences": 4}
    outcome = run_on(plan_of(tiny_scenario(batching=batching), trace))
    assert all(request.finished for request in outcome.requests)
