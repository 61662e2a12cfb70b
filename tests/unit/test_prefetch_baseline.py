"""A run that prefetches is measured against the same run without prefetch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from run_directories import run_directory
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.report import compare_runs, load_run, print_summary
from moesim.report.metrics import run_caption
from moesim.report.tables import as_markdown, tables
from moesim.serving.replay import Replay
from moesim.simulate import baseline, baseline_of, result_of, run, simulate
from moesim.simulate.baseline import BASELINE_KEYS

SLOW = {"profile": "rtx-4090", "h2d": {"bandwidth": "3GB/s"}}
ORACLE: dict[str, Any] = {"policy": "oracle", "options": {"depth": 2}}
RARELY = {"arrivals": {"kind": "poisson", "rate_per_s": 300.0}}


def crowd() -> Any:
    return tiny_trace(requests=5, prompt_tokens=4, output_tokens=6, stickiness=0.3)


def summary(**changes: Any) -> dict[str, Any]:
    base = {"hardware": SLOW, "cache": {"slots": 12}, "bounds": True, "prefetch": ORACLE}
    return dict(result_of(plan_of(tiny_scenario(**{**base, **changes}), crowd())).summary)


def steps_s(found: dict[str, Any]) -> float:
    return float(found["busy_s"] + found["stall_s"])


def test_the_baseline_is_the_run_with_prefetch_none() -> None:
    for seed in range(20):
        scenario, trace = random_case(14_000 + seed, at_once=True)
        scenario["prefetch"] = ORACLE
        scenario["metrics"] = {"without_prefetch": True}
        found = result_of(plan_of(scenario, trace)).summary
        plain = run_on(plan_of({**scenario, "prefetch": "none"}, trace)).ledger.stepping_ns / 1e9
        assert found["no_prefetch_time_in_steps_s"] == plain, seed
        assert found["prefetch_saved_s"] == pytest.approx(plain - steps_s(found), abs=1e-12), seed
        assert found["prefetch_saved_share"] == pytest.approx(found["prefetch_saved_s"] / plain)


def test_prefetch_can_save_time_and_lose_time() -> None:
    saved = summary(prefetch={"policy": "dial", "options": {"recall": 1.0, "precision": 1.0}})
    lost = summary(prefetch={"policy": "dial", "options": {"recall": 0.1, "precision": 0.1}})
    assert saved["prefetch_saved_s"] > 0 > lost["prefetch_saved_s"]
    assert saved["no_prefetch_time_in_steps_s"] == lost["no_prefetch_time_in_steps_s"]


def test_where_arrivals_are_spread_the_baseline_serves_the_steps_that_the_run_formed() -> None:
    """Formed anew, its steps would be others: a slower run batches requests that meet in it."""
    differing = 0
    for seed in range(12):
        scenario, trace = random_case(14_500 + seed)
        scenario["prefetch"], scenario["workload"] = ORACLE, RARELY
        scenario["cache"]["policy"] = "lru"
        plan = plan_of({**scenario, "metrics": {"without_prefetch": True}}, trace)
        outcome = simulate(plan)
        assert outcome.schedule is not None
        found = baseline_of(outcome)["no_prefetch_time_in_steps_s"]
        plain = plan_of({**scenario, "prefetch": "none"}, trace)
        same = simulate(plain, batching=Replay(outcome.schedule), at_once=True)
        assert same.ledger.num_steps == outcome.ledger.num_steps, seed
        assert found == same.ledger.stepping_ns / 1e9, seed
        differing += simulate(plain).ledger.num_steps != outcome.ledger.num_steps
    assert differing > 0


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"bounds": False}, False),
        ({"bounds": False, "metrics": {"without_prefetch": True}}, True),
        ({"metrics": {"without_prefetch": False}}, False),
        ({"prefetch": "none"}, False),
        ({"prefetch": "none", "metrics": {"without_prefetch": True}}, False),
    ],
)
def test_the_baseline_can_be_switched(changes: dict[str, Any], known: bool) -> None:
    for workload in ({}, RARELY):
        found = summary(**changes, workload=workload)
        assert [found[key] is not None for key in BASELINE_KEYS] == [known] * 3


def test_runs_that_differ_in_prefetch_alone_share_a_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd().save(tmp_path / "trace")
    monkeypatch.setattr(baseline, "_TIMES_NS", {})
    base = {"trace": str(tmp_path / "trace"), "cache": {"slots": 12}}
    base["metrics"] = {"without_prefetch": True}

    def parts(**changes: Any) -> list[str]:
        seen: list[str] = []
        run(tiny_scenario(**{**base, **changes}), progress=lambda what, *_: seen.append(what))
        return list(dict.fromkeys(seen))

    assert parts(prefetch=ORACLE) == ["run", "no prefetch"]
    assert parts(prefetch="predicted", name="other") == ["run"]
    assert parts(prefetch=ORACLE, cache={"slots": 13}) == ["run", "no prefetch"]
    assert parts(prefetch=ORACLE, seed=1) == ["run", "no prefetch"]
    spread = parts(prefetch=ORACLE, workload=RARELY)
    assert spread == parts(prefetch=ORACLE, workload=RARELY) == ["run", "no prefetch"]


def test_reports_say_what_prefetching_saves_or_costs(tmp_path: Path) -> None:
    known = {"no_prefetch_time_in_steps_s": 8.0, "prefetch_saved_s": -0.4}
    known["prefetch_saved_share"] = -0.05
    path = run_directory(tmp_path / "run", prefetch="predicted", summary=known)
    stream = io.StringIO()
    print_summary(path, stream)
    assert "predicted, costs 5 % of the time in steps" in stream.getvalue()
    row = next(line for line in stream.getvalue().splitlines() if "without prefetch" in line)
    assert row.split()[-1] == "8"
    assert "predicted prefetch (costs 5 % of the time in steps)" in run_caption(load_run(path))


def test_a_comparison_has_a_column_of_it_and_no_row_is_the_best(tmp_path: Path) -> None:
    runs = []
    for policy, saved in (("none", None), ("predicted", 0.2), ("oracle", 0.3)):
        path = run_directory(
            tmp_path / policy, prefetch=policy, point={"prefetch.policy": policy},
            summary={"prefetch_saved_share": saved},
        )  # fmt: skip
        runs.append(load_run(path))
    comparison = compare_runs(runs)
    means, differences = tables(comparison)
    place = list(means.columns).index("saved by prefetch (% of step time)")
    assert [row[place].text for row in means.rows] == ["no prefetch", "20", "30"]
    assert {row[place].mark for row in means.rows} == {""}
    assert not any("saved by" in column for column in differences.columns)
    assert "negative where prefetching costs time" in as_markdown("x", comparison, [], "x", [])
    without = compare_runs(runs[:1])
    assert not any("saved by" in column for column in tables(without)[0].columns)


def test_the_switch_is_no_difference_between_runs(tmp_path: Path) -> None:
    crowd().save(tmp_path / "trace")
    paths = []
    for number, (policy, metrics) in enumerate(
        [("lru", {}), ("fifo", {"without_prefetch": False}), ("lru", {"without_prefetch": True})]
    ):
        scenario = tiny_scenario(
            trace=str(tmp_path / "trace"), cache={"policy": policy, "slots": 12}, metrics=metrics
        )
        run(scenario, out=tmp_path / str(number))
        paths.append(load_run(tmp_path / str(number)))
    assert compare_runs(paths).setting_keys == ()
