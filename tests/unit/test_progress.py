"""A long computation reports its progress to an observer, in numbers that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workloads import plan_of, random_case, tiny_scenario, tiny_trace

from moesim.errors import BudgetError, ScenarioError
from moesim.simulate import result_of, run
from moesim.simulate.curve import curve

Reports = dict[str, list[tuple[int, int]]]


def observed(call: Any) -> Reports:
    """Return what `call(progress)` reports, by the name of the part."""
    reports: Reports = {}
    call(lambda what, done, total: reports.setdefault(what, []).append((done, total)))
    return reports


def check(reports: Reports) -> None:
    for told in reports.values():
        done = [pair[0] for pair in told]
        assert done == sorted(done)
        assert len({pair[1] for pair in told}) == 1
        assert all(0 <= pair[0] <= pair[1] for pair in told)


def test_a_run_and_each_bound_are_told_apart_and_end_at_their_total() -> None:
    # Experts that are written back wait for the link, so no bound follows from the run itself.
    cache = {"slots": 12, "write_back": True}
    scenario = tiny_scenario(bounds=True, cache=cache)
    plan = plan_of(scenario, tiny_trace(requests=3, output_tokens=200))
    reports = observed(lambda progress: result_of(plan, progress))
    assert list(reports) == ["run", "MIN", "infinite cache", "infinite link"]
    check(reports)
    assert all(told[-1][0] == told[-1][1] for told in reports.values())
    assert len(reports["infinite link"]) > 1


def test_a_policy_that_knows_the_future_has_a_rehearsal_of_its_own() -> None:
    plan = plan_of(tiny_scenario(cache={"policy": "min", "slots": 8}), tiny_trace(requests=3))
    assert list(observed(lambda progress: result_of(plan, progress))) == ["run: rehearsal", "run"]


def test_rows_of_a_prefill_that_is_skipped_are_not_waited_for() -> None:
    scenario = tiny_scenario(workload={"prefill": "skip"})
    trace = tiny_trace(requests=3, prompt_tokens=20, output_tokens=4)
    reports = observed(lambda progress: result_of(plan_of(scenario, trace), progress))
    assert reports["run"][-1] == (9, 9)


@pytest.mark.parametrize("seed", range(20))
def test_progress_never_falls_nor_exceeds_its_total(seed: int) -> None:
    scenario, trace = random_case(seed)
    try:
        plan = plan_of(scenario, trace)
    except (BudgetError, ScenarioError):
        pytest.skip("a case that cannot run")
    check(observed(lambda progress: result_of(plan, progress)))


def test_an_observer_changes_nothing(tmp_path: Path) -> None:
    tiny_trace(requests=3).save(tmp_path / "trace")
    scenario = tiny_scenario(trace=str(tmp_path / "trace"), bounds=True)
    reports: list[Any] = []
    watched = run(scenario, out=tmp_path / "a", draw=True, progress=lambda *r: reports.append(r))
    assert reports[-1] == ("figures", 0, 1)
    assert watched.summary == run(scenario).summary


def test_a_curve_reports_each_policy_from_its_beginning() -> None:
    trace = tiny_trace(requests=3)
    reports = observed(
        lambda progress: curve(trace, ["lru", "min"], scope="global", progress=progress)
    )
    assert reports == {"lru": [(0, 1), (1, 1)], "min": [(0, 1), (1, 1)]}


def test_a_trace_is_saved_request_by_request(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    tiny_trace(requests=3).save(tmp_path / "trace", progress=lambda *r: told.append(r))
    assert told == [(1, 3), (2, 3), (3, 3)]
