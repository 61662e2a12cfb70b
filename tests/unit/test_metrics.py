"""Latencies and idle time, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.results import metrics
from moesim.results.metrics import latency_summary, time_summary
from moesim.serving.request import Request
from moesim.serving.totals import totals_of


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
