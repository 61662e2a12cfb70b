"""Closed clients: what they send, when, and what no policy can change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.scenario import Closed, Scenario, Think, expand_sweep
from moesim.serving.arrivals import NOT_SENT, Arrivals
from moesim.serving.replay import Replay
from moesim.serving.request import Request
from moesim.serving.run_log import PlanRecord
from moesim.simulate import Outcome
from moesim.streams import stream
from moesim.workload.workload import build_workload

EXPONENTIAL = {"mean": "2ms", "distribution": "exponential"}


def clients(count: int, think: Any = "0s", **workload: Any) -> dict[str, Any]:
    """Return a workload of closed clients."""
    return {"arrivals": {"kind": "closed", "clients": count, "think": think}, **workload}


def serve(workload: dict[str, Any], **changes: Any) -> Outcome:
    trace = tiny_trace(requests=12, prompt_tokens=3, output_tokens=4, seed=2)
    return run_on(plan_of(tiny_scenario(workload=workload, cache={"slots": 12}, **changes), trace))


def arrivals_and_ends(outcome: Outcome) -> tuple[list[int], list[int]]:
    requests = outcome.requests
    return [r.arrival_ns for r in requests], [r.token_ns[-1] for r in requests]


def test_a_scenario_says_how_many_clients_and_how_long_they_think() -> None:
    def read(**arrivals: Any) -> Any:
        data = tiny_scenario(workload={"arrivals": {"kind": "closed", **arrivals}})
        return Scenario.model_validate(data).workload.arrivals

    assert read(clients=3) == Closed(kind="closed", clients=3, think=Think(mean=0))
    assert read(clients=3, think="2ms").think == Think(mean=2_000_000)
    assert read(clients=3, think=EXPONENTIAL).think.distribution == "exponential"


def test_a_sweep_over_clients_and_think_times() -> None:
    data = tiny_scenario(workload=clients(1, EXPONENTIAL))
    data["sweep"] = {"workload.arrivals.clients": [1, 4], "workload.arrivals.think.mean": [0, "1s"]}
    points = expand_sweep(Scenario.model_validate(data))
    found = [scenario.workload.arrivals for _, scenario in points]
    assert [(each.clients, each.think.mean) for each in found if isinstance(each, Closed)] == [
        (1, 0), (1, 10**9), (4, 0), (4, 10**9)
    ]  # fmt: skip


def test_the_next_request_is_sent_when_the_think_time_after_an_end_is_over() -> None:
    for think in ("0s", "150us", EXPONENTIAL):
        outcome = serve(clients(3, think))
        sent, ended = arrivals_and_ends(outcome)
        thinks = [request.think_ns or 0 for request in outcome.requests]
        ready = sorted(end + pause for end, pause in zip(ended, thinks, strict=True))
        assert sent == [0, 0, 0, *ready[:9]]


def test_at_most_as_many_requests_as_clients_are_in_the_system() -> None:
    for seed in range(8200, 8230):
        scenario, trace = random_case(seed, at_once=True)
        if scenario["cache"]["policy"] == "min":
            continue
        scenario["workload"] = clients(2, "3us", requests=9)
        for make in (SimMachine, EventMachine):
            sent, ended = arrivals_and_ends(run_on(plan_of(scenario, trace), make))
            inside = [sum(a <= now < e for a, e in zip(sent, ended, strict=True)) for now in sent]
            assert max(inside) <= 2, seed
    assert max(inside) == 2


def test_steps_formed_together_end_with_the_first_end_of_a_request() -> None:
    """The next request is sent at that end, so it belongs to the very next step."""
    rows = np.tile([0, 1], (40, 4, 1))
    trace = costed_trace(rows, seq_len=[12, 4, 6, 5, 9, 4], prompt_tokens=[3] * 6)
    scenario = tiny_scenario(workload=clients(2), cache={"slots": 12})
    outcome = run_on(plan_of(scenario, trace))
    sent, ended = arrivals_and_ends(outcome)
    assert len(set(sent)) > 3
    assert set(sent) <= {0, *ended}
    assert [request.scheduled_ns for request in outcome.requests] == sent


# --- common random numbers ------------------------------------------------------------------------


def served(outcome: Outcome) -> list[Any]:
    """Return all that is drawn for each request of a run."""
    return [
        (r.index, r.domain, r.prompt_tokens, r.output_tokens, r.rows.tolist(), r.think_ns)
        for r in outcome.requests
    ]


def test_no_policy_and_no_machine_changes_request_i() -> None:
    workload = clients(3, EXPONENTIAL, requests=30, order="resampled", prefill="resample")
    reference = serve(workload, seed=9)
    sent = [request.arrival_ns for request in reference.requests]
    changes: list[dict[str, Any]] = [
        {"batching": {"policy": "fcfs", "max_sequences": 2}},
        {"batching": {"policy": "prefill_first", "token_budget": 4}},
        {"prefetch": {"policy": "oracle"}},
        {"hardware": "t4"},
    ]
    for change in changes:
        other = serve(workload, seed=9, **change)
        assert served(other) == served(reference)
        assert [request.arrival_ns for request in other.requests] != sent
    assert served(serve(workload, seed=10)) != served(reference)


def test_think_times_are_drawn_per_request_from_a_stream_of_their_own() -> None:
    trace = tiny_trace(requests=6)

    def build(workload: dict[str, Any]) -> list[Request]:
        scenario = Scenario.model_validate(tiny_scenario(workload=workload, seed=7))
        return build_workload(scenario, trace)

    drawn = build(clients(2, EXPONENTIAL, requests=9, order="shuffled"))
    expected = np.rint(stream(7, "think times").exponential(2e-3, 9) * 1e9).astype(int)
    assert [request.think_ns for request in drawn] == expected.tolist()
    more = build(clients(5, EXPONENTIAL, requests=20))
    assert [request.think_ns for request in more[:9]] == expected.tolist()
    assert [request.arrival_ns for request in drawn] == [0, 0, *[NOT_SENT] * 7]
    assert {request.think_ns for request in build(clients(2, "5us"))} == {5000}
    at_once = build({"requests": 9, "order": "shuffled"})
    assert [request.rows.tolist() for request in drawn] == [r.rows.tolist() for r in at_once]
    assert {request.think_ns for request in at_once} == {None}


# --- requests that end early ----------------------------------------------------------------------


def test_a_client_whose_request_is_rejected_sends_another() -> None:
    rows = np.tile([0, 1], (72, 4, 1))
    trace = costed_trace(rows, seq_len=[4, 60, 4, 4], prompt_tokens=[3, 50, 3, 3])
    memory = {"kv": 10 * 16384, "kv_block_tokens": 1}
    for make in (SimMachine, EventMachine):
        scenario = tiny_scenario(workload=clients(1, "7us"), memory=memory)
        requests = run_on(plan_of(scenario, trace), make).requests
        status = [request.status for request in requests]
        assert status == ["finished", "rejected", "finished", "finished"]
        first, rejected, third, fourth = requests
        assert rejected.arrival_ns == first.token_ns[-1] + 7000
        assert third.arrival_ns == rejected.arrival_ns + 7000
        assert fourth.arrival_ns == third.token_ns[-1] + 7000


@pytest.mark.parametrize("think", ["0s", "7us"])
def test_requests_that_end_on_arrival_are_followed_by_the_next(think: str) -> None:
    """With a skipped prefill, a single token exists when the request arrives."""
    lengths = {"prompt": 3, "output": 1}
    requests = serve(clients(2, think, prefill="skip", lengths=lengths)).requests
    pause = 0 if think == "0s" else 7000
    assert [request.arrival_ns for request in requests] == [pause * (i // 2) for i in range(12)]
    assert [request.token_ns for request in requests] == [[r.arrival_ns] for r in requests]


# --- policies that wait, and replays --------------------------------------------------------------


def test_a_policy_that_waits_for_more_requests_than_there_are_clients_is_a_violation() -> None:
    prompts: PlanRecord = tuple((index, 0, 3) for index in range(3))
    plan = plan_of(tiny_scenario(workload=clients(2)), tiny_trace(requests=4, prompt_tokens=3))
    with pytest.raises(PolicyViolation, match="no request will arrive and 2 are queued"):
        run_on(plan, batching=Replay([prompts]))


def test_arrivals_are_handed_over_in_order_and_wait_for_ends() -> None:
    def request(index: int, arrival_ns: int) -> Request:
        rows = np.zeros(1, np.int64)
        return Request(
            index, arrival_ns=arrival_ns, prompt_tokens=1, output_tokens=1, rows=rows, think_ns=5
        )

    requests = [request(0, 0), request(1, 0), request(2, NOT_SENT), request(3, NOT_SENT)]
    arrivals = Arrivals(requests)
    assert (arrivals.clients, arrivals.due_ns) == (2, 0)
    assert [arrivals.take(), arrivals.take()] == requests[:2]
    assert (arrivals.due_ns, arrivals.unsent) == (None, True)
    arrivals.end(requests[0], 40)
    arrivals.end(requests[1], 30)
    assert (arrivals.due_ns, arrivals.take().arrival_ns) == (35, 35)
    assert (arrivals.due_ns, arrivals.take().arrival_ns) == (45, 45)
    arrivals.end(requests[3], 50)
    assert (arrivals.due_ns, arrivals.unsent) == (None, False)
