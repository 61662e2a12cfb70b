"""Steps keep to the token budget, the sequence cap and KV memory, and lose no request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation
from moesim.policies import find
from moesim.policies.batching import Batching, Candidate, Queue, fill
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request
from moesim.serving.scheduler import Scheduler
from moesim.simulate import Outcome, summarise

ORDERS = ["decode_first", "prefill_first", "fcfs"]
every_order = pytest.mark.parametrize("order", ORDERS)


def request_of(index: int, prompt: int, output: int) -> Request:
    """Return a request whose rows are numbered from 1000 * index."""
    return Request(
        index,
        arrival_ns=0,
        prompt_tokens=prompt,
        output_tokens=output,
        rows=np.arange(1000 * index, 1000 * index + prompt + output - 1),
    )


def scheduler(
    order: str | Batching = "decode_first",
    *,
    blocks: int = 1000,
    block_tokens: int = 1,
    budget: int = 8,
    cap: int = 4,
) -> Scheduler:
    policy = find("batching", order)() if isinstance(order, str) else order
    pool = BlockPool(blocks, block_tokens)
    return Scheduler(policy, pool, token_budget=budget, max_sequences=cap)


def advance(queue: Scheduler, plan: list[tuple[Request, int]]) -> list[Request]:
    """Do what the server does after a step; return the requests that got a token."""
    spoke = []
    for request, tokens in plan:
        request.position += tokens
        if request.position == request.target:
            request.emitted += 1
            spoke.append(request)
            if request.finished:
                queue.finish(request)
    return spoke


def serve(queue: Scheduler, requests: list[Request]) -> list[list[tuple[int, int]]]:
    """Return all steps, until the queue is empty, as (index, tokens) pairs."""
    for request in requests:
        queue.arrive(request)
    steps = []
    while plan := queue.next_step():
        steps.append([(request.index, tokens) for request, tokens in plan])
        advance(queue, plan)
    return steps


# --- the three orders, step by step -------------------------------------------------------------


def test_decode_first_gives_prompts_what_decodes_leave() -> None:
    steps = serve(scheduler("decode_first", budget=4), [request_of(0, 2, 3), request_of(1, 6, 1)])
    assert steps == [[(0, 2), (1, 2)], [(0, 1), (1, 3)], [(0, 1), (1, 1)]]


def test_prefill_first_lets_decodes_wait_for_prompts() -> None:
    steps = serve(scheduler("prefill_first", budget=4), [request_of(0, 2, 3), request_of(1, 6, 1)])
    assert steps == [[(0, 2), (1, 2)], [(1, 4)], [(0, 1)], [(0, 1)]]


def test_prefill_first_puts_waiting_prompts_before_running_decodes() -> None:
    requests = [request_of(0, 2, 3), request_of(1, 3, 1)]
    assert serve(scheduler("prefill_first", budget=2), requests) == [
        [(0, 2)],
        [(1, 2)],
        [(1, 1), (0, 1)],
        [(0, 1)],
    ]
    requests = [request_of(0, 2, 3), request_of(1, 3, 1)]
    assert serve(scheduler("decode_first", budget=2), requests) == [
        [(0, 2)],
        [(0, 1), (1, 1)],
        [(0, 1), (1, 1)],
        [(1, 1)],
    ]


@every_order
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=12),
    budget=st.integers(1, 12),
    cap=st.integers(1, 8),
    blocks=st.integers(17, 60),
    whole=st.booleans(),
)
def test_waiting_requests_beyond_the_budget_are_served_in_no_fixed_order(
    order: str,
    lengths: list[tuple[int, int]],
    budget: int,
    cap: int,
    blocks: int,
    whole: bool,
) -> None:
    """A fixed order does not see them; another class does, and plans the same steps."""
    fixed = find("batching", order)
    steps = []
    for policy in (fixed, type("Other", (fixed,), {})):
        pool = BlockPool(blocks, 1)
        queue = Scheduler(
            policy(), pool, token_budget=budget, max_sequences=cap, whole_prompts=whole
        )
        requests = [request_of(index, *each) for index, each in enumerate(lengths)]
        steps.append((serve(queue, requests), queue.preemptions))
    assert steps[0] == steps[1]


def test_a_waiting_request_leaves_each_running_decode_a_block() -> None:
    """Of four blocks two are free, of which the running request may need one."""
    queue = scheduler("prefill_first", blocks=4)
    queue.arrive(request_of(0, 2, 3))
    advance(queue, queue.next_step())
    assert serve(queue, [request_of(1, 2, 1)]) == [[(0, 1)], [(0, 1)], [(1, 2)]]
    assert queue.preemptions == 0


def test_a_preempted_request_queues_in_the_order_of_arrival() -> None:
    class PassesOverTheFirst(Batching):
        name = "passes_over_the_first"

        def plan(self, queue: Queue) -> Any:
            chosen = (*queue.running, *queue.waiting[1:])
            return [(candidate, candidate.tokens_wanted) for candidate in chosen]

    queue = scheduler(PassesOverTheFirst(), blocks=5)
    for request in (request_of(0, 1, 1), request_of(1, 2, 3), request_of(2, 2, 3)):
        queue.arrive(request)
    advance(queue, queue.next_step())
    queue.next_step()  # the fifth block goes to request 1, and request 2 loses its own
    assert [request.index for request in queue.running] == [1]
    assert [request.index for request in queue.waiting] == [0, 2]


def test_first_come_first_served_never_looks_at_the_phase() -> None:
    requests = [request_of(0, 6, 2), request_of(1, 1, 3), request_of(2, 2, 1)]
    steps = serve(scheduler("fcfs", budget=4), requests)
    assert steps == [[(0, 4)], [(0, 2), (1, 1), (2, 1)], [(0, 1), (1, 1), (2, 1)], [(1, 1)]]


def test_one_token_budget_serves_one_row_a_step() -> None:
    steps = serve(scheduler("fcfs", budget=1), [request_of(0, 3, 2), request_of(1, 1, 1)])
    assert steps == [[(0, 1)]] * 4 + [[(1, 1)]]


def test_the_sequence_cap_holds_requests_back_until_one_ends() -> None:
    requests = [request_of(index, 1, 2) for index in range(3)]
    steps = serve(scheduler(cap=1), requests)
    assert steps == [[(0, 1)], [(0, 1)], [(1, 1)], [(1, 1)], [(2, 1)], [(2, 1)]]


@every_order
def test_chunked_prefill_takes_rows_in_order_and_each_once(order: str) -> None:
    queue = scheduler(order, budget=3)
    requests = [request_of(index, 4 + index, 3) for index in range(4)]
    rows: dict[int, list[int]] = {request.index: [] for request in requests}
    for request in requests:
        queue.arrive(request)
    while plan := queue.next_step():
        for request, tokens in plan:
            rows[request.index] += request.next_rows(tokens).tolist()
        advance(queue, plan)
    for request in requests:
        assert rows[request.index] == request.rows.tolist()
        assert len(request.rows) == request.prompt_tokens + request.output_tokens - 1


# --- memory ---------------------------------------------------------------------------------------


def test_what_could_never_fit_is_rejected_on_arrival() -> None:
    queue = scheduler(blocks=3, block_tokens=4)
    fits, too_long = request_of(0, 10, 3), request_of(1, 10, 4)
    assert fits.max_kv_tokens == 12
    assert queue.arrive(fits)
    assert not queue.arrive(too_long)
    assert too_long.status == "rejected"
    assert serve(queue, []) != []
    assert fits.status == "finished"


def test_the_youngest_running_request_is_preempted_and_starts_over() -> None:
    """Five blocks of one token: at 3 + 2 rows the older one needs a block of the younger."""
    queue = scheduler("fcfs", blocks=5, budget=8)
    older, younger = request_of(0, 2, 4), request_of(1, 2, 3)
    steps = serve(queue, [older, younger])
    assert steps[:2] == [[(0, 2), (1, 2)], [(0, 1)]]
    assert younger.preemptions == queue.preemptions == 1
    assert older.preemptions == 0
    # Its one token was emitted before: its prompt and that token's row are computed in one go.
    assert steps[2:] == [[(0, 1)], [(0, 1)], [(1, 3)], [(1, 1)]]
    assert older.status == younger.status == "finished"
    assert queue.pool.free == queue.pool.total == 5


def test_a_preempted_request_goes_back_in_front_of_later_arrivals() -> None:
    queue = scheduler("decode_first", blocks=6, cap=2)
    requests = [request_of(0, 2, 5), request_of(1, 2, 5), request_of(2, 1, 2)]
    serve(queue, requests)
    assert requests[1].preemptions == 1
    assert all(request.status == "finished" for request in requests)


def test_blocks_are_taken_when_a_row_starts_a_new_one_and_all_come_back() -> None:
    queue = scheduler(blocks=10, block_tokens=4, budget=3)
    request = request_of(0, 6, 4)
    queue.arrive(request)
    held = []
    while plan := queue.next_step():
        held.append((request.position + plan[0][1], request.blocks))
        advance(queue, plan)
    assert held == [(3, 1), (6, 2), (7, 2), (8, 2), (9, 3)]
    assert (queue.pool.free, queue.pool.peak) == (10, 3)


def test_the_peak_is_of_the_fullest_moment_and_not_of_the_last() -> None:
    pool = BlockPool(10, 4)
    first, second = request_of(0, 20, 2), request_of(1, 20, 2)
    assert pool.grow(first, 20)
    assert pool.peak == 5
    pool.release(first)
    assert pool.grow(second, 4)
    assert (pool.free, pool.peak) == (9, 5)


def test_a_preempted_request_with_a_skipped_prefill_keeps_its_prompt() -> None:
    """Its prompt has no rows: it starts over at the first row that it has."""
    request = Request(
        0,
        arrival_ns=0,
        prompt_tokens=3,
        output_tokens=4,
        rows=np.array([7, 8, 9]),
        cached_tokens=3,
    )
    request.position, request.emitted = 5, 3
    request.restart()
    assert (request.position, request.tokens_wanted) == (3, 3)
    assert request.next_rows(request.tokens_wanted).tolist() == [7, 8, 9]


def test_a_preempted_request_keeps_the_cached_prefix_of_its_prompt() -> None:
    """It computes the rest of its prompt and its emitted tokens anew, and nothing before them."""
    request = Request(
        0,
        arrival_ns=0,
        prompt_tokens=5,
        output_tokens=4,
        rows=np.array([6, 7, 8, 9, 10]),
        cached_tokens=3,
    )
    assert (request.position, request.tokens_wanted, request.emitted) == (3, 2, 0)
    request.position, request.emitted = 6, 2
    assert request.last_rows(9).tolist() == [8, 7, 6]
    request.restart()
    assert (request.position, request.tokens_wanted) == (3, 4)
    assert request.next_rows(request.tokens_wanted).tolist() == [6, 7, 8, 9]


class Scripted(Batching):
    """Serves one request per step in a stated order, then the last one of the queue."""

    def __init__(self, *script: int) -> None:
        super().__init__()
        self.name = "scripted"  # type: ignore[misc]
        self.script = list(script)

    def plan(self, queue: Queue) -> Any:
        queued_by_index = {request.index: request for request in (*queue.running, *queue.waiting)}
        index = self.script.pop(0) if self.script else max(queued_by_index)
        return fill(queue, [queued_by_index[index]])


def test_a_request_that_preempts_itself_leaves_the_step_to_others() -> None:
    """There are eight blocks. Request 0 holds five, 1 two of its prompt's six, and 2 one.

    Request 2 finds no free block and is preempted. Request 1 needs two, finds only the block of 2,
    and is preempted too. The step serves request 0 alone.
    """
    policy = Scripted(0, 1, 2, 0, 0, 0)
    queue = scheduler(policy, blocks=8, budget=2)
    requests = [request_of(0, 3, 6), request_of(1, 6, 2), request_of(2, 1, 8)]
    for request in requests:
        queue.arrive(request)
    while policy.script:
        advance(queue, queue.next_step())
    assert [request.blocks for request in requests] == [5, 2, 1]
    assert [(request.index, tokens) for request, tokens in queue.next_step()] == [(0, 1)]
    assert [request.preemptions for request in requests] == [0, 1, 1]


# --- random lives ---------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """A state machine: arrivals and steps in any order, with all rules checked after each."""

    @initialize(
        order=st.sampled_from(ORDERS),
        blocks=st.integers(2, 12),
        block_tokens=st.integers(1, 4),
        budget=st.integers(1, 9),
        cap=st.integers(1, 4),
    )
    def open(self, order: str, **knobs: int) -> None:
        self.queue = scheduler(order, **knobs)
        self.knobs = knobs
        self.requests: list[Request] = []
        self.computed: dict[int, int] = {}
        self.lost: dict[int, int] = {}

    @rule(prompt=st.integers(1, 20), output=st.integers(1, 8))
    def arrive(self, prompt: int, output: int) -> None:
        request = request_of(len(self.requests), prompt, output)
        self.requests.append(request)
        self.computed[request.index] = self.lost[request.index] = 0
        room = self.knobs["blocks"] * self.knobs["block_tokens"]
        assert self.queue.arrive(request) == (prompt + output - 1 <= room)

    @precondition(lambda self: self.requests)
    @rule()
    def step(self) -> None:
        before = {
            request.index: (request.position, request.preemptions) for request in self.requests
        }
        plan = self.queue.next_step()
        alive = [request for request in self.requests if request.status in ("waiting", "running")]
        assert bool(plan) == bool(alive), "a step is empty only if no request is queued"
        for request in self.requests:
            position, preemptions = before[request.index]
            assert request.preemptions <= preemptions + 1
            if request.preemptions > preemptions:
                assert request.position == 0
                self.lost[request.index] += position
        indices = [request.index for request, _ in plan]
        assert len(set(indices)) == len(indices)
        assert sum(tokens for _, tokens in plan) <= self.knobs["budget"]
        assert len(self.queue.running) <= self.knobs["cap"]
        for request, tokens in plan:
            assert request.status == "running"
            assert 1 <= tokens <= request.tokens_wanted
            held = request.blocks * self.knobs["block_tokens"]
            assert held - self.knobs["block_tokens"] < request.position + tokens <= held
            self.computed[request.index] += tokens
        advance(self.queue, plan)

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting, running = self.queue.waiting, self.queue.running
        places = [id(request) for request in (*waiting, *running)]
        assert len(set(places)) == len(places)
        for request in self.requests:
            queued = request in waiting, request in running
            expected = {"waiting": (True, False), "running": (False, True)}
            assert queued == expected.get(request.status, (False, False)), request.status
        assert [request.index for request in waiting] == sorted(
            request.index for request in waiting
        )

    @invariant()
    def blocks_are_conserved(self) -> None:
        if not hasattr(self, "queue"):
            return
        pool = self.queue.pool
        assert pool.free + sum(request.blocks for request in self.requests) == pool.total
        assert all(
            request.blocks == 0 for request in self.requests if request not in self.queue.running
        )

    def teardown(self) -> None:
        """Check that every request ends and computes each row once, and again if it was lost."""
        if not hasattr(self, "queue"):
            return
        for _ in range(20_000):
            if not any(request.status in ("waiting", "running") for request in self.requests):
                break
            self.step()
            self.nobody_is_lost_or_doubled()
            self.blocks_are_conserved()
        for request in self.requests:
            if request.status != "rejected":
                assert request.status == "finished"
                rows = request.prompt_tokens + request.output_tokens - 1
                assert self.computed[request.index] == rows + self.lost[request.index]


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=25)


# --- inside a run ---------------------------------------------------------------------------------


def tight_run(order: str, blocks: int) -> Outcome:
    scenario = tiny_scenario(
        memory={"kv": blocks * 8192, "kv_block_tokens": 1},
        batching={"policy": order, "token_budget": 7, "max_sequences": 4},
    )
    return run_on(plan_of(scenario, tiny_trace(requests=6, prompt_tokens=5, output_tokens=6)))


@every_order
def test_preempted_rows_are_touched_again_and_counted(order: str) -> None:
    roomy, tight = tight_run(order, 200), tight_run(order, 26)
    own = 6 * (5 + 6 - 1)
    rows = {name: summarise(run)["steps"] for name, run in (("roomy", roomy), ("tight", tight))}
    computed = int(roomy.ledger.step_columns()["tokens"].sum())
    again = int(tight.ledger.step_columns()["tokens"].sum())
    assert summarise(roomy)["preemptions"] == 0
    assert computed == own
    assert summarise(tight)["preemptions"] > 0
    assert again > own
    for outcome, tokens in ((roomy, computed), (tight, again)):
        assert sum(outcome.ledger.rows) == tokens * 4 * 2  # layers, top-k
        assert all(len(request.token_ns) == 6 for request in outcome.requests)
        columns = outcome.ledger.step_columns()
        assert (columns["prefill_tokens"] + columns["decode_tokens"] == columns["tokens"]).all()
        assert columns["kv_blocks"].max() <= outcome.plan.budget.kv_blocks
        assert columns["sequences"].max() <= 4
        assert columns["tokens"].max() <= 7
    # The first recomputed row counts as prefill: without preemption that is prompt rows only.
    assert int(roomy.ledger.step_columns()["prefill_tokens"].sum()) == 6 * 5
    assert int(tight.ledger.step_columns()["prefill_tokens"].sum()) > 6 * 5
    assert rows["tight"] > rows["roomy"]


def test_a_run_rejects_what_never_fits_and_serves_the_rest(tmp_path: Any) -> None:
    (tmp_path / "lengths.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n0,4,2\n0,40,2\n0,3,3\n", encoding="utf-8"
    )
    scenario = tiny_scenario(
        memory={"kv": 20 * 8192, "kv_block_tokens": 1},
        workload={"arrivals": {"kind": "csv", "path": str(tmp_path / "lengths.csv")}},
    )
    outcome = run_on(plan_of(scenario, tiny_trace(requests=3)))
    assert [request.status for request in outcome.requests] == ["finished", "rejected", "finished"]
    summary = summarise(outcome)
    assert (summary["finished"], summary["rejected"], summary["queued"]) == (2, 1, 0)
    assert any("rejected" in note for note in summary["notes"])
    assert outcome.requests[1].token_ns == []


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 9), st.sampled_from(ORDERS))
def test_a_run_computes_prompt_plus_output_less_one_rows(
    prompt: int, budget: int, output: int, order: str
) -> None:
    scenario = tiny_scenario(batching={"policy": order, "token_budget": budget})
    trace = tiny_trace(requests=3, prompt_tokens=prompt, output_tokens=output)
    outcome = run_on(plan_of(scenario, trace))
    assert int(outcome.ledger.step_columns()["tokens"].sum()) == 3 * (prompt + output - 1)
    assert [len(request.token_ns) for request in outcome.requests] == [output] * 3


# --- nonsense -------------------------------------------------------------------------------------


class Nonsense(Batching):
    """A policy whose plan is the test's `answer`."""

    answer: Callable[[Queue], Any]

    def plan(self, queue: Queue) -> Any:
        return type(self).answer(queue)


