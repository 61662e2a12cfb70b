"""Closed clients at one server, against the closed form of the machine-repairman queue M/M/1//N.

Each of N clients thinks for Z on average, and its request is served for S on average, exponential
and one at a time. The server is idle with probability

    p0 = 1 / sum over n = 0..N of N! / (N - n)! (S / Z)^n,

so throughput is X = (1 - p0) / S. Mean response time is R = N / X - Z, and X R requests are in the
system on average. With exponential service, this holds for any distribution of think times
(Baskett, Chandy, Muntz and Palacios, JACM 1975), so constant ones are tested too.

In the stand-in machine, a step takes 1 us per token and nothing else takes time. Prompts have the
lengths of a thousand quantiles of the exponential distribution, drawn with replacement.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simpy
from costed_traces import costed_trace
from workloads import everything, plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.hardware.ops import BatchShape, Tail
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.simulate import Outcome, SimPrices
from moesim.trace import Trace

Floats = npt.NDArray[np.float64]

TOKEN_NS = 1000
MEAN_TOKENS = 200
WARM_UP = 500  # requests
BATCHES = 40


class PerToken(SimPrices):
    """Prices of a machine on which a step takes `TOKEN_NS` per token."""

    def __init__(self, prices: SimPrices) -> None:
        super().__init__(prices._cost)
        layers = len(prices.layers_ns(BatchShape(1, 1, 1, 1, 1)))
        self.compute_ns = lambda op: TOKEN_NS * op.batch.tokens if isinstance(op, Tail) else 0
        self.experts_ns = lambda tokens: 0
        self.layers_ns = lambda batch: [0] * layers
        self.landing_ns = 0

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return 0

    def readback_ns(self, nbytes: int) -> int:
        return 0


def per_token(env: simpy.Environment, prices: SimPrices) -> SimMachine:
    return SimMachine(env, PerToken(prices))


@cache
def exponential_prompts() -> Trace:
    """Return a trace whose prompt lengths are the quantiles of an exponential distribution."""
    share = (np.arange(1000) + 0.5) / 1000
    lengths = np.maximum(1, np.rint(-MEAN_TOKENS * np.log1p(-share))).astype(int)
    rows = np.zeros((int(lengths.sum()), 1, 1), int)
    return costed_trace(rows, seq_len=lengths, prompt_tokens=lengths)


def served(clients: int, think: dict[str, Any], requests: int = 20_000, seed: int = 1) -> Outcome:
    scenario = tiny_scenario(
        batching={"max_sequences": 1, "token_budget": 4096},
        cache={"slots": "100%"},
        memory={"kv": "1GiB"},
        workload={
            "requests": requests,
            "order": "resampled",
            "arrivals": {"kind": "closed", "clients": clients, "think": think},
        },
        timeline={"steps": 0},
        seed=seed,
    )
    return run_on(plan_of(scenario, exponential_prompts()), per_token)


def times(outcome: Outcome) -> tuple[Floats, Floats, Floats]:
    """Return the arrivals, ends and think times of all requests in nanoseconds."""
    rows = [(r.arrival_ns, r.token_ns[-1], r.think_ns) for r in outcome.requests]
    arrival, end, think = np.array(rows, float).T
    return arrival, end, think


def repairman(clients: int, service: float, think: float) -> tuple[float, float, float]:
    """Return throughput, mean number in the system and mean response time of M/M/1//N."""
    weights = [math.perm(clients, n) * (service / think) ** n for n in range(clients + 1)]
    throughput = (1 - 1 / sum(weights)) / service
    response = clients / throughput - think
    return throughput, throughput * response, response


