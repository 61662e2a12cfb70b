"""How long batching passes a request over, with and without ageing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from workloads import plan_of, random_case, run_on, tiny_scenario

from moesim.machine.events import EventMachine
from moesim.serving.request import Request
from moesim.simulate import Outcome, summarise
from moesim.trace import Trace

RARE, CROWD, OUTPUT = 0, 6, 12


def rare_and_crowd() -> Trace:
    """Return seven requests of one prompt token: the first wants expert 7, the others expert 0."""
    wants = np.zeros((1 + CROWD, OUTPUT, 4, 1), np.int64)
    wants[RARE] = 7
    rows = wants.reshape(-1, 4, 1)
    lengths = [OUTPUT] * (1 + CROWD)
    trace = costed_trace(rows, seq_len=lengths, prompt_tokens=[1] * (1 + CROWD))
    return trace.with_meta(router="decoupled")


def served(tmp_path: Path, rare_s: float, crowd_s: float, **options: Any) -> Outcome:
    """Serve the requests with four tokens per step, which the six others fill without the first."""
    arrivals = "\n".join(
        ["arrival_s,prompt_tokens,output_tokens"]
        + [f"{second},1,{OUTPUT}" for second in sorted([rare_s] + [crowd_s] * CROWD)]
    )
    path = tmp_path / "arrivals.csv"
    path.write_text(arrivals, encoding="utf-8")
    scenario = tiny_scenario(
        workload={"arrivals": {"kind": "csv", "path": str(path)}},
        batching={
            "policy": "expert_aware",
            "options": options,
            "token_budget": 4,
            "max_sequences": 8,
        },
        cache={"slots": "100%"},
        memory={"kv": "100MB"},  # enough for all: batching cannot serve a request without memory
    )
    return run_on(plan_of(scenario, rare_and_crowd()))


def rare_of(outcome: Outcome) -> Request:
    return outcome.requests[RARE]


def test_a_rare_expert_waits_until_the_crowd_thins_unless_ageing_helps(tmp_path: Path) -> None:
    """All arrive at once: four of the crowd run to their end before any other request runs."""
    starved, aged = served(tmp_path, 0, 0), served(tmp_path, 0, 0, max_wait=3)
    assert rare_of(starved).wait_steps == OUTPUT
    summary = summarise(starved)
    assert (summary["wait_max_steps"], summary["pause_max_steps"]) == (OUTPUT, 0)
    assert summary["wait_max_ms"] == rare_of(starved).scheduled_ns / 1e6
    assert rare_of(aged).wait_steps == 3
    summary = summarise(aged)
    assert summary["wait_max_steps"] <= 3
    assert summary["pause_max_steps"] <= 3


def test_a_rare_expert_that_runs_pauses_and_ageing_bounds_its_pauses(tmp_path: Path) -> None:
    """The first request arrives a nanosecond early: its prompt runs alone, then others pass it."""
    starved = served(tmp_path, 0, 1e-9)
    rare, starts = rare_of(starved), starved.ledger.step_columns()["start_ns"]
    assert (rare.wait_steps, rare.pause_steps) == (0, OUTPUT)
    first_finish, next_start = rare.token_ns[0], starts[1 + OUTPUT]
    assert summarise(starved)["pause_max_ms"] == rare.pause_ns / 1e6
    assert rare.pause_ns == next_start - first_finish
    aged = summarise(served(tmp_path, 0, 1e-9, max_wait=3))
    assert aged["pause_max_steps"] == 3
    assert aged["pause_max_ms"] < rare.pause_ns / 1e6


@pytest.mark.parametrize("seed", range(12))
def test_pauses_and_gaps_between_tokens_fit_together(seed: int) -> None:
    """Once a request decodes undisturbed, the gap between two tokens is a pause and a step."""
    outcome = run_on(plan_of(*random_case(6100 + seed)), EventMachine)
    columns = outcome.ledger.step_columns()
    steps = (columns["finish_ns"] - columns["start_ns"]).tolist()
    for request in outcome.requests:
        if request.scheduled_ns < 0 or request.preemptions:
            continue
        gaps = np.diff(request.token_ns).tolist()
        assert 0 <= request.pause_ns <= request.token_ns[-1] - request.scheduled_ns
        assert max(gaps, default=0) <= request.pause_ns + max(steps)
        assert (request.pause_steps == 0) or request.pause_ns > 0
        before = int(np.searchsorted(columns["start_ns"], request.arrival_ns))
        first = columns["start_ns"].tolist().index(request.scheduled_ns)
        assert request.wait_steps == first - before


def test_no_request_pauses_if_all_are_served_every_step() -> None:
    scenario = tiny_scenario(cache={"slots": "100%"})
    summary = summarise(run_on(plan_of(scenario, rare_and_crowd())))
    assert [summary[f"{name}_max_steps"] for name in ("wait", "pause")] == [0, 0]
    assert summary["wait_max_ms"] == summary["pause_max_ms"] == 0
