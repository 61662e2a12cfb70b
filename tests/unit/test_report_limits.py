"""Bounds are drawn and printed for the runs that they bound, and for no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from workloads import random_case, tiny_scenario, tiny_trace

from moesim.policies import find
from moesim.report.capacity import hit_rate_against_capacity, metrics_against_capacity
from moesim.report.comparison import Comparison, Row, compare_runs
from moesim.report.limits import HIT_LIMITS, INFINITE_LINK, MIN_BOUND, TIME_LIMITS, limit
from moesim.report.metrics import HIT_RATE
from moesim.report.runs import load_run
from moesim.report.style import house_style
from moesim.report.tables import tables
from moesim.simulate import run

VARIANTS: tuple[dict[str, Any], ...] = (
    {"cache.policy": "lru"},
    {"cache.policy": "static"},
    {"cache.policy": "random", "prefetch.policy": "predicted"},
    {"cache.policy": "fifo", "batching.policy": "prefill_first"},
)


def written(base: dict[str, Any], folder: Path, points: list[dict[str, Any]]) -> Comparison:
    """The comparison of the runs that `points` make of a scenario."""
    made = []
    for number, point in enumerate(points):
        scenario = {key: dict(v) if isinstance(v, dict) else v for key, v in base.items()}
        for key, value in point.items():
            section, _, name = key.partition(".")
            scenario[section] = {**scenario.get(section, {}), name: value}
        run(scenario, out=folder / str(number), point=point)
        made.append(load_run(folder / str(number)))
    return compare_runs(made)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("limits")
    tiny_trace(requests=6, prompt_tokens=5, output_tokens=8, stickiness=0.4).save(folder / "trace")
    base = tiny_scenario(
        trace=str(folder / "trace"), bounds=True, batching={"token_budget": 7}, cache={}
    )
    points = [{**variant, "cache.slots": slots} for variant in VARIANTS for slots in (8, 16, 24)]
    return written(base, folder, points)


def throughput(row: Row) -> float:
    return row.mean("output_tokens_per_s")


def beaten(row: Row) -> list[str]:
    """The labels of bounds that a row beats."""
    rates = [
        (label, limit(row, of), row.estimate(HIT_RATE).mean) for label, of in HIT_LIMITS.items()
    ]
    rates += [(label, limit(row, of), throughput(row)) for label, of in TIME_LIMITS.items()]
    return [label for label, bound, reached in rates if reached > bound * (1 + 1e-9)]


@pytest.mark.parametrize("block", range(4))
def test_no_run_beats_a_bound_that_holds_for_it(block: int, tmp_path: Path) -> None:
    drawn = 0
    for seed in range(block, 40, 4):
        scenario, trace = random_case(7000 + seed)
        if find("eviction", scenario["cache"]["policy"]).clairvoyant:
            scenario["cache"]["policy"] = "lru"
        trace.save(tmp_path / f"trace {seed}")
        scenario |= {"trace": str(tmp_path / f"trace {seed}"), "bounds": True}
        (row,) = written(scenario, tmp_path / str(seed), [{}]).rows
        assert beaten(row) == [], seed
        drawn += sum(not math.isnan(limit(row, of)) for of in HIT_LIMITS.values())
    assert drawn > 3


def test_no_row_of_a_comparison_beats_its_bounds(compared: Comparison) -> None:
    assert [(row.variant, row.capacity, beaten(row)) for row in compared.rows if beaten(row)] == []


def test_a_line_of_a_bound_is_never_below_the_variant_that_it_is_drawn_for(
    compared: Comparison,
) -> None:
    """Whatever the charts record: the bound's own line, or the one line of all variants."""
    with house_style():
        charts = (hit_rate_against_capacity(compared), metrics_against_capacity(compared))
    checked = set()
    for chart in charts:
        assert chart is not None
        lines: dict[tuple[str, float], float] = {}
        for values in chart.rows:
            row = dict(zip(chart.columns, values, strict=True))
            if row.get("metric", "throughput") == "throughput":
                lines[row["line"], row["slots_per_layer"]] = row["mean"]
        for (line, size), value in lines.items():
            label, _, of = line.partition(" of ")
            for variant in [of] if of else compared.variants:
                if label in (*HIT_LIMITS, *TIME_LIMITS):
                    assert value >= lines[variant, size] * (1 - 1e-9), (line, variant, size)
                    checked.add(label)
    assert checked == {*HIT_LIMITS, *TIME_LIMITS}


def test_bounds_that_differ_between_variants_are_drawn_for_each(compared: Comparison) -> None:
    with house_style():
        chart = hit_rate_against_capacity(compared)
    assert chart is not None
    lines = {row[1] for row in chart.rows}
    prefetching = [row.variant for row in compared.rows if "predicted" in row.variant]
    for variant in compared.variants:
        assert (f"{MIN_BOUND} of {variant}" in lines) == (variant not in prefetching)
    assert MIN_BOUND not in lines


def test_prefetching_lifts_hits_above_min_so_none_is_printed_for_it(compared: Comparison) -> None:
    first = tables(compared)[0]
    assert first.columns[-1] == "MIN bound (% hits)"
    cells = {row[0].text: row[-1].text for row in first.rows}
    for variant, text in cells.items():
        assert (text == "no bound") == ("predicted" in variant), cells


def test_throughput_is_bounded_only_where_all_requests_arrive_at_once(tmp_path: Path) -> None:
    tiny_trace(requests=4).save(tmp_path / "trace")
    arrivals = {"kind": "poisson", "rate_per_s": 50.0}
    base = tiny_scenario(trace=str(tmp_path / "trace"), bounds=True, cache={"slots": 12})
    (row,) = written({**base, "workload": {"arrivals": arrivals}}, tmp_path / "spread", [{}]).rows
    assert math.isnan(limit(row, TIME_LIMITS[INFINITE_LINK]))
    assert limit(row, HIT_LIMITS[MIN_BOUND]) >= row.estimate(HIT_RATE).mean
    (row,) = written(base, tmp_path / "at once", [{}]).rows
    assert limit(row, TIME_LIMITS[INFINITE_LINK]) > throughput(row)
