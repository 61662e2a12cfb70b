"""Bounds are drawn and printed for the runs that they bound, and for no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from run_directories import run_directory
from workloads import random_case, tiny_scenario, tiny_trace

from moesim.policies import find
from moesim.report.capacity import hit_rate_against_capacity, metrics_against_capacity
from moesim.report.comparison import Comparison, Row, compare_runs
from moesim.report.limits import (
    HIT_LIMITS,
    INFINITE_CACHE,
    INFINITE_LINK,
    MIN_BOUND,
    TIME_LIMITS,
    limit,
)
from moesim.report.metrics import HITS, Metric
from moesim.report.runs import load_run
from moesim.report.several import side_by_side
from moesim.report.style import house_style
from moesim.report.tables import NO_BOUND, tables
from moesim.simulate import run

HIT_RATE = Metric("expert_hit_rate", "hits and late hits", "%", 100, is_share=True)
"""What bounds on hits count. No report shows it beside a bound, because copies that arrive late
would seem to beat it."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {"cache.policy": "lru"},
    {"cache.policy": "static"},
    {"cache.policy": "random", "prefetch.policy": "predicted"},
    {"cache.policy": "fifo", "batching.policy": "prefill_first"},
)


def written(base: dict[str, Any], folder: Path, points: list[dict[str, Any]]) -> Comparison:
    """Return the comparison of a scenario's runs at `points`."""
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
    """Return the labels of the bounds that a row beats."""
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


def test_min_bounds_no_hits_of_experts_of_unequal_sizes(tmp_path: Path) -> None:
    """MIN weighs no sizes, so a policy that keeps small experts may hit more often."""
    tiny_trace(requests=4).save(tmp_path / "trace")
    sized = {"shape": "trace", "expert_bits_by": {"layer": {"0": 8}}}
    base = tiny_scenario(trace=str(tmp_path / "trace"), bounds=True, cache={"slots": 12})
    (row,) = written({**base, "model": sized}, tmp_path / "sized", [{}]).rows
    assert row.mean("min_hit_rate") > 0
    assert math.isnan(limit(row, HIT_LIMITS[MIN_BOUND]))
    assert not math.isnan(limit(row, HIT_LIMITS[INFINITE_CACHE]))
    bits = {"model.expert_bits_by": sized["expert_bits_by"]}
    (table, *_) = tables(written(base, tmp_path / "both", [{}, bits]))
    assert [cells[-1].text == NO_BOUND for cells in table.rows] == [False, True]


@pytest.mark.parametrize("placement", ["cost", "two_queue", "cpu_layers", "cpu_experts"])
def test_no_run_with_experts_on_the_cpu_beats_a_bound_that_holds_for_it(
    placement: str, tmp_path: Path
) -> None:
    """A slot is filled by a copy, which can take longer than the CPU: it bounds no such run."""
    slower = 0
    for seed in range(12):
        scenario, trace = random_case(7500 + seed, at_once=True)
        scenario |= {"placement": placement, "prefetch": "none", "bounds": True}
        scenario["cache"]["policy"] = "lru"
        trace.save(tmp_path / f"trace {seed}")
        scenario["trace"] = str(tmp_path / f"trace {seed}")
        (row,) = written(scenario, tmp_path / str(seed), [{}]).rows
        assert beaten(row) == [], seed
        assert math.isnan(limit(row, TIME_LIMITS[INFINITE_CACHE]))
        slower += row.mean("infinite_cache_makespan_s") > row.mean("makespan_s")
    assert slower > 0 or placement in ("cost", "two_queue")


def test_a_row_has_a_bound_only_if_each_of_its_seeds_has_it(tmp_path: Path) -> None:
    """The mean bound of some seeds does not bound the mean of all."""
    runs = [
        load_run(
            run_directory(
                tmp_path / str(seed), seed=seed, summary={"hits": 90 - 60 * seed, "accesses": 100,
                "min_hit_rate": None if seed == 0 else 0.4},
            )
        )
        for seed in range(2)
    ]  # fmt: skip
    (row,) = compare_runs(runs).rows
    assert row.estimate(HITS).mean == 60
    assert math.isnan(limit(row, HIT_LIMITS[MIN_BOUND]))
    assert limit(compare_runs(runs[1:]).rows[0], HIT_LIMITS[MIN_BOUND]) == 40


def test_two_rows_of_one_size_share_the_bound_that_holds_for_both(tmp_path: Path) -> None:
    """A size of the memory and a number of slots can give the same number of slots."""
    runs = [
        load_run(
            run_directory(
                tmp_path / str(number), slots_per_layer=slots, summary={"min_hit_rate": bound},
                point={"cache.slots": slots, "memory.capacity": capacity},
            )
        )
        for number, (slots, capacity, bound) in enumerate(
            [(4, "10GiB", 0.9), (4, "20GiB", 0.5), (8, "20GiB", 0.95)]
        )
    ]  # fmt: skip
    with house_style():
        chart = hit_rate_against_capacity(compare_runs(runs))
    assert chart is not None
    drawn = {row[2]: row[4] for row in chart.rows if row[1] == MIN_BOUND}
    assert drawn == {4: pytest.approx(90), 8: pytest.approx(95)}


def test_a_bound_is_drawn_beside_its_own_variant_and_is_no_mean_over_variants(
    compared: Comparison,
) -> None:
    """In the panels side by side, each tick is the bound of the row it stands in."""
    with house_style():
        chart = side_by_side(compared)
    ticks = {(row[0], row[3]): row[4] for row in chart.rows if row[1] == MIN_BOUND}
    bounded = [row for row in compared.rows if not row.prefetches]
    shown = {setting for setting, _ in ticks}
    assert ticks == {
        (row.setting, row.variant): pytest.approx(row.mean("min_hit_rate") * 100)
        for row in bounded
        if row.setting in shown
    }
    assert len({value for (setting, _), value in ticks.items() if setting in shown}) > len(shown)
