"""Placements whose decisions depend on times, and what validation makes of their differences."""

from __future__ import annotations

from typing import Any

import pytest
from decided import decisions_of
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.cli.validate import _check_limits
from moesim.errors import MoesimError
from moesim.report.validation import validation_tables
from moesim.validate import simulate_observed
from moesim.validate.validation import assess

# A CPU and a link so slow that two queues divide the experts between them.
SLOW = {"profile": "rtx-4090", "cpu_flops": "3GFLOPS", "h2d": {"bandwidth": "300MB/s"}}


def summary_of(placement: Any, **changes: Any) -> dict[str, Any]:
    cache = {"policy": "lru", "slots": 9}
    sections: dict[str, Any] = {"hardware": SLOW, "placement": placement, "cache": cache}
    plan = plan_of(tiny_scenario(**{**sections, **changes}), tiny_trace())
    return assess(plan, "fake", [simulate_observed(plan)]).summary


def test_two_queues_decide_by_time_where_experts_come_and_go() -> None:
    assert summary_of("two_queue")["decisions_timed"] is True
    assert summary_of("two_queue", cache={"policy": "lru", "slots": 0})["decisions_timed"] is False
    static = {"policy": "static", "slots": 9}
    assert summary_of("two_queue", cache=static)["decisions_timed"] is False
    for other in ("copy", "cost", "cpu_experts", "cpu_layers"):
        assert summary_of(other)["decisions_timed"] is False


def test_cancelled_copies_ahead_decide_by_time_where_they_give_back_slots() -> None:
    cancel: dict[str, Any] = {"policy": "oracle", "cancel": True}
    assert summary_of("copy", prefetch=cancel)["decisions_timed"] is True
    assert summary_of("copy", prefetch={**cancel, "buffers": 2})["decisions_timed"] is False
    assert summary_of("copy", prefetch={"cancel": True})["decisions_timed"] is False


def test_their_answers_do_change_with_the_speed_of_the_link() -> None:
    """What the declaration says happens; with `cost` it does not."""

    def decided(policy: str, latency: str) -> list[Any]:
        changes = {
            "placement": policy,
            "prefetch": "oracle",
            "cache": {"policy": "lru", "slots": 12},
            "hardware": {**SLOW, "cpu_flops": "1GFLOPS", "d2h": {"latency": latency}},
        }
        trace = tiny_trace(requests=6, prompt_tokens=6, output_tokens=8, seed=5)
        return decisions_of(lambda: run_on(plan_of(tiny_scenario(**changes), trace)))

    assert decided("two_queue", "1us") != decided("two_queue", "90ms")
    assert decided("cost", "1us") == decided("cost", "90ms")


def test_differences_that_times_may_cause_are_no_error() -> None:
    differences = ["placement number 3: 5 on the real machine, 6 simulated"]
    with pytest.raises(MoesimError, match="decided differently"):
        _check_limits(differences, {"decisions_timed": False}, None, None)
    _check_limits(differences, {"decisions_timed": True}, None, None)


def rows_of(summary: dict[str, Any]) -> dict[str, str]:
    return {row[0].text: row[1].text for row in validation_tables(summary)[1].rows}


def test_the_report_says_why_decisions_differ_and_what_was_not_measured() -> None:
    shown = rows_of({**summary_of("two_queue"), "decisions_equal": False})
    assert shown["decisions"] == "different: two_queue decides by which copies are under way"
    assert shown["costs of the CPU"].startswith("assumed: from the hardware profile")
    cancels = summary_of("copy", prefetch={"policy": "oracle", "cancel": True})
    shown = rows_of({**cancels, "decisions_equal": False})
    assert shown["decisions"] == "different: prefetch.cancel decides by which copies are under way"
    shown = rows_of({**summary_of("copy"), "decisions_equal": False})
    assert shown["decisions"] == "DIFFERENT"
    assert "costs of the CPU" not in shown
