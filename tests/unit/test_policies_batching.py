"""A batching policy distributes the token budget in its own order, and never exceeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.policies import find, names
from moesim.policies.batching import Queue, StepPlan

# Those that need not know which experts are wanted; the others have tests of their own.
BLIND = [
    name
    for name in names("batching")
    if not (find("batching", name).needs_routing or find("batching", name).needs_static)
]


@dataclass(frozen=True)
class Request:
    index: int
    decoding: bool
    left: int

    @property
    def tokens_wanted(self) -> int:
        return 1 if self.decoding else self.left


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    request = st.builds(Request, st.integers(0, 99), st.booleans(), st.integers(1, 9))
    running = draw(st.lists(request, max_size=6, unique_by=lambda request: request.index))
    late = st.builds(Request, st.integers(100, 199), st.just(False), st.integers(1, 9))
    waiting = draw(st.lists(late, max_size=4, unique_by=lambda request: request.index))
    waiting.sort(key=lambda request: request.index)
    return Queue(running, waiting, draw(st.integers(1, 20)), draw(st.integers(0, 4)))


def plan(name: str, queue: Queue) -> StepPlan:
    return find("batching", name)().plan(queue)


def eligible(queue: Queue) -> list[Request]:
    """Return the requests that a step may serve: the running, and waiting ones that fit the cap."""
    return [*queue.running, *queue.waiting[: queue.free_sequences]]


@pytest.mark.parametrize("name", BLIND)
@given(queue=queues())
def test_a_plan_keeps_to_the_budget_and_leaves_none_of_it_to_waste(name: str, queue: Queue) -> None:
    planned = plan(name, queue)
    requests = [request for request, _ in planned]
    assert len(set(requests)) == len(requests)
    assert set(requests) <= {*queue.running, *queue.waiting}
    assert all(1 <= tokens <= request.tokens_wanted for request, tokens in planned)
    assert sum(request in queue.waiting for request in requests) <= queue.free_sequences
    wanted = sum(request.tokens_wanted for request in eligible(queue))
    assert sum(tokens for _, tokens in planned) == min(queue.token_budget, wanted)


@pytest.mark.parametrize("name", BLIND)
@given(queue=queues())
def test_only_the_last_of_a_plan_gets_less_than_it_wants(name: str, queue: Queue) -> None:
    assert all(tokens == request.tokens_wanted for request, tokens in plan(name, queue)[:-1])


@pytest.mark.parametrize("name", BLIND)
@given(queue=queues())
def test_waiting_requests_start_in_order_of_arrival(name: str, queue: Queue) -> None:
    started = [request for request, _ in plan(name, queue) if request in queue.waiting]
    assert started == queue.waiting[: len(started)]


def served(name: str, **queue: Any) -> list[int]:
    return [request.index for request, _ in plan(name, Queue(**queue))]


OLD_PREFILL, DECODE, WAITING = Request(0, False, 9), Request(1, True, 1), Request(2, False, 4)


@pytest.mark.parametrize(
    ("name", "order"),
    [("decode_first", [1, 0, 2]), ("prefill_first", [0, 2, 1]), ("fcfs", [0, 1, 2])],
)
def test_each_policy_has_its_order(name: str, order: list[int]) -> None:
    running = [OLD_PREFILL, DECODE]
    free = {"running": running, "waiting": [WAITING], "free_sequences": 1}
    assert served(name, **free, token_budget=100) == order
    assert served(name, **free, token_budget=1) == order[:1]
    assert served(name, **{**free, "free_sequences": 0}, token_budget=100) == [
        index for index in order if index != 2
    ]


def test_first_come_first_served_looks_at_arrival_not_at_admission() -> None:
    late, early = Request(7, True, 1), Request(3, True, 1)
    queue = {"running": [late, early], "waiting": [], "token_budget": 1, "free_sequences": 0}
    assert served("fcfs", **queue) == [3]
    assert served("decode_first", **queue) == [7]
