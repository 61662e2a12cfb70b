"""Without chunked prefill no prompt is cut, and only a prompt alone exceeds the token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import (
    REFACTORED_CONFIG,
    plan_of,
    random_case,
    run_on,
    static_trace,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import BudgetError, PolicyViolation, ScenarioError
from moesim.policies import find, parse_options
from moesim.policies.batching import Batching, Queue, StepPlan, fill
from moesim.scenario import Scenario
from moesim.serving.budget import largest_step, plan_budget
from moesim.serving.kv import BlockPool
from moesim.serving.replay import Replay
from moesim.serving.request import Request
from moesim.serving.run_log import Observer, Planned, RunLog
from moesim.serving.scheduler import Batch, Scheduler
from moesim.simulate import Outcome, Plan

ORDERS = ["decode_first", "prefill_first", "fcfs"]
every_order = pytest.mark.parametrize("order", ORDERS)
Steps = list[list[tuple[int, int]]]


# --- one plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queued:
    index: int
    tokens_wanted: int
    decoding: bool = False


def decodes(count: int) -> list[Queued]:
    return [Queued(index, 1, True) for index in range(count)]


def prompts(*lengths: int) -> list[Queued]:
    return [Queued(10 + number, length) for number, length in enumerate(lengths)]


def filled(running: Sequence[Queued], waiting: Sequence[Queued], budget: int = 8) -> list[int]:
    """Return the indices of a plan in which running requests go first, all of them whole."""
    queue = Queue(running, waiting, budget, 9, whole_prompts=True)
    plan = fill(queue, (*running, *waiting))
    assert all(tokens == request.tokens_wanted for request, tokens in plan)
    return [request.index for request, _ in plan]


def test_a_prompt_that_does_not_fit_waits_and_is_not_overtaken() -> None:
    assert filled(decodes(2), prompts(6)) == [0, 1, 10]
    assert filled(decodes(2), prompts(7, 1)) == [0, 1]
    assert filled([], prompts(5, 4, 3)) == [10]


def test_decodes_behind_a_prompt_that_waits_use_the_rest() -> None:
    running, waiting = decodes(3), prompts(6, 3)
    queue = Queue(running, waiting, 8, 9, whole_prompts=True)
    plan = fill(queue, (*waiting, *running))
    assert [request.index for request, _ in plan] == [10, 0, 1]


def test_a_prompt_over_the_budget_joins_alone_and_ends_the_plan() -> None:
    assert filled(decodes(7), prompts(9, 1)) == [*range(7), 10]
    assert filled(decodes(8), prompts(9)) == [*range(8)]
    assert filled([], prompts(2, 9, 1)) == [10]
    running, waiting = decodes(1), prompts(9)
    assert fill(Queue(running, waiting, 8, 9, whole_prompts=True), (*waiting, *running)) == [
        (waiting[0], 9)
    ]


def test_no_more_requests_start_than_may_run() -> None:
    plan = fill(Queue((), prompts(1, 1, 1), 8, 2, whole_prompts=True), prompts(1, 1, 1))
    assert [request.index for request, _ in plan] == [10, 11]


def test_a_waiting_request_of_one_token_does_not_overtake_a_prompt_either() -> None:
    """With a skipped prefill a new request wants one token at once; it still waits its turn."""
    waiting = [Queued(10, 8), Queued(11, 1, True)]
    assert filled(decodes(1), waiting) == [0]


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    running = decodes(draw(st.integers(0, 6)))
    waiting = prompts(*draw(st.lists(st.integers(1, 12), max_size=5)))
    free = draw(st.integers(0, 5))
    return Queue(running, waiting, draw(st.integers(1, 9)), free, whole_prompts=True)


def check_whole(plan: Sequence[tuple[Any, int]], budget: int) -> None:
    """Assert that no prompt is cut and that only a long one exceeds the budget, alone."""
    assert all(tokens == request.tokens_wanted for request, tokens in plan)
    if sum(tokens for _, tokens in plan) > budget:
        *others, (long, tokens) = plan
        assert tokens > budget
        assert not long.decoding
        assert all(request.decoding for request, _ in others)
        assert sum(count for _, count in others) < budget


@every_order
@given(queue=queues())
def test_a_plan_is_whole_and_prompts_start_in_order(order: str, queue: Queue) -> None:
    plan = find("batching", order)().plan(queue)
    check_whole(plan, queue.token_budget)
    started = [request for request, _ in plan if request in queue.waiting]
    assert started == queue.waiting[: len(started)]
    assert len(started) <= queue.free_sequences
    assert bool(plan) == bool(queue.running or (queue.waiting and queue.free_sequences))


def test_policies_count_all_tokens_that_the_step_can_compute() -> None:
    request = prompts(12)[0]
    assert Queue((), [request], 8, 9).most_tokens(request) == 8
    assert Queue((), [request], 8, 9, whole_prompts=True).most_tokens(request) == 12


def test_a_whole_prompt_weighs_all_its_tokens_in_expert_aware_batching() -> None:
    """Requests 10 and 11 want expert 0 twice over the budget; the others outweigh a cut prompt."""
    wants = {10: 0, 11: 1, 12: 1}
    requests = prompts(12, 5, 5)

    def experts(request: Any, tokens: int) -> list[list[int]]:
        return [[wants[request.index]]] * tokens

    policy = find("batching", "expert_aware")
    made = policy(parse_options(policy, {}))
    whole, cut = (
        made.plan(Queue((), requests, 8, 9, experts, whole_prompts=whole))[0][0].index
        for whole in (True, False)
    )
    assert (whole, cut) == (10, 11)


# --- many steps -----------------------------------------------------------------------------------


def request_of(index: int, prompt: int, output: int) -> Request:
    rows = np.arange(1000 * index, 1000 * index + prompt + output - 1)
    return Request(index, arrival_ns=0, prompt_tokens=prompt, output_tokens=output, rows=rows)


def scheduler(
    order: str | Batching,
    *,
    budget: int,
    cap: int = 4,
    blocks: int = 1000,
    block_tokens: int = 1,
    observers: Sequence[Observer] = (),
) -> Scheduler:
    policy = find("batching", order)() if isinstance(order, str) else order
    pool = BlockPool(blocks, block_tokens)
    return Scheduler(
        policy,
        pool,
        token_budget=budget,
        max_sequences=cap,
        whole_prompts=True,
        observers=observers,
    )


def advance(queue: Scheduler, plan: Batch) -> None:
    """Do what the server does after a step."""
    for request, tokens in plan:
        request.position += tokens
        assert request.position == request.target, "a whole prompt emits a token at once"
        request.emitted += 1
        if request.finished:
            queue.finish(request)


Lengths = list[tuple[int, int, int]]  # prompt, output, steps until the next arrival


def served(queue: Scheduler, lengths: Lengths) -> Steps:
    """Return all steps of requests that arrive between steps."""
    steps: Steps = []
    coming = [request_of(number, *each[:2]) for number, each in enumerate(lengths)]
    gaps, wait = [gap for *_, gap in lengths], 0
    while coming or queue.waiting or queue.running:
        while coming and wait <= 0:
            queue.arrive(coming.pop(0))
            wait = gaps.pop(0)
        wait -= 1
        plan = queue.next_step()
        if plan:
            check_whole(plan, queue._token_budget)
            steps.append([(request.index, tokens) for request, tokens in plan])
            advance(queue, plan)
    return steps


lengths = st.lists(
    st.tuples(st.integers(1, 14), st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=8
)


def started_of(prompts: list[tuple[int, int]], room: int, budget: int) -> list[tuple[int, int]]:
    """Return the (index, length) pairs of `prompts` that start in a step with `room` tokens left.

    These are the longest prefix that fits, or one prompt longer than the whole budget.
    """
    sums = np.cumsum([length for _, length in prompts])
    fitting = int(np.searchsorted(sums, room, side="right"))
    if not fitting and room and prompts and prompts[0][1] > budget:
        return prompts[:1]
    return prompts[:fitting]


def oracle(order: str, lengths: Lengths, budget: int, cap: int) -> Steps:
    """Return the steps of a scheduler with unlimited memory, written without `fill`."""
    arrives = np.cumsum([0] + [gap for *_, gap in lengths[:-1]])
    left = [output for _, output, _ in lengths]
    waiting = list(range(len(lengths)))
    running: list[int] = []
    steps: Steps = []
    clock = 0
    while waiting or running:
        arrived = [i for i in waiting if arrives[i] <= clock][: cap - len(running)]
        prompts = [(i, lengths[i][0]) for i in arrived]
        if order == "decode_first":
            some = running[:budget]
            started = started_of(prompts, budget - len(some), budget)
            step = [(i, 1) for i in some] + started
        else:
            started = started_of(prompts, budget, budget)
            some = running[: max(0, budget - sum(length for _, length in started))]
            step = started + [(i, 1) for i in some]
        for index, _ in started:
            waiting.remove(index)
            running.append(index)
        for index, _ in step:
            left[index] -= 1
        running = [index for index in running if left[index]]
        if step:
            steps.append(step)
        clock += 1
    return steps


@pytest.mark.parametrize("order", ["decode_first", "prefill_first"])
@settings(max_examples=300)
@given(lengths, st.integers(1, 12), st.integers(1, 5))
def test_steps_are_those_of_an_independent_scheduler(
    order: str, lengths: Lengths, budget: int, cap: int
) -> None:
    assert served(scheduler(order, budget=budget, cap=cap), lengths) == oracle(
        order, lengths, budget, cap
    )


@every_order
@settings(max_examples=200)
@given(lengths, st.integers(1, 12), st.integers(1, 5), st.integers(2, 24), st.integers(1, 4))
def test_every_request_ends_in_any_memory(
    order: str, lengths: Lengths, budget: int, cap: int, blocks: int, block_tokens: int
) -> None:
    queue = scheduler(order, budget=budget, cap=cap, blocks=blocks, block_tokens=block_tokens)
    steps = served(queue, lengths)
    assert queue.pool.free == queue.pool.total
    bound = largest_step(
        Scenario.model_validate(
            tiny_scenario(batching=limits(token_budget=budget, max_sequences=cap))
        ).batching,
        [prompt + output - 1 for prompt, output, _ in lengths],
    )
    assert max((sum(tokens for _, tokens in step) for step in steps), default=0) <= bound
    emitted = np.bincount([i for step in steps for i, _ in step], minlength=len(lengths))
    fits = [prompt + output - 1 <= blocks * block_tokens for prompt, output, _ in lengths]
    assert emitted.tolist() == [
        output if fit else 0 for (_, output, _), fit in zip(lengths, fits, strict=True)
    ]


def test_a_policy_sees_a_prompt_only_if_all_of_it_fits_into_memory() -> None:
    """Ten blocks: beside the first request, the second finds eight of its nine."""
    seen: list[list[int]] = []

    def answer(queue: Queue) -> StepPlan:
        seen.append([request.index for request in queue.waiting])
        return fill(queue, (*queue.running, *queue.waiting))

    queue = scheduler(Answers(answer), budget=3, blocks=10)
    steps = served(queue, [(1, 3, 1), (9, 1, 0), (1, 1, 0)])
    assert steps == [[(0, 1)], [(0, 1)], [(0, 1)], [(1, 9)], [(2, 1)]]
    assert seen == [[0], [], [], [1, 2], [2]]


@every_order
def test_a_preempted_request_recomputes_its_rows_in_one_step(order: str) -> None:
    """Seven blocks: both reach three rows, the older takes the seventh, the younger starts over."""
    queue = scheduler(order, budget=3, blocks=7)
    steps = served(queue, [(2, 5, 0), (2, 5, 0)])
    assert queue.preemptions == 1
    assert max(tokens for step in steps for index, tokens in step if index == 1) > 3


@every_order
@pytest.mark.parametrize("long", [7, 8, 20])
def test_a_long_prompt_does_not_starve_among_short_ones(order: str, long: int) -> None:
    """Short requests arrive in every step; the long one waits for those before it alone."""
    short = (2, 3, 1)
    steps = served(scheduler(order, budget=8), [short, (long, 2, 1), *[short] * 40])
    first = {index: n for n, step in reversed(list(enumerate(steps))) for index, _ in step}
    assert first[1] <= 4
    assert first[1] <= first[2]


def test_a_replayed_schedule_gives_the_same_steps() -> None:
    lengths = [(9, 4, 0), (3, 5, 0), (14, 2, 0), (2, 6, 0)]
    log = RunLog(Planned)
    recorded = served(scheduler("prefill_first", budget=8, blocks=18, observers=[log]), lengths)
    plans = [it.plan for it in log.of(Planned)]
    assert served(scheduler(Replay(plans), budget=8, blocks=18), lengths) == recorded


# --- plans that break the rules -------------------------------------------------------------------


class Answers(Batching):
    """A policy whose plan is a function of the queue."""

    name = "answers"

    def __init__(self, answer: Callable[[Queue], StepPlan]) -> None:
        super().__init__()
        self.answer = answer

    def plan(self, queue: Queue) -> StepPlan:
        return self.answer(queue)


def whole(*indices: int) -> Callable[[Queue], StepPlan]:
    """Return a policy's answer that plans these requests, all their tokens."""

    def answer(queue: Queue) -> StepPlan:
        queued = {request.index: request for request in (*queue.running, *queue.waiting)}
        return [(queued[index], queued[index].tokens_wanted) for index in indices]

    return answer


