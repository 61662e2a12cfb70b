"""Lanes do what queueing theory and a literal simulation of the rules predict.

Lindley (1952): with one lane, first come first served, job n waits
W(n) = max(0, W(n-1) + S(n-1) - A(n)), where S is the service time of a job and A(n) the gap before
it. Kiefer and Wolfowitz (1955) is the same recursion for several lanes; with one they are equal.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_servers import (
    D2H,
    DEMAND,
    GPU,
    H2D,
    PREFETCH,
    Await,
    Cancel,
    Issue,
    Promote,
    Tariff,
    play,
    read_out,
    shuffled_events,
)
from workloads import plan_of, run_on, tiny_scenario

from moesim.errors import InvariantError
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.simulate import SimPrices

MACHINES = [SimMachine, EventMachine, shuffled_events(5)]
NAMES = ["folded", "events", "shuffled"]
both_machines = pytest.mark.parametrize("make", MACHINES, ids=NAMES)
ONE_ROW = np.tile([0, 1], (1, 4, 1))  # one row that wants experts 0 and 1 of four layers


def lindley(gaps: list[int], services: list[int]) -> list[tuple[int, int]]:
    """Return start and finish of each job by the recursion, from the gaps before them."""
    times = []
    arrival = wait = before = 0
    for gap, service in zip(gaps, services, strict=True):
        arrival += gap
        wait = max(0, wait + before - gap)
        times.append((arrival + wait, arrival + wait + service))
        before = service
    return times


def arrivals(gaps: list[int], jobs: list[Issue]) -> list[Any]:
    """Return the script of a server that issues one job after each gap."""
    return [step for gap, job in zip(gaps, jobs, strict=True) for step in (Await((), gap), job)]


@both_machines
@pytest.mark.parametrize("lane", [H2D, D2H, GPU])
@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 1200)), min_size=1, max_size=60),
    st.integers(0, 300),
)
def test_a_lane_serves_in_order_as_lindley_says(
    make: Any, lane: str, jobs: list[tuple[int, int]], latency: int
) -> None:
    gaps, sizes = [gap for gap, _ in jobs], [size for _, size in jobs]
    times, _ = play(make, Tariff(latency), arrivals(gaps, [Issue(lane, size) for size in sizes]))
    paid = 0 if lane == GPU else latency
    assert times == lindley(gaps, [paid + size for size in sizes])


@both_machines
def test_real_copies_of_a_busy_link_wait_as_lindley_says(make: Any) -> None:
    prices = SimPrices(plan_of(tiny_scenario(), costed_trace(ONE_ROW)).cost)
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 4_000_000, 3000).tolist()
    services = [10_000 + math.ceil(size * 10**9 / (25 * 10**9)) for size in sizes]
    gaps = np.rint(rng.exponential(np.mean(services) / 0.95, 3000)).astype(int).tolist()
    times, _ = play(make, prices, arrivals(gaps, [Issue(H2D, size) for size in sizes]))
    assert times == lindley(gaps, services)


@both_machines
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 1200), st.integers(0, 1200)),
        min_size=1,
        max_size=40,
    )
)
def test_lanes_in_a_row_are_a_tandem_queue(make: Any, jobs: list[tuple[int, int, int]]) -> None:
    """Each expert is copied, then computed: D(n) = max(landed(n), D(n-1)) + compute(n)."""
    script: list[Any] = []
    for number, (gap, size, work) in enumerate(jobs):
        copied = Issue(H2D, size)
        script += [Await((), gap), copied, Issue(GPU, work, after=(2 * number,))]
    times, _ = play(make, Tariff(10), script)
    landed = lindley([gap for gap, *_ in jobs], [10 + size for _, size, _ in jobs])
    assert times[0::2] == landed
    free, expected = 0, []
    for (_, landing), (*_, work) in zip(landed, jobs, strict=True):
        start = max(landing, free)
        free = start + work
        expected.append((start, free))
    assert times[1::2] == expected


@st.composite
def scripts(draw: Any, *, free: bool = False) -> list[Any]:
    """Draw random servers: copies of both priorities, computations, promotions, cancels and waits.

    Jobs may wait for others, but not for one that may be cancelled. On a `free` link, copies to the
    device take no time.
    """
    sizes = {
        H2D: st.just(0) if free else st.integers(1, 9),
        D2H: st.integers(0 if free else 1, 9),
        GPU: st.integers(1, 9),
    }
    kinds = [(H2D, DEMAND), (H2D, PREFETCH), (H2D, PREFETCH), (D2H, DEMAND), (GPU, DEMAND)]
    script: list[Any] = []
    jobs = 0
    needed: set[int] = set()  # a job that is promoted behind one that waits for it would never run
    dropped: set[int] = set()
    for kind in draw(st.lists(st.integers(0, 10), min_size=3, max_size=30)):
        one = st.integers(0, max(0, jobs - 1))
        some = st.lists(one, max_size=2 * bool(jobs), unique=True).map(
            lambda numbers: tuple(number for number in numbers if number not in dropped)
        )
        if kind <= 4:
            lane, priority = draw(st.sampled_from(kinds))
            after = draw(some)
            needed.update(after)
            jobs += 1
            script.append(Issue(lane, draw(sizes[lane]), priority, after))
        elif kind <= 6 and jobs:
            number = draw(one)
            if number not in needed and number not in dropped:
                script.append(Promote(number))
        elif kind == 7 and jobs:
            number = draw(one)
            if number not in needed:
                dropped.add(number)
                script.append(Cancel(number))
        else:
            wanted = draw(some)
            for_ns = draw(st.integers(0, 8)) if not wanted or draw(st.booleans()) else None
            script.append(Await(wanted, for_ns))
    return script


@both_machines
@settings(max_examples=400)
@given(scripts(), st.integers(0, 2), st.sampled_from([None, 1, 2, 3]))
def test_lanes_follow_the_rules_nanosecond_by_nanosecond(
    make: Any, script: list[Any], latency: int, chunk: int | None
) -> None:
    tariff = Tariff(latency, chunk)
    assert play(make, tariff, script) == read_out(tariff, script)


@both_machines
@settings(max_examples=200)
@given(scripts(free=True))
def test_lanes_follow_the_rules_where_copies_take_no_time(make: Any, script: list[Any]) -> None:
    assert play(make, Tariff(), script) == read_out(Tariff(), script)


@both_machines
def test_demand_overtakes_prefetches_at_a_chunk_boundary_and_never_inside_one(make: Any) -> None:
    """Two prefetches of 3 chunks of 10 ns; a demand copy at 12 ns starts at 20."""
    script: list[Any] = [
        Issue(H2D, 30, PREFETCH),
        Issue(H2D, 30, PREFETCH),
        Await((), 12),
        Issue(H2D, 10),
    ]
    cut, _ = play(make, Tariff(0, 10), script)
    assert cut == [(0, 40), (40, 70), (20, 30)]
    whole, _ = play(make, Tariff(0, None), script)
    assert whole == [(0, 30), (40, 70), (30, 40)]


@both_machines
def test_a_promoted_prefetch_goes_behind_the_demand_issued_so_far(make: Any) -> None:
    script: list[Any] = [
        Issue(H2D, 10),
        Issue(H2D, 10, PREFETCH),
        Issue(H2D, 10, PREFETCH),
        Issue(H2D, 10),
        Promote(2),
        Issue(H2D, 10),
    ]
    times, _ = play(make, Tariff(), script)
    assert [start for start, _ in times] == [0, 40, 20, 10, 30]


@both_machines
def test_a_cancelled_prefetch_frees_the_link_and_one_that_has_started_continues(make: Any) -> None:
    """Of three prefetches the first runs at 5 ns; the second is cancelled, at the last instant."""
    script: list[Any] = [
        *[Issue(H2D, 10, PREFETCH)] * 3,
        Await((), 5),
        Cancel(0),
        Await((), 5),
        Cancel(1),
        Cancel(1),
    ]
    times, _ = play(make, Tariff(), script)
    assert times == [(0, 10), (-1, -1), (10, 20)]
    cut, _ = play(make, Tariff(0, 5), script)  # it is not cancelled between its chunks either
    assert cut == [(0, 10), (-1, -1), (10, 20)]


@both_machines
def test_a_promoted_prefetch_and_a_demand_copy_are_not_cancelled(make: Any) -> None:
    script: list[Any] = [
        Issue(H2D, 10),
        Issue(H2D, 10),
        Issue(H2D, 10, PREFETCH),
        Promote(2),
        Cancel(1),
        Cancel(2),
    ]
    times, _ = play(make, Tariff(), script)
    assert times == [(0, 10), (10, 20), (20, 30)]
    script = [Issue(GPU, 25), Issue(H2D, 10, PREFETCH, after=(0,)), Promote(1), Cancel(1)]
    times, _ = play(make, Tariff(), script)
    assert times == [(0, 25), (25, 35)]


@both_machines
def test_a_demand_copy_that_cannot_start_lets_prefetches_by(make: Any) -> None:
    script = [Issue(GPU, 25), Issue(H2D, 5, after=(0,)), Issue(H2D, 10, PREFETCH)]
    script += [Issue(H2D, 20, PREFETCH)]
    times, _ = play(make, Tariff(), script)
    assert times == [(0, 25), (30, 35), (0, 10), (10, 30)]


@both_machines
def test_at_the_same_instant_work_ends_before_the_server_acts_and_lanes_start(make: Any) -> None:
    """The copy ends at 10, exactly when the server looks: it is done, and the demand copy issued
    then goes before the prefetch that was queued."""
    script: list[Any] = [
        Issue(H2D, 10),
        Issue(H2D, 5, PREFETCH),
        Await((), 10),
        Issue(H2D, 7),
        Await((0,)),
    ]
    times, resumed = play(make, Tariff(), script)
    assert times == [(0, 10), (17, 22), (10, 17)]
    assert resumed == [10, 10]


def test_a_wait_for_no_work_is_an_error() -> None:
    with pytest.raises(InvariantError, match="invariant 14"):
        play(SimMachine, Tariff(), [Await((), None)])


def confidence(waits: Any, level: float = 0.999, batches: int = 50) -> tuple[float, float]:
    """Return a mean and half its interval, from batch means: waits in a row are correlated."""
    means = np.asarray(waits, float)[: len(waits) // batches * batches]
    means = means.reshape(batches, -1).mean(axis=1)
    z = NormalDist().inv_cdf((1 + level) / 2)
    return float(means.mean()), z * float(means.std(ddof=1)) / math.sqrt(batches)


def md1(rho: float, service: float) -> float:
    """Return the mean wait of M/D/1 (Pollaczek-Khinchine with a constant service time)."""
    return rho / (2 * (1 - rho)) * service


@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_poisson_copies_wait_as_long_as_in_m_d_1(rho: float) -> None:
    """Tight enough to see one latency (5 %) too many or too few in the service time."""
    latency, size, count = 50, 950, 150_000
    service = latency + size
    rng = np.random.default_rng(11)
    gaps = np.diff(np.rint(np.cumsum(rng.exponential(service / rho, count))), prepend=0)
    gaps = gaps.astype(int).tolist()
    times, _ = play(SimMachine, Tariff(latency), arrivals(gaps, [Issue(H2D, size)] * count))
    starts = np.array([start for start, _ in times])
    mean, half = confidence(starts - np.cumsum(gaps))
    assert abs(mean - md1(rho, service)) < half
    for wrong in (size, service + latency):
        assert abs(mean - md1(rho * wrong / service, wrong)) > 2 * half


def test_a_whole_server_of_equal_requests_is_m_d_1() -> None:
    """One at a time, one prompt token and one answer, all experts resident: every request takes
    as long as every other, and waits for its turn as M/D/1 says."""
    trace = costed_trace(ONE_ROW)
    rho, count = 0.5, 24_000
    scenario = tiny_scenario(
        batching={"max_sequences": 1},
        cache={"slots": "100%"},
        workload={"requests": 2, "arrivals": "all_at_once"},
    )
    warm = run_on(plan_of(scenario, trace))
    service = int(np.diff([request.token_ns[0] for request in warm.requests])[0])
    scenario["workload"] = {
        "requests": count,
        "arrivals": {"kind": "poisson", "rate_per_s": rho / service * 1e9},
    }
    scenario["timeline"] = {"steps": 0}
    outcome = run_on(plan_of(scenario, trace))
    waits = [request.scheduled_ns - request.arrival_ns for request in outcome.requests]
    spent = {request.token_ns[0] - request.scheduled_ns for request in outcome.requests[1:]}
    assert spent == {service}
    gaps = np.diff([request.arrival_ns for request in outcome.requests]).tolist()
    cold = outcome.requests[0].token_ns[0] - outcome.requests[0].arrival_ns
    starts = lindley([0, *gaps], [cold] + [service] * (count - 1))
    first = outcome.requests[0].arrival_ns
    assert [r.scheduled_ns - first for r in outcome.requests] == [start for start, _ in starts]
    mean, half = confidence(waits, batches=30)
    assert half < 0.1 * md1(rho, service)
    assert abs(mean - md1(rho, service)) < half
