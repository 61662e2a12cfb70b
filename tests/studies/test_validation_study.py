"""Studies: split before they are measured, interleaved, killed and resumed, and honest."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_profiles import measured_profile, random_times, tiny_shape
from stand_in_machines import PretendBench, simulated
from workloads import plan_of, tiny_scenario, tiny_trace

from moesim.errors import OutputError
from moesim.hardware.ops import BatchShape, Experts, Front, Tail
from moesim.report.study import study_errors, write_study
from moesim.report.style import house_style
from moesim.simulate.build import Plan
from moesim.validate import compare, differences
from moesim.validate.correction import Correction, corrected, fit_correction
from moesim.validate.store import load_run, save_run
from moesim.validate.study import Configuration, Study, rankings, split, verdict

TRACE = tiny_trace(requests=3)
RUNS = 3


def configurations() -> tuple[list[Configuration], dict[str, Plan]]:
    grid, plans = [], {}
    for policy in ("lru", "fifo", "random"):
        for slots in (2, 4):
            name = f"{policy}-{slots}"
            scenario = tiny_scenario(name=name, cache={"policy": policy, "slots": f"{slots}/layer"})
            plans[name] = plan_of(scenario, TRACE)
            grid.append(
                Configuration(name, f"{slots}", plans[name].scenario, slots == 2, slots == 4)
            )
    return grid, plans


class Dying(PretendBench):
    """Is killed after some runs."""

    def __init__(self, life: int) -> None:
        super().__init__()
        self._life = life

    def run(self, plan: Plan, script: Any = None) -> Any:
        if len(self.runs) == self._life:
            raise KeyboardInterrupt
        return super().run(plan, script)


def study(folder: Path, **changes: Any) -> Study:
    options = {"device": "pretend", "machine": {"cpu": "none"}, "runs": RUNS, **changes}
    return Study(folder, configurations()[0], **options)


def test_runs_of_different_configurations_take_turns(tmp_path: Path) -> None:
    grid, plans = configurations()
    bench = PretendBench()
    study(tmp_path).measure(plans, bench)
    names = [configuration.name for configuration in grid]
    assert bench.runs == names * (1 + RUNS), "a warm-up each, then rounds"


def test_each_round_is_announced_and_none_that_is_done(tmp_path: Path) -> None:
    grid, plans = configurations()
    bench, rounds = PretendBench(), []
    study(tmp_path).measure(
        plans, bench, before=lambda number: rounds.append((number, len(bench.runs)))
    )
    assert rounds == [(number, len(grid) * (1 + number)) for number in range(RUNS)]
    study(tmp_path, runs=RUNS + 1).measure(
        plans, PretendBench(), before=lambda number: rounds.append((number, -1))
    )
    assert rounds[RUNS:] == [(RUNS, -1)]


def test_a_killed_study_keeps_its_runs_and_resumes(tmp_path: Path) -> None:
    grid, plans = configurations()
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path).measure(plans, Dying(6 + 6 + 6 + 2))  # two of the last round are done
    begun = study(tmp_path)
    assert sorted(begun.assess(plans)) == sorted(configuration.name for configuration in grid[:2])
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert len(kept) == 14
    bench = PretendBench()
    begun.measure(plans, bench)
    assert bench.runs == [configuration.name for configuration in grid[2:]] * 2, (
        "a warm-up and what was missing"
    )
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(begun.assess(plans)) == len(grid)
    idle = PretendBench()
    begun.measure(plans, idle)
    assert idle.runs == []


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    with pytest.raises(OutputError, match="a study of another machine"):
        study(tmp_path, machine={"cpu": "some other"})


def test_a_study_may_be_given_more_runs_later(tmp_path: Path) -> None:
    begun = study(tmp_path)
    before = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    more = study(tmp_path, runs=7)
    after = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert after == {**before, "runs": 7}
    name = begun.configurations[0].name
    assert len(more.missing(name)) == 7 > len(begun.missing(name))


def test_a_run_on_disk_is_the_run(tmp_path: Path) -> None:
    scenario = tiny_scenario(
        cache={"policy": "lru", "slots": "3/layer"}, prefetch={"policy": "predicted"}
    )
    run = simulated(plan_of(scenario, TRACE))
    save_run(tmp_path / "a/run-0.npz", run)
    again = load_run(tmp_path / "a/run-0.npz")
    assert again.decisions == run.decisions
    assert not differences(again.decisions, run.decisions)
    for table in ("steps", "events", "requests"):
        for name, column in getattr(run, table).items():
            assert np.array_equal(getattr(again, table)[name], column)
    assert compare([again], run).summary["total_time_error_pct"] == 0
    (tmp_path / "a/run-0.npz").write_bytes(b"PK")
    with pytest.raises(OutputError, match="not a finished run"):
        load_run(tmp_path / "a/run-0.npz")


def test_the_split_is_drawn_by_name_and_nothing_else() -> None:
    names = [f"configuration {number}" for number in range(30)]
    chosen = split(names)
    assert len(chosen) == 10
    assert split(list(reversed(names))) == chosen
    assert chosen != set(sorted(names)[:10])


def verdict_of(tmp_path: Path, **slower: float) -> Any:
    """A study in which configurations are slower than simulated by a factor."""
    grid, plans = configurations()
    results = {
        configuration.name: compare(
            [
                simulated(
                    plans[configuration.name],
                    slower=slower.get(configuration.name.replace("-", "_"), 1.0),
                )
            ]
            * RUNS,
            simulated(plans[configuration.name]),
        )
        for configuration in grid
    }
    return verdict(results, grid), rankings(results, grid), results, grid


def test_the_verdict_is_over_held_out_configurations(tmp_path: Path) -> None:
    found, *_ = verdict_of(tmp_path, lru_4=3.0)
    assert found.held_out == 3
    assert found.total_error_worst_pct == pytest.approx(0)
    found, *_ = verdict_of(tmp_path, lru_2=1.25)
    assert found.worst == "lru-2"
    assert found.total_error_worst_pct == pytest.approx(20, abs=0.1)
    assert found.total_error_median_pct == pytest.approx(0)
    assert found.missing == found.untestable == found.decisions_differ == []


def test_rankings_that_part_are_named(tmp_path: Path) -> None:
    found, pairs, *_ = verdict_of(tmp_path)
    assert found.rankings_reversed == []
    assert len(pairs) == 6, "three policies, two sizes"
    assert {pair.group for pair in pairs} == {"2", "4"}
    longest = max(pairs, key=lambda pair: abs(pair.real_pct))
    fast = longest.first if longest.real_pct > 0 else longest.second
    found, pairs, *_ = verdict_of(tmp_path, **{fast.replace("-", "_"): 5.0})
    assert any(fast in pair for pair in found.rankings_reversed)


def test_untestable_configurations_are_named_and_judge_nothing(tmp_path: Path) -> None:
    _, _, results, grid = verdict_of(tmp_path)
    plan = configurations()[1]["fifo-2"]
    noisy = [simulated(plan, slower=factor) for factor in (1, 2, 3)]
    results["fifo-2"] = compare(noisy, simulated(plan))
    results.pop("lru-4")
    found = verdict(results, grid)
    assert found.untestable == ["fifo-2"]
    assert found.held_out == 2
    assert found.missing == ["lru-4"]


def test_the_tables_show_every_result(tmp_path: Path) -> None:
    grid, plans = configurations()
    begun = study(tmp_path / "study")
    begun.measure(plans, PretendBench())
    assessed = begun.assess(plans)
    results = {name: configuration.comparison for name, configuration in assessed.items()}
    rows = [
        {
            "configuration": configuration.name,
            "held_out": configuration.held_out,
            "calibrates": configuration.calibrates,
            **assessed[configuration.name].summary,
        }
        for configuration in grid
    ]
    pairs = [{**asdict(p), "agrees": p.agrees} for p in rankings(results, grid)]
    said = asdict(verdict(results, grid))
    write_study(tmp_path, rows, said, pairs, title="A study", notes=["a note"])
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("# A study\n\n- a note\n")
    for configuration in grid:
        assert f"| {configuration.name} |" in text
    assert "held-out" in text
    assert (tmp_path / "plots/study_errors.png").exists()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(grid)
    noisy = [{**row, "testable": replace is None} for row in rows]
    with house_style():
        assert {row[1] for row in study_errors(noisy).rows} == {"untestable"}


def test_two_made_up_numbers_are_recovered_by_the_fit(tmp_path: Path) -> None:
    shape = tiny_shape()
    profile = measured_profile(tmp_path / "measured.yaml", random_times(3, shape))
    plans = [
        plan_of(
            tiny_scenario(
                hardware={"profile": str(profile), "h2d": {"bandwidth": rate}},
                cache={"policy": "lru", "slots": f"{slots}/layer"},
            ),
            TRACE,
        )
        for slots in (1, 3, 6)
        for rate in ("2GB/s", "40GB/s")
    ]
    truth = Correction(1.25, 30_000.0)
    real = [total_ns(corrected(plan, truth)) for plan in plans]
    found = fit_correction(plans, real, total_ns)
    assert found.compute_factor == pytest.approx(1.25, rel=0.01)
    assert found.landing_ns == pytest.approx(30_000, rel=0.02)
    assert corrected(plans[0], Correction()).cost.compute_ns(Tail(BATCH)) == plans[
        0
    ].cost.compute_ns(Tail(BATCH))
    slower = corrected(plans[0], Correction(2.0)).cost
    for op in (Tail(BATCH), Front(1, BATCH), Experts(0, (1, 2), (3, 4))):
        assert slower.compute_ns(op) == pytest.approx(2 * plans[0].cost.compute_ns(op), abs=2)


BATCH = BatchShape(5, 9, 20, 2, 2)


def total_ns(plan: Plan) -> float:
    return simulated(plan).makespan_ns
