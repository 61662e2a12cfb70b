"""Latencies and idle time, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.results import metrics
from moesim.results.metrics import decode_summary, latency_summary, time_summary
from moesim.serving.request import Request
from moesim.serving.totals import totals_of

MS = 1_000_000


def test_latencies_count_from_arrival_and_gaps_between_tokens() -> None:
    request = Request(
        0, arrival_ns=1_000_000, prompt_tokens=1, output_tokens=3, rows=np.zeros(3, np.int64)
    )
    request.scheduled_ns, request.status = 2_000_000, "finished"
    request.token_ns = [4_000_000, 6_000_000, 12_000_000]
    summary = latency_summary([request])
    assert summary["ttft_mean_ms"] == 3
    assert summary["tpot_mean_ms"] == (2 + 6) / 2
    assert summary["itl_p50_ms"] == 4
    assert summary["e2e_mean_ms"] == 11


def finished(token_ns: list[int], arrival_ns: int = 0, scheduled_ns: int = 0) -> Request:
    """Return a request that got these tokens."""
    rows = np.zeros(len(token_ns), np.int64)
    request = Request(
        0, arrival_ns=arrival_ns, prompt_tokens=1, output_tokens=len(token_ns), rows=rows
    )
    request.scheduled_ns, request.status, request.token_ns = scheduled_ns, "finished", token_ns
    return request


def test_decode_speed_counts_tokens_after_the_first_of_each_request() -> None:
    # 2 tokens in 8 ms, 1 in 2 ms, and a request of one token, which has no speed.
    requests = [finished([4 * MS, 6 * MS, 12 * MS]), finished([MS, 3 * MS]), finished([MS])]
    summary = decode_summary(requests)
    assert summary["decode_mean_tokens_per_s"] == (250 + 500) / 2
    assert summary["decode_p50_tokens_per_s"] == 375
    assert summary["decode_p10_tokens_per_s"] == pytest.approx(250 + 0.1 * 250)
    alone = latency_summary(requests[:1])
    assert alone["tpot_mean_ms"] == 1000 / decode_summary(requests[:1])["decode_mean_tokens_per_s"]
    assert set(decode_summary(requests[2:]).values()) == {None}


@pytest.mark.parametrize("seed", range(8))
def test_queueing_and_service_add_up_to_the_ttft(seed: int) -> None:
    """Each request's TTFT is the wait for the start of a step, and the rest, exactly."""
    outcome = run_on(plan_of(*random_case(7700 + seed)))
    columns = metrics.request_columns(outcome.requests, outcome.pool)
    starts = set(outcome.ledger.step_columns()["start_ns"].tolist())
    for request, queue_ns, service_ns, first_ns in zip(
        outcome.requests, *(columns[key] for key in ("queue_ns", "service_ns", "first_token_ns")),
        strict=True,
    ):  # fmt: skip
        if first_ns < 0:
            assert service_ns == -1
            continue
        assert queue_ns >= 0
        assert service_ns > 0
        assert request.arrival_ns + queue_ns in starts
        assert request.arrival_ns + queue_ns + service_ns == first_ns
    found = latency_summary(outcome.requests)
    if found["ttft_mean_ms"] is not None:
        parts = found["ttft_queue_mean_ms"] + found["ttft_service_mean_ms"]
        assert parts == pytest.approx(found["ttft_mean_ms"])


def test_idle_time_is_what_no_step_takes() -> None:
    workload = {"arrivals": {"kind": "poisson", "rate_per_s": 5}}
    outcome = run_on(plan_of(tiny_scenario(workload=workload), tiny_trace(requests=3)))
    steps = outcome.ledger.step_columns()
    in_steps_ns = int((steps["finish_ns"] - steps["start_ns"]).sum())
    idle_s = time_summary(totals_of(outcome.ledger), outcome.now_ns)["idle_s"]
    assert idle_s == pytest.approx((outcome.now_ns - in_steps_ns) / 1e9)
    assert 0 < idle_s < outcome.now_ns / 1e9


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 10**12), min_size=1, max_size=5).map(sorted), max_size=6))
def test_gaps_of_all_requests_are_those_of_each(times: list[list[int]]) -> None:
    expected = [gap for each in times for gap in np.diff(each).tolist()]
    assert metrics._gaps(times).tolist() == expected