def everyone(queue: Queue) -> list[Any]:
    return [*queue.running, *queue.waiting]


NONSENSE: list[tuple[str, Callable[[Queue], Any], str, str]] = [
    ("plans one twice", lambda q: [(q.waiting[0], 1)] * 2, "request 0", "twice"),
    ("no token", lambda q: [(q.waiting[0], 0)], "request 0", "0 tokens"),
    ("negative", lambda q: [(q.waiting[0], -1)], "request 0", "-1 tokens"),
    ("more than wanted", lambda q: [(q.waiting[0], 6)], "request 0", "wants 5"),
    ("over the budget", lambda q: [(r, 5) for r in everyone(q)[:2]], "step", "budget of 8"),
    ("a stranger", lambda q: [(Candidate(7, 5), 1)], "request 7", "not in the queue"),
    ("no requests", lambda q: [], "step", "empty step"),
    ("half a token", lambda q: [(q.waiting[0], 1.5)], "plan", "whole number of tokens"),
    ("a bool", lambda q: [(q.waiting[0], True)], "plan", "whole number of tokens"),
    ("no request", lambda q: [("everyone", 1)], "plan", "not in the queue"),
    ("nothing at all", lambda q: None, "plan", "a list of (request, tokens) pairs"),
    ("not pairs", lambda q: everyone(q), "plan", "must be a (request, tokens) pair"),
]


