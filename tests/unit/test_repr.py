"""What a prompt or a notebook shows of an object is one short line that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stand_in_machines import PretendBench
from workloads import plan_of, tiny_scenario, tiny_trace

from moesim.errors import UsageError
from moesim.report import compare_runs, load_run
from moesim.simulate import result_of, run, simulate
from moesim.training.text import Corpus, Document
from moesim.validate.validation import validate_plan

LONGEST = 200


def check(shown: str, *fragments: str) -> None:
    assert len(shown) <= LONGEST, shown
    assert "\n" not in shown
    for fragment in fragments:
        assert fragment in shown


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace and two runs."""
    home = tmp_path_factory.mktemp("home")
    tiny_trace(requests=3, output_tokens=300).save(home / "trace")
    for seed in (0, 1):
        run(scenario(home, seed), out=home / f"run{seed}")
    return home


def scenario(home: Path, seed: int) -> dict[str, Any]:
    return tiny_scenario(name="demo", trace=str(home / "trace"), seed=seed)


def test_a_result_shows_its_name_its_place_and_a_few_numbers(home: Path) -> None:
    result = run(scenario(home, 0), out=home / "run0")
    throughput = result.summary["output_tokens_per_s"]
    fragments = ("demo", "3 requests", f"{throughput:.4g} output tokens/s in all")
    check(repr(result).replace(str(home), ""), *fragments, "/run0")
    check(repr(load_run(home / "run0")).replace(str(home), ""), *fragments, "/run0")


def test_a_result_without_any_number_is_shown_too() -> None:
    plan = plan_of(tiny_scenario(), tiny_trace(requests=1))
    result = result_of(plan)
    assert "not written" in repr(result)
    for key in ("makespan_s", "output_tokens_per_s", "stall_share"):
        result.summary[key] = None
    check(repr(result), "scenario: 1 requests")


def test_what_is_made_on_the_way_is_shown_in_short(home: Path) -> None:
    plan = plan_of(tiny_scenario(name="demo"), tiny_trace(requests=3))
    check(repr(plan), "demo", "RTX 4090", "32 slots")
    check(repr(plan.scenario), "demo", "rtx-4090", "lru")
    assert str(plan.scenario) == repr(plan.scenario)
    check(repr(plan.trace), "3 requests")
    outcome = simulate(plan)
    check(repr(outcome), "demo", f"{outcome.now_ns} ns")


def test_a_sweep_is_named_by_its_keys(home: Path) -> None:
    from moesim.scenario import load_scenario

    check(repr(load_scenario({**scenario(home, 0), "sweep": {"seed": [0, 1]}})), "seed")


def test_a_comparison_counts_what_it_compares(home: Path) -> None:
    comparison = compare_runs([load_run(home / "run0"), load_run(home / "run1")])
    check(repr(comparison), "2 runs in 1 rows")
    check(repr(comparison.rows[0]), "2 runs")


def test_a_validation_and_its_parts_are_shown_in_short() -> None:
    plan = plan_of(tiny_scenario(name="demo"), tiny_trace(requests=3))
    bench = PretendBench("cpu", [plan])
    validation = validate_plan(plan, bench, runs=1)
    assert len(repr(validation)) < 2 * LONGEST
    check(repr(validation.comparison), "0 differences")
    check(repr(bench.run(plan)), "makespan_ns")


def test_a_corpus_does_not_show_its_text() -> None:
    corpus = Corpus.split({"law": [Document(str(n), "text " * 1000) for n in range(20)]})
    check(repr(corpus), "law", "20 documents")
    check(repr(Document("name", "text " * 1000)), "name")


def test_an_unknown_table_is_an_error_that_names_those_there_are() -> None:
    result = result_of(plan_of(tiny_scenario(), tiny_trace(requests=1)))
    with pytest.raises(
        UsageError, match=r"no table 'step'; there are requests, .*did you mean 'steps'"
    ):
        result.table("step")
    with pytest.raises(UsageError, match="there are requests, steps, layers, timeline"):
        result.table("foo")
