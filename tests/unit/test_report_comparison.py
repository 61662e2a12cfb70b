"""How runs are grouped and compared, and which notes a reader gets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from run_directories import run_directory

from moesim.errors import UsageError
from moesim.report import Comparison, Run, compare_runs, load_run
from moesim.report.names import policy_label
from moesim.report.page.comparison_tables import leaders
from moesim.report.page.differences import differences
from moesim.report.tables import as_json, signs, tables

Sweep = dict[str, list[Any]]
ARGUMENTS = {
    "cache.policy": "policy",
    "cache.slots": "slots_per_layer",
    "prefetch.policy": "prefetch",
    "hardware": "hardware",
    "trace": "trace",
    "seed": "seed",
}


def runs_of(folder: Path, sweep: Sweep, **fixed: Any) -> list[Run]:
    """Run directories of the grid of these values, in its order."""
    runs = []
    for number, values in enumerate(itertools.product(*sweep.values())):
        point = dict(zip(sweep, values, strict=True))
        arguments = {ARGUMENTS[key]: value for key, value in point.items()}
        path = run_directory(
            folder / f"{number:03}",
            point=point,
            steps=2,
            requests=2,
            output_tokens=2,
            **(fixed | arguments),
        )
        runs.append(load_run(path))
    return runs


def compared(folder: Path, sweep: Sweep, **fixed: Any) -> Comparison:
    return compare_runs(runs_of(folder, sweep, **fixed))


def test_nothing_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="no runs to compare"):
        compare_runs([])


def test_seeds_become_one_row_with_an_interval(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"cache.policy": ["lru", "lfu"], "seed": [2, 0, 1]})
    assert [row.variant for row in comparison.rows] == ["LRU", "LFU"]
    assert comparison.rows[0].seeds == (0, 1, 2)
    assert comparison.rows[0].estimate(comparison.headline[0]).n == 3
    assert "seeds 0, 1, 2; intervals: 95 % t-interval over n = 3 seeds" in comparison.caption()
    assert "seeds 0, 1, 2 (n = 3); trace" in comparison.caption(intervals=False)


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"cache.policy": ["lru", "lfu"]})
    assert comparison.rows[0].estimate(comparison.headline[0]).half is None
    assert "seed 0, so no intervals" in comparison.caption()
    assert any("no intervals; sweep the seed" in note for note in comparison.notes)


def test_seeds_that_change_nothing_are_one_observation(tmp_path: Path) -> None:
    """Intervals without a width would call every difference better or worse."""
    comparison = compare_runs(repeating(tmp_path, "lru", "lfu"))
    assert not comparison.has_intervals
    assert comparison.equal_seeds
    assert "seeds 0, 1, which gave the same numbers, so no intervals" in comparison.caption()
    assert [note for note in comparison.notes if "same numbers" in note] == [
        note for note in comparison.notes if note.startswith("WARNING: all seeds gave the same")
    ]
    means, changes = tables(comparison)
    texts = [cell.text for row in (*means.rows, *changes.rows) for cell in row]
    assert not [text for text in texts if "±" in text]
    assert {cell.mark for row in changes.rows for cell in row} == {""}
    assert {cell.mark for row in means.rows for cell in row} == {"", "best"}
    assert "seeds without effect: no interval" in signs(comparison)
    plain = as_json(comparison)["rows"][0]["metrics"]["tpot_mean_ms"]
    assert (plain["half_interval"], plain["n"]) == (None, 2)
    figure = differences(comparison)
    assert figure is not None
    verdicts = {row[figure.fields.index("verdict")] for row in figure.rows}
    assert verdicts == {"seeds without effect, no interval"}
    assert leaders(comparison)[-1].startswith("seeds have no effect")


def test_seeds_that_change_one_variant_leave_its_differences_their_intervals(
    tmp_path: Path,
) -> None:
    varied = [load_run(run_directory(tmp_path / f"r{n}", policy="random", seed=n)) for n in (0, 1)]
    comparison = compare_runs([*repeating(tmp_path, "lru", "lfu"), *varied])
    assert comparison.has_intervals
    assert any("in 2 of 3 points, which have no intervals" in note for note in comparison.notes)
    _, changes = tables(comparison)
    texts = {row[0].text: row[1].text for row in changes.rows}
    assert "±" not in texts["LFU"]
    assert "±" in texts["random"]


def repeating(folder: Path, *policies: str) -> list[Run]:
    """Return two runs of each policy whose seeds, 0 and 1, changed nothing."""
    runs = []
    for policy in policies:
        run = load_run(run_directory(folder / policy, policy=policy, seed=0))
        changes = {"seed": 1}
        twin = Run(folder / f"{policy}-1", {**run.summary, **changes}, {},
                   {**run.scenario, **changes})  # fmt: skip
        runs += [run, twin]
    return runs


def test_policies_are_compared_within_a_setting(tmp_path: Path) -> None:
    comparison = compared(
        tmp_path, {"hardware": ["t4", "rtx-4090"], "cache.policy": ["lru", "lfu", "fifo"]}
    )
    assert comparison.policy_keys == ("cache.policy",)
    assert comparison.setting_keys == ("hardware",)
    assert comparison.settings == ["hardware = t4", "hardware = rtx-4090"]
    assert [row.variant for row in comparison.within("hardware = t4")] == ["LRU", "LFU", "FIFO"]


def test_sizes_of_the_cache_ascend_by_number_and_not_by_text(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"cache.slots": [12, 2, 8], "cache.policy": ["lru", "lfu"]})
    assert comparison.settings == [f"{size} of 16 experts a layer" for size in (2, 8, 12)]
    assert [row.slots_per_layer for row in comparison.series("", "LRU")] == [2, 8, 12]


def test_where_no_policy_differs_the_settings_are_compared(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"hardware": ["t4", "rtx-4090"]})
    assert comparison.variants == ["hardware = t4", "hardware = rtx-4090"]
    assert comparison.settings == [""]


def test_a_single_run_is_a_comparison_of_one(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"seed": [0]})
    assert (comparison.variants, comparison.settings) == (["LRU"], [""])


def test_a_variant_names_all_policies_that_differ(tmp_path: Path) -> None:
    comparison = compared(
        tmp_path, {"cache.policy": ["lru", "min"], "prefetch.policy": ["none", "oracle"]}
    )
    assert comparison.variants == [
        "LRU, no prefetch",
        "LRU, oracle prefetch",
        "MIN (misses), no prefetch",
        "MIN (misses), oracle prefetch",
    ]
    assert [row.knows_the_future for row in comparison.rows] == [False, True, True, True]


def test_of_a_section_that_was_swept_whole_only_what_differs_is_named(tmp_path: Path) -> None:
    common = {"token_budget": 16, "max_sequences": 32}
    sections = [
        {"policy": "decode_first", **common},
        {"policy": "task_aware", **common},
        {"policy": "task_aware", "options": {"mix": False}, **common},
        {"policy": "task_aware", **common, "token_budget": 8},
    ]
    runs = [
        load_run(
            run_directory(
                tmp_path / f"{number}-{seed}",
                point={"batching": section, "seed": seed},
                seed=seed,
                steps=2,
                requests=2,
                output_tokens=2,
            )
        )
        for number, section in enumerate(sections)
        for seed in (0, 1)
    ]
    comparison = compare_runs(runs)
    assert comparison.variants == [
        "decode-first batching (token_budget 16)",
        "task-aware batching (token_budget 16)",
        "task-aware batching (token_budget 16 mix false)",
        "task-aware batching (token_budget 8)",
    ]
    assert compare_runs(runs[:6]).variants == [
        "decode-first batching",
        "task-aware batching",
        "task-aware batching (mix false)",
    ]
    assert [len(row.runs) for row in comparison.rows] == [2, 2, 2, 2]


def test_runs_without_points_are_told_apart_by_their_scenarios(tmp_path: Path) -> None:
    runs = [
        load_run(run_directory(tmp_path / f"{policy}{seed}", policy=policy, seed=seed))
        for policy in ("lru", "lfu")
        for seed in (0, 1)
    ]
    comparison = compare_runs(runs)
    assert comparison.policy_keys == ("cache.policy",)
    assert [len(row.runs) for row in comparison.rows] == [2, 2]


def test_two_sweeps_that_differ_elsewhere_are_not_thrown_together(tmp_path: Path) -> None:
    sweep: Sweep = {"cache.policy": ["lru", "lfu"]}
    runs = [
        *runs_of(tmp_path / "a", sweep, hardware="t4"),
        *runs_of(tmp_path / "b", sweep, hardware="rtx-4090"),
    ]
    comparison = compare_runs(runs)
    assert comparison.settings == ["profile = t4", "profile = rtx-4090"]
    assert len(comparison.rows) == 4


def test_different_traces_are_noted_and_kept_apart(tmp_path: Path) -> None:
    comparison = compared(tmp_path, {"trace": ["a", "b"], "cache.policy": ["lru", "lfu"]})
    assert comparison.notes[0].startswith("WARNING: these runs replay different traces (a, b)")
    assert comparison.facets == ["trace = a", "trace = b"]


def test_measured_and_assumed_costs_are_not_mixed_silently(tmp_path: Path) -> None:
    paths = [
        run_directory(tmp_path / kind, policy=policy, summary={"cost_kind": kind})
        for kind, policy in (("assumed", "lru"), ("measured", "lfu"))
    ]
    notes = compare_runs([load_run(path) for path in paths]).notes
    assert any("assumed in some of these runs and measured in others" in note for note in notes)


def test_a_note_of_some_runs_says_of_how_many(tmp_path: Path) -> None:
    lru = load_run(run_directory(tmp_path / "lru"))
    static = load_run(
        run_directory(tmp_path / "static", policy="static", summary={"notes": ["hindsight"]})
    )
    assert "hindsight (1 of 2 runs)" in compare_runs([lru, static]).notes


def test_the_same_scenario_and_seed_twice_counts_once_and_is_noted(tmp_path: Path) -> None:
    runs = [load_run(run_directory(tmp_path / name)) for name in ("a", "b")]
    comparison = compare_runs(runs)
    assert [run.path.name for run in comparison.runs] == ["a"]
    assert any("only the first of each seed counts" in note for note in comparison.notes)


def test_long_latencies_are_shown_in_seconds(tmp_path: Path) -> None:
    slow = {"ttft_p95_ms": 45_000.0}
    run = load_run(run_directory(tmp_path / "run", summary=slow))
    metrics = {metric.key: metric for metric in compare_runs([run]).headline}
    assert metrics["ttft_p95_ms"].title == "TTFT p95 (s)"
    assert metrics["ttft_p95_ms"].of(run) == 45
    assert metrics["tpot_mean_ms"].unit == "ms"


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("lru", None, "LRU"),
        ("lfu-cumulative", None, "LFU"),
        ("belady", None, "MIN (misses)"),
        ("static", {}, "static (oracle)"),
        ("static", {"profile": "../traces/other"}, "static"),
        ("acme", None, "acme"),
    ],
)
def test_policies_are_spelt_as_the_field_does(
    name: str, options: dict[str, Any] | None, label: str
) -> None:
    assert policy_label(name, options) == label