@pytest.mark.parametrize(
    ("answer", "key", "reason"), [case[1:] for case in NONSENSE], ids=[c[0] for c in NONSENSE]
)
def test_nonsense_of_a_batching_policy_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: Any, key: str, reason: str
) -> None:
    name = enlist(monkeypatch, "batching", Nonsense)
    monkeypatch.setattr(Nonsense, "answer", staticmethod(answer), raising=False)
    trace = tiny_trace(requests=6, prompt_tokens=5, output_tokens=2)
    batching = {"policy": name, "token_budget": 8, "max_sequences": 4}
    with pytest.raises(PolicyViolation) as caught:
        run_on(plan_of(tiny_scenario(batching=batching), trace))
    assert (caught.value.policy, caught.value.key) == (name, key)
    assert reason in caught.value.reason
    assert name in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_policy_may_leave_requests_out_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving only the last request of the queue is allowed: all requests still finish."""
    name = enlist(monkeypatch, "batching", Nonsense)
    monkeypatch.setattr(
        Nonsense, "answer", staticmethod(lambda q: fill(q, everyone(q)[-1:])), raising=False
    )
    scenario = tiny_scenario(batching={"policy": name, "max_sequences": 2})
    outcome = run_on(plan_of(scenario, tiny_trace(requests=4, prompt_tokens=3, output_tokens=2)))
    assert all(request.status == "finished" for request in outcome.requests)
    assert outcome.ledger.step_columns()["sequences"].max() == 1


class Greedy(Batching):
    """Plans one token for every request that it sees, and counts these."""

    most = 0

    def plan(self, queue: Queue) -> Any:
        self.most = max(self.most, len(everyone(queue)))
        return [(request, 1) for request in everyone(queue)]


def test_no_more_waiting_requests_are_shown_than_may_run() -> None:
    policy = Greedy()
    policy.name = "greedy"  # type: ignore[misc]
    queue = scheduler(policy, cap=2)
    steps = serve(queue, [request_of(index, 1, 3) for index in range(5)])
    assert policy.most == 2
    assert [len(step) for step in steps] == [2, 2, 2, 2, 2, 2, 1, 1, 1]


# --- what a policy sees ---------------------------------------------------------------------------


class Watches(Batching):
    """Records every queue that it sees."""

    queues: list[Queue]
    asked: list[tuple[Any, Any]]

    def ready(self, running: Any, waiting: Any) -> bool:
        self.asked.append((running, waiting))
        return True

    def plan(self, queue: Queue) -> Any:
        self.queues.append(queue)
        return fill(queue, (*queue.running, *queue.waiting))


def watched(monkeypatch: pytest.MonkeyPatch, policy: type[Any] = Watches) -> Outcome:
    """Return a run in which some requests are preempted."""
    monkeypatch.setattr(Watches, "queues", [], raising=False)
    monkeypatch.setattr(Watches, "asked", [], raising=False)
    scenario = tiny_scenario(
        memory={"kv": 26 * 8192, "kv_block_tokens": 1},
        batching={"policy": enlist(monkeypatch, "batching", policy), "token_budget": 7},
    )
    return run_on(plan_of(scenario, tiny_trace(requests=6, prompt_tokens=5, output_tokens=6)))


def shown() -> list[Any]:
    queues = [(queue.running, queue.waiting) for queue in Watches.queues]
    return [part for pair in (*queues, *Watches.asked) for part in pair]


SEEN = {"decoding", "emitted", "index", "position", "prompt_tokens", "tokens_wanted"}


def public(candidate: Candidate) -> set[str]:
    return {name for name in dir(candidate) if not name.startswith("_")}


def test_a_policy_sees_of_requests_what_a_real_scheduler_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = watched(monkeypatch)
    assert summarise(outcome)["preemptions"] > 0
    candidates = {candidate for part in shown() for candidate in part}
    assert {type(part) for part in shown()} == {tuple}
    assert {type(candidate) for candidate in candidates} == {Candidate}
    assert len(candidates) == len(outcome.requests), "one object stands for a request throughout"
    for candidate in candidates:
        assert public(candidate) == SEEN
        for name in SEEN:
            with pytest.raises(AttributeError):
                setattr(candidate, name, 1)
        # Nor is there a way to the request behind it.
        inside = [getattr(candidate, name) for kind in (Candidate,) for name in kind.__slots__]
        assert {type(value) for value in inside} <= {int, bool}


class Clairvoyant(Watches):
    """Shortest job first: it must know how long a job is."""

    clairvoyant = True

    def plan(self, queue: Queue) -> Any:
        self.queues.append(queue)
        order = sorted(
            (*queue.running, *queue.waiting),
            key=lambda request: (request.output_tokens, -request.index),
        )
        return fill(queue, order)


def test_only_a_clairvoyant_policy_sees_lengths_and_is_called_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = summarise(watched(monkeypatch))["notes"]
    outcome = watched(monkeypatch, Clairvoyant)
    for candidate in {candidate for part in shown() for candidate in part}:
        assert public(candidate) == {*SEEN, "output_tokens"}
        assert candidate.output_tokens == outcome.requests[candidate.index].output_tokens
        with pytest.raises(AttributeError):
            candidate.output_tokens = 1
    note = "clairvoyant batching knows the future: a bound, not a policy"
    assert note in summarise(outcome)["notes"]
    assert not any("bound" in text for text in plain)


def test_candidates_are_up_to_date_whenever_a_policy_is_asked() -> None:
    policy = find("batching", "fcfs")()
    queue = scheduler(policy, blocks=5, budget=8)
    older, younger = request_of(0, 2, 4), request_of(1, 2, 3)
    seen: list[list[tuple[int, ...]]] = []
    plan = policy.plan

    def note(asked: Queue) -> Any:
        seen.append(
            [
                (
                    request.index,
                    request.prompt_tokens,
                    request.emitted,
                    request.position,
                    request.tokens_wanted,
                )
                for request in (*asked.running, *asked.waiting)
            ]
        )
        return plan(asked)

    policy.plan = note
    serve(queue, [older, younger])
    assert seen[0] == [(0, 2, 0, 0, 2), (1, 2, 0, 0, 2)]
    assert seen[1] == [(0, 2, 1, 2, 1), (1, 2, 1, 2, 1)]
    assert (1, 2, 1, 0, 3) in seen[-2]  # preempted: its rows are lost, its token is not


def asks(question: Callable[[Queue], Any]) -> Batching:
    policy = Scripted()
    plan = policy.plan

    def first_ask(queue: Queue) -> Any:
        question(queue)
        return plan(queue)

    policy.plan = first_ask  # type: ignore[method-assign]
    return policy


@pytest.mark.parametrize("tokens", [-1, 6, 1000])
def test_experts_are_revealed_of_tokens_that_exist_and_no_others(tokens: int) -> None:
    told: list[int] = []

    def reveal(request: Request, count: int) -> list[list[int]]:
        told.append(count)
        return [[0]] * count

    def served(count: int) -> None:
        policy = asks(lambda queue: queue.experts(queue.waiting[0], count))
        pool = BlockPool(100, 1)
        queue = Scheduler(policy, pool, token_budget=8, max_sequences=2, experts=reveal)
        queue.arrive(request_of(3, 5, 9))
        queue.next_step()

    served(5)
    assert told == [5]
    with pytest.raises(PolicyViolation, match=r"'scripted'.*request 3.*5 exist"):
        served(tokens)
    assert told == [5]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda queue: queue.experts(queue.waiting[0], 1), "this router does not reveal"),
        (lambda queue: queue.wants(queue.waiting[0]), "this router does not reveal"),
    ],
)
def test_a_policy_that_needs_what_a_router_hides_is_refused_by_name(
    question: Callable[[Queue], Any], message: str
) -> None:
    queue = scheduler(asks(question))
    queue.arrive(request_of(3, 5, 9))
    with pytest.raises(PolicyViolation, match=message) as caught:
        queue.next_step()
    assert (caught.value.policy, caught.value.key) == ("scripted", "request 3")


def test_experts_of_a_request_that_is_not_queued_are_refused() -> None:
    policy = asks(lambda queue: queue.experts(Candidate(3, 5), 1))
    queue = Scheduler(
        policy,
        BlockPool(100, 1),
        token_budget=8,
        max_sequences=2,
        experts=lambda request, count: [[0]] * count,
    )
    queue.arrive(request_of(3, 5, 9))
    with pytest.raises(PolicyViolation, match=r"request 3.*not queued"):
        queue.next_step()