BROKEN: list[tuple[str, Callable[[Queue], StepPlan], str]] = [
    ("a cut prompt", lambda queue: [(queue.waiting[0], 3)], "3 of its 9 tokens"),
    ("two long prompts", whole(0, 1), "has 18 tokens, over the budget of 8"),
    ("a long prompt after a short one", whole(2, 0), "has 11 tokens, over the budget"),
    ("something after a long prompt", whole(0, 2), "has 11 tokens, over the budget"),
    ("short prompts over the budget", whole(2, 3), "has 9 tokens, over the budget"),
]


@pytest.mark.parametrize(
    ("answer", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_a_plan_that_breaks_the_rules_is_refused(
    answer: Callable[[Queue], StepPlan], message: str
) -> None:
    queue = scheduler(Answers(answer), budget=8)
    for index, prompt in enumerate((9, 9, 2, 7)):
        queue.arrive(request_of(index, prompt, 2))
    with pytest.raises(PolicyViolation, match=message) as caught:
        queue.next_step()
    assert caught.value.policy == "answers"


def test_a_long_prompt_needs_a_token_of_the_budget() -> None:
    class Script(Batching):
        name = "script"
        step = 0

        def plan(self, queue: Queue) -> StepPlan:
            self.step += 1
            return whole(*range(2 if self.step == 1 else 3))(queue)

    queue = scheduler(Script(), budget=2)
    for index, prompt in enumerate((1, 1, 9)):
        queue.arrive(request_of(index, prompt, 3))
    advance(queue, queue.next_step())
    with pytest.raises(PolicyViolation, match="has 11 tokens, over the budget of 2"):
        queue.next_step()


# --- whole runs -----------------------------------------------------------------------------------


def limits(**changes: Any) -> dict[str, Any]:
    return {"chunked_prefill": False, **changes}


def sizes_are_whole(outcome: Outcome) -> None:
    """Assert that each step's prompt tokens are those of whole prompts."""
    budget = outcome.plan.scenario.batching.token_budget
    columns = outcome.ledger.step_columns()
    over = columns["tokens"] > budget
    assert (columns["prefill_tokens"][over] > budget).all()
    assert (columns["decode_tokens"][over] < budget).all()
    if not sum(request.preemptions for request in outcome.requests):
        done = [request for request in outcome.requests if request.status == "finished"]
        prompts = sum(request.prompt_tokens for request in done)
        assert columns["prefill_tokens"].sum() == prompts
        assert columns["tokens"].sum() == sum(request.max_kv_tokens for request in done)


POLICIES: list[tuple[str, dict[str, Any]]] = [
    *((order, {}) for order in ORDERS),
    ("expert_aware", {}),
    ("expert_aware", {"prefill": "every", "unit": "requests", "max_wait": 2}),
    ("task_aware", {}),
    ("task_aware", {"mix": False, "max_wait": 2}),
]


@pytest.mark.parametrize(("policy", "options"), POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_every_policy_serves_whole_prompts_to_the_end(
    policy: str, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    trace = tiny_trace(requests=9, prompt_tokens=6, output_tokens=5, seed=seed)
    if policy == "expert_aware":
        trace = trace.with_meta(router="decoupled", model_config=REFACTORED_CONFIG)
    elif policy == "task_aware":
        trace = static_trace(trace, tasks=3)
    batching = limits(
        policy=policy,
        options=options,
        token_budget=int(rng.integers(1, 12)),
        max_sequences=int(rng.integers(1, 6)),
    )
    memory = {"kv": int(rng.integers(12, 40)) * 8192, "kv_block_tokens": 1}
    outcome = run_on(plan_of(tiny_scenario(batching=batching, memory=memory), trace))
    assert {request.status for request in outcome.requests} <= {"finished", "rejected"}
    assert any(request.status == "finished" for request in outcome.requests)
    sizes_are_whole(outcome)


def test_random_runs_are_whole() -> None:
    for seed in range(60):
        scenario, trace = random_case(3000 + seed)
        scenario["batching"]["chunked_prefill"] = False
        sizes_are_whole(run_on(plan_of(scenario, trace)))


def test_prompts_within_the_budget_that_come_alone_are_the_same_either_way() -> None:
    trace = tiny_trace(requests=4, prompt_tokens=5, output_tokens=4)
    unsplit, chunked = (
        run_on(
            plan_of(tiny_scenario(batching={"max_sequences": 1, "chunked_prefill": chunked}), trace)
        )
        for chunked in (False, True)
    )
    assert unsplit.ledger.steps == chunked.ledger.steps


# --- long prompts ---------------------------------------------------------------------------------


THREE = tiny_trace(requests=3, prompt_tokens=6, output_tokens=9)
LONGEST = int(THREE.requests["prompt_tokens"].max())


def refusing(token_budget: int, kv: Any = "auto") -> Plan:
    """Return a plan of three requests whose prompts may not exceed the budget."""
    batching = limits(long_prompts="refuse", token_budget=token_budget, max_sequences=3)
    memory = {"kv": kv, "kv_block_tokens": 1}
    return plan_of(tiny_scenario(batching=batching, memory=memory), THREE)


def test_a_prompt_over_the_budget_is_refused_before_the_run_if_asked() -> None:
    with pytest.raises(ScenarioError) as caught:
        refusing(LONGEST - 1)
    message = str(caught.value)
    assert "batching.long_prompts: refuses request" in message
    assert f"the longest prompt, {LONGEST} tokens, exceeds the token budget of" in message


def test_rows_lost_by_a_preemption_are_refused_only_where_one_can_happen() -> None:
    roomy = run_on(refusing(LONGEST))
    assert roomy.ledger.step_columns()["tokens"].max() <= LONGEST
    with pytest.raises(ScenarioError, match=r"if it is preempted, it computes up to \d+ tokens"):
        refusing(LONGEST, kv=20 * 8192)
    tight = run_on(refusing(40, kv=20 * 8192))
    assert sum(request.preemptions for request in tight.requests) > 0


def test_a_skipped_prefill_has_no_prompt_to_refuse() -> None:
    batching = limits(long_prompts="refuse", token_budget=3)
    scenario = tiny_scenario(batching=batching, workload={"prefill": "skip"})
    outcome = run_on(plan_of(scenario, tiny_trace(requests=3, prompt_tokens=6, output_tokens=4)))
    assert outcome.ledger.step_columns()["tokens"].max() <= 3


def test_activations_are_of_the_largest_step() -> None:
    def activations(**batching: Any) -> int:
        scenario = Scenario.model_validate(tiny_scenario(batching=batching))
        shape = plan_of(tiny_scenario(), tiny_trace()).cost.shape
        return plan_budget(scenario, shape, 1 << 34, [100, 30]).activations_bytes

    at_most = {"token_budget": 8, "max_sequences": 4}
    assert activations(**at_most) < activations(**at_most, chunked_prefill=False)
    # Three decodes fit beside the 100 rows: the budget leaves room for seven, the cap for three.
    assert activations(**at_most, chunked_prefill=False) == activations(
        token_budget=103, max_sequences=4
    )
    refuses = limits(long_prompts="refuse", **at_most)
    assert activations(**refuses) == activations(**at_most)
    fits = {"token_budget": 100, "max_sequences": 4}
    assert activations(**fits, chunked_prefill=False) == activations(**fits)


@pytest.mark.parametrize("kv", ["auto", "rest"])
def test_memory_that_long_whole_prompts_exceed_suggests_to_cut_them(kv: str) -> None:
    shape = plan_of(tiny_scenario(), tiny_trace()).cost.shape

    def plan(vram: int, *, cut: bool, kv: str = kv) -> int:
        batching = {"token_budget": 8, "chunked_prefill": cut}
        data = tiny_scenario(batching=batching, memory={"kv": kv}, cache={"slots": 4})
        return plan_budget(Scenario.model_validate(data), shape, vram, [10**5]).used_bytes

    needed = plan(1 << 40, cut=True, kv="auto")
    assert plan(needed, cut=True) <= needed
    with pytest.raises(BudgetError, match=r"batching\.chunked_prefill: true"):
        plan(needed, cut=False)
    with pytest.raises(BudgetError) as too_small:
        plan(shape.fixed_bytes, cut=False)
    assert "chunked_prefill" not in str(too_small.value)
    with pytest.raises(BudgetError) as cut_already:
        plan(shape.fixed_bytes, cut=True)
    assert "chunked_prefill" not in str(cut_already.value)