def batch_means(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half-width of its confidence interval by batch means."""
    means = values[: len(values) // BATCHES * BATCHES].reshape(BATCHES, -1).mean(axis=1)
    z = NormalDist().inv_cdf((1 + level) / 2)
    return float(means.mean()), z * float(means.std(ddof=1)) / math.sqrt(BATCHES)


def number_in_system(arrival: Floats, end: Floats, moments: Floats) -> Floats:
    """Return the number of requests in the system at each of `moments`."""
    before = np.searchsorted(np.sort(arrival), moments, side="right")
    return np.asarray(before - np.searchsorted(np.sort(end), moments, side="right"), float)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["exponential", "constant"])
@pytest.mark.parametrize(("clients", "ratio"), [(2, 1), (5, 4), (12, 10)])
def test_closed_clients_at_one_server_are_a_machine_repairman_queue(
    clients: int, ratio: int, distribution: str
) -> None:
    """`ratio` is mean think time over mean service time; theory uses the means that were drawn."""
    mean_ns = round(ratio * TOKEN_NS * exponential_prompts().requests["prompt_tokens"].mean())
    outcome = served(clients, {"mean": f"{mean_ns}ns", "distribution": distribution})
    arrival, end, thinks = times(outcome)
    service = TOKEN_NS * float(np.mean([r.prompt_tokens for r in outcome.requests]))
    kept = slice(WARM_UP, -clients)
    gaps, response = np.diff(arrival[kept]), (end - arrival)[kept]
    moments = np.linspace(arrival[WARM_UP], arrival[-clients], 40_000)
    measured = [
        batch_means(gaps),
        batch_means(number_in_system(arrival, end, moments)),
        batch_means(response),
    ]

    def expected(clients: int) -> tuple[float, float, float]:
        throughput, number, mean_response = repairman(clients, service, float(thinks.mean()))
        return 1 / throughput, number, mean_response

    for (mean, half), theory in zip(measured, expected(clients), strict=True):
        assert half < 0.035 * theory
        assert abs(mean - theory) < half
    # Throughput and the number in the system tell N clients from N - 1 and N + 1.
    for wrong in (expected(clients - 1), expected(clients + 1)):
        assert any(
            abs(mean - theory) > 2 * half
            for (mean, half), theory in zip(measured, wrong, strict=True)
        )


@pytest.mark.parametrize("clients", [1, 3, 8])
@pytest.mark.parametrize(
    "think", [{"mean": "0s"}, {"mean": "300us", "distribution": "exponential"}]
)
def test_the_response_time_law_holds_exactly(clients: int, think: dict[str, Any]) -> None:
    """R = N / X - Z: until the last request is sent, each client waits for an answer or thinks."""
    arrival, end, thinks = times(served(clients, think, requests=600))
    last = arrival[-1]
    ended = np.minimum(end, last)
    waiting = (ended - arrival).sum()
    thinking = (np.minimum(end + thinks, last) - ended).sum()
    assert clients * last == waiting + thinking
    # Each request after the first N is sent exactly when a client is ready.
    assert (arrival[:clients] == 0).all()
    assert (arrival[clients:] == np.sort(end + thinks)[: 600 - clients]).all()
    assert number_in_system(arrival, end, arrival).max() == clients


def closed(scenario: dict[str, Any], clients: int, think: str = "0s") -> dict[str, Any]:
    arrivals = {"kind": "closed", "clients": clients, "think": think}
    return {**scenario, "workload": {**scenario["workload"], "arrivals": arrivals}}


@pytest.mark.parametrize("make", [SimMachine, EventMachine])
def test_one_client_that_does_not_think_sends_one_request_after_another(make: Any) -> None:
    """To the nanosecond as a server that has all requests and serves one at a time."""
    for seed in range(8000, 8040):
        scenario, trace = random_case(seed, at_once=True)
        scenario["cache"].update(policy="lru", admission="bypass")
        queued = {**scenario, "batching": {**scenario["batching"], "max_sequences": 1}}
        expected = run_on(plan_of(queued, trace), make)
        outcome = run_on(plan_of(closed(scenario, 1), trace), make)
        assert [r.token_ns for r in outcome.requests] == [r.token_ns for r in expected.requests]
        assert sorted(outcome.ledger.timeline) == sorted(expected.ledger.timeline), seed
        assert outcome.now_ns == expected.now_ns
        before = [0, *(request.token_ns[-1] for request in outcome.requests[:-1])]
        assert [request.arrival_ns for request in outcome.requests] == before


def test_the_makespan_of_one_client_is_the_sum_of_runs_of_one_request() -> None:
    drawn = tiny_trace(requests=5, prompt_tokens=4, output_tokens=6, seed=3)
    trace = Trace.from_arrays(
        expert_ids=np.asarray(drawn.expert_ids[:]),
        seq_len=drawn.requests["num_rows"],
        prompt_tokens=drawn.requests["prompt_tokens"],
        domain=[f"request {number}" for number in range(5)],
        num_experts=drawn.num_experts,
        model_config=drawn.meta.model_config,
    )
    # A static placement with a slot for every expert starts loaded, so runs do not warm each other.
    base = tiny_scenario(cache={"policy": "static", "slots": "100%"})
    alone = [
        run_on(plan_of({**base, "workload": {"domains": [f"request {number}"]}}, trace)).now_ns
        for number in range(5)
    ]
    together = run_on(plan_of(closed({**base, "workload": {}}, 1), trace))
    assert together.now_ns == sum(alone)
    thinking = run_on(plan_of(closed({**base, "workload": {}}, 1, "7us"), trace))
    assert thinking.now_ns == sum(alone) + 4 * 7000


@pytest.mark.parametrize("extra", [0, 3])
def test_as_many_clients_as_requests_send_all_at_once(extra: int) -> None:
    for seed in range(8100, 8130):
        scenario, trace = random_case(seed, at_once=True)
        many = closed(scenario, trace.num_requests + extra, "3us")
        assert everything(run_on(plan_of(many, trace))) == everything(
            run_on(plan_of(scenario, trace))
        ), seed
