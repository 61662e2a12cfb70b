"""Task-aware batching loses no request, keeps budget and order, and takes few experts per step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from workloads import (
    REFACTORED_CONFIG,
    plan_of,
    run_on,
    static_trace,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import PolicyViolation, ScenarioError
from moesim.policies import find, parse_options
from moesim.policies.batching import Queue, StepPlan
from moesim.simulate import Outcome

Keys = frozenset[int]
both = pytest.mark.parametrize("mix", [True, False])


@dataclass(frozen=True)
class Request:
    index: int
    tokens_wanted: int
    wants: Keys

    @property
    def decoding(self) -> bool:
        return self.tokens_wanted == 1


def wants(request: Request) -> Keys:
    return request.wants


def queue_of(
    tasks: Sequence[Sequence[int]], budget: int, tokens: Sequence[int] = (), first: int = 0
) -> Queue:
    """Return a queue of running requests that want these keys, numbered from `first`."""
    sizes = tokens or [1] * len(tasks)
    requests = [
        Request(first + number, size, frozenset(keys))
        for number, (keys, size) in enumerate(zip(tasks, sizes, strict=True))
    ]
    return Queue(requests, (), budget, 0, wants=wants)


def policy(**options: Any) -> Any:
    made = find("batching", "task_aware")
    return made(parse_options(made, options))


def served(plan: StepPlan) -> list[int]:
    return [request.index for request, _ in plan]


def keys_of(requests: Any) -> Keys:
    return frozenset(chain.from_iterable(request.wants for request in requests))


def keys_in(plan: StepPlan) -> Keys:
    return keys_of(request for request, _ in plan)


ANY = st.frozensets(st.integers(0, 6), min_size=1, max_size=4)
PAIRS = st.frozensets(st.integers(0, 5), min_size=2, max_size=2)  # all of one size, any overlap
APART = st.sampled_from([frozenset({0}), frozenset({1, 2}), frozenset({3, 4, 5}), frozenset({6})])


@st.composite
def queues(draw: st.DrawFn, tasks: Any = ANY, longest: int = 5, running: bool = False) -> Queue:
    wanted = draw(st.lists(st.tuples(st.integers(1, longest), tasks), max_size=7))
    requests = [Request(number, *each) for number, each in enumerate(wanted)]
    split = len(requests) if running else draw(st.integers(0, len(requests)))
    free = draw(st.integers(0, 4))
    return Queue(requests[:split], requests[split:], draw(st.integers(1, 12)), free, wants=wants)


@both
@given(data=st.data())
def test_no_request_is_planned_twice_and_the_budget_is_kept(mix: bool, data: st.DataObject) -> None:
    made = policy(mix=mix, max_wait=data.draw(st.sampled_from([None, 1, 2])))
    for _ in range(3):
        queue = data.draw(queues())
        plan = made.plan(queue)
        requests = [request for request, _ in plan]
        assert len(set(requests)) == len(requests)
        assert set(requests) <= {*queue.running, *queue.waiting}
        assert all(1 <= tokens <= request.tokens_wanted for request, tokens in plan)
        total = sum(tokens for _, tokens in plan)
        assert total <= queue.token_budget
        admitted = [request for request in requests if request in queue.waiting]
        assert len(admitted) <= queue.free_sequences
        there = queue.running or (queue.waiting and queue.free_sequences)
        assert bool(plan) == bool(there)
        left = [request for request in queue.running if request not in requests]
        assert not mix or not left or total == queue.token_budget


@both
def test_empty_queues_end(mix: bool) -> None:
    assert policy(mix=mix).plan(queue_of([], 8)) == []


@both
@given(data=st.data())
def test_within_a_task_it_is_first_come_first_served(mix: bool, data: st.DataObject) -> None:
    made = policy(mix=mix)
    for _ in range(3):
        queue = data.draw(queues(running=True))
        plan = made.plan(queue)
        for task in {request.wants for request in queue.running}:
            mine = [request for request in queue.running if request.wants == task]
            chosen = [request for request, _ in plan if request.wants == task]
            assert chosen == mine[: len(chosen)]


@given(queue=queues(PAIRS | APART, running=True))
def test_no_batch_that_serves_as_much_wants_fewer_experts(queue: Queue) -> None:
    """Compare a first step without mixing with brute force over all sets of requests.

    If all tasks want the same number of keys, or no two tasks share a key, the step has the fewest
    distinct keys that can serve its number of tokens. (If small tasks overlap with large ones,
    several together may serve more tokens per key than one. The policy considers single tasks.)"""
    tasks = {request.wants for request in queue.running}
    apart = all(not one & other for one, other in combinations(tasks, 2))
    assume(apart or len({len(task) for task in tasks}) == 1)
    plan = policy(mix=False).plan(queue)
    tokens = sum(count for _, count in plan)
    assert sum(min(r.tokens_wanted, queue.token_budget) for r, _ in plan) >= tokens
    sets = chain.from_iterable(
        combinations(queue.running, count) for count in range(len(queue.running) + 1)
    )
    enough = (
        requests
        for requests in sets
        if min(sum(r.tokens_wanted for r in requests), queue.token_budget) >= tokens
    )
    assert len(keys_in(plan)) == min(len(keys_of(requests)) for requests in enough)


@given(queue=queues(ANY, running=True))
def test_without_mixing_a_step_wants_the_keys_of_one_request(queue: Queue) -> None:
    """It is the request that serves most tokens per key, with all requests that want a subset.

    No request that wants a subset is left out while there is budget.
    """
    assume(queue.running)
    plan = policy(mix=False).plan(queue)

    def admits(task: Keys) -> int:
        size = sum(r.tokens_wanted for r in queue.running if r.wants <= task)
        return min(size, queue.token_budget)

    worth = max(admits(r.wants) / len(r.wants) for r in queue.running)
    best = [r.wants for r in queue.running if admits(r.wants) / len(r.wants) == worth]
    assert any(
        keys_in(plan) <= task and sum(count for _, count in plan) == admits(task) for task in best
    )


@given(
    tasks=st.lists(st.integers(0, 4), max_size=9),
    budget=st.integers(1, 9),
)
def test_no_full_batch_wants_fewer_experts_of_tasks_apart(tasks: list[int], budget: int) -> None:
    """Decoding requests, with mixing; each task has two keys of its own; checked by brute force."""
    queue = queue_of([[2 * task, 2 * task + 1] for task in tasks], budget)
    plan = policy().plan(queue)
    size = min(budget, len(tasks))
    assert len(plan) == size
    fewest = min(len(keys_of(requests)) for requests in combinations(queue.running, size))
    assert len(keys_in(plan)) == fewest


@both
@given(data=st.data())
def test_requests_that_want_no_more_than_the_step_before_go_first(
    mix: bool, data: st.DataObject
) -> None:
    made = policy(mix=mix)
    held = keys_in(made.plan(data.draw(queues(running=True))))
    queue = data.draw(queues(running=True))
    plan = made.plan(queue)
    within = [request for request in queue.running if request.wants <= held]
    first = [request for request, _ in plan][: len(within)]
    assert first == within[: len(first)]
    assert mix or not within or keys_in(plan) <= held


def test_a_task_is_continued_and_then_the_one_that_serves_most_per_key_is_taken() -> None:
    made = policy(mix=False)
    a, b, c = [0, 10], [1, 11], [2, 12]
    assert served(made.plan(queue_of([c, a, b, b], 4))) == [2, 3]
    assert served(made.plan(queue_of([a, a, a, b], 4))) == [3]  # b still
    assert served(made.plan(queue_of([c, a, a, c, c], 4))) == [0, 3, 4]
    assert served(made.plan(queue_of([b, a, c, b], 4))) == [2]  # of b it knows no more


def test_what_is_left_of_the_budget_goes_where_fewest_keys_are_missing() -> None:
    """After the two of task {0, 1}, {0, 2} needs one key more, {3, 4} two for twice as many."""
    tasks = [[3, 4], [0, 1], [3, 4], [0, 2], [0, 1], [0, 1]]
    assert served(policy().plan(queue_of(tasks, 9))) == [1, 4, 5, 0, 2, 3]
    assert served(policy().plan(queue_of([*tasks, [0, 2]], 9))) == [1, 4, 5, 3, 6, 0, 2]
    assert served(policy(mix=False).plan(queue_of(tasks, 9))) == [1, 4, 5]


def test_ties_go_to_the_earliest_request() -> None:
    tasks = [[4, 5], [0, 1], [2, 3], [0, 1], [4, 5]]
    assert served(policy().plan(queue_of(tasks, 9))) == [0, 4, 1, 3, 2]
    assert served(policy(mix=False).plan(queue_of(tasks, 9))) == [0, 4]


def test_more_keys_are_worth_no_more_than_the_batch_holds() -> None:
    """Two keys would serve five tokens; where two fit, one key will do."""
    tasks = [[0, 1]] * 5 + [[7]] * 2
    assert served(policy().plan(queue_of(tasks, 2))) == [5, 6]
    assert served(policy().plan(queue_of(tasks, 9))) == [0, 1, 2, 3, 4, 5, 6]


def test_requests_that_want_nothing_are_served_too() -> None:
    assert served(policy(mix=False).plan(queue_of([[], [1]], 4))) == [0]
    assert served(policy().plan(queue_of([[1], []], 4))) == [1, 0]


# --- ageing ---------------------------------------------------------------------------------------


@both
def test_a_rare_task_starves_unless_it_may_go_first_after_a_while(mix: bool) -> None:
    def waits(**options: Any) -> int:
        """Return the steps until the request of a rare task is served; others keep arriving."""
        made = policy(mix=mix, **options)
        for step in range(20):
            if 0 in served(made.plan(queue_of([[9, 19], *[[0, 10]] * 4], 2))):
                return step
        return 20

    assert waits() == 20
    assert waits(max_wait=3) == 3


@both
@given(
    tasks=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    budget=st.integers(1, 4),
    spare=st.integers(0, 4),
)
def test_ageing_bounds_how_long_a_request_is_passed_over(
    mix: bool, tasks: list[int], budget: int, spare: int
) -> None:
    """Requests decode without end; `turn` steps could serve them all.

    If `max_wait` is at least `turn`, all old requests are served before a served one is old again.
    So no request is passed over more than max_wait + turn - 1 times.
    """
    turn = -(-len(tasks) // budget)
    max_wait = turn + spare
    made = policy(mix=mix, max_wait=max_wait)
    queue = queue_of([[task, 10 + task] for task in tasks], budget)
    passed_over = dict.fromkeys(range(len(tasks)), 0)
    for _ in range(60):
        chosen = served(made.plan(queue))
        for index in passed_over:
            passed_over[index] = 0 if index in chosen else passed_over[index] + 1
            assert passed_over[index] < max_wait + turn


@both
def test_an_old_request_goes_first_whatever_it_wants(mix: bool) -> None:
    made = policy(mix=mix, max_wait=1)
    a, b, c = [0, 10], [1, 11], [2, 12]
    assert served(made.plan(queue_of([b, a, a, a, c], 3))) == [1, 2, 3]
    aged = served(made.plan(queue_of([b, a, a, a, c, b], 4)))
    assert aged == ([0, 4, 1, 2] if mix else [0, 4, 5])  # then a still, or those of b and c


# --- in a run -------------------------------------------------------------------------------------


def run(tasks: int = 3, requests: int = 9, **options: Any) -> Outcome:
    trace = tiny_trace(requests=requests, prompt_tokens=5, output_tokens=6, stickiness=0.0, seed=2)
    batching = {"policy": "task_aware", "options": options, "token_budget": 8, "max_sequences": 6}
    cache = {"policy": "lru", "slots": "3/layer"}
    scenario = tiny_scenario(batching=batching, cache=cache, memory={"kv": "100MB"})
    return run_on(plan_of(scenario, static_trace(trace, tasks)))


@pytest.mark.parametrize("options", [{}, {"mix": False}, {"max_wait": 2}], ids=str)
def test_it_serves_whole_workloads(options: Any) -> None:
    assert all(request.finished for request in run(**options).requests)


@both
@pytest.mark.parametrize("blocks", [11, 14, 20])
def test_it_serves_whole_workloads_where_memory_is_tight(mix: bool, blocks: int) -> None:
    trace = tiny_trace(requests=9, prompt_tokens=5, output_tokens=6, stickiness=0.0)
    scenario = tiny_scenario(
        memory={"kv": blocks * 8192, "kv_block_tokens": 1},
        batching={
            "policy": "task_aware",
            "options": {"mix": mix},
            "token_budget": 3,
            "max_sequences": 4,
        },
    )
    outcome = run_on(plan_of(scenario, static_trace(trace, 4)))
    assert all(request.finished for request in outcome.requests)


def test_without_mixing_every_layer_event_is_of_one_task() -> None:
    """With top-2, every step wants two experts per layer; other policies want and load more."""
    apart, mixed = run(mix=False).ledger, run().ledger
    assert {len(union) for union in apart.layer_events()} == {2}
    assert max(len(union) for union in mixed.layer_events()) > 2
    assert sum(apart.demand_copies) < sum(mixed.demand_copies)


@pytest.mark.parametrize("router", ["layerwise", "pregated", "decoupled"])
def test_other_routers_do_not_reveal_what_it_asks_for(router: str) -> None:
    trace = tiny_trace().with_meta(router=router, model_config=REFACTORED_CONFIG)
    said = f"task_aware needs the experts of all future tokens; the trace's router is {router}, and"
    with pytest.raises(ScenarioError, match=said) as caught:
        plan_of(tiny_scenario(batching={"policy": "task_aware"}), trace)
    assert caught.value.exit_code == 2


def test_a_queue_of_another_router_refuses_to_say_what_it_will_want() -> None:
    queue = Queue([Request(7, 1, frozenset({1}))], (), 4, 0)
    with pytest.raises(PolicyViolation, match=r"request 7.*what a request will ever want"):
        policy().plan(queue)


def test_results_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from test_task_aware import run; from workloads import everything, decisions\n"
        "runs = [run(mix=mix, max_wait=4) for mix in (False, True)]\n"
        "print([(everything(one), decisions(one)) for one in runs])"
    )
    tests = Path(__file__).parent
    support = str(tests.parent / "support")
    path = os.pathsep.join([str(tests), support, os.environ.get("PYTHONPATH", "")])
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1
    assert len(said.pop()) > 1000
