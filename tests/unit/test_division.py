"""The division of GPU memory between KV blocks and expert slots: its search, and `moesim split`."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.errors import BudgetError, ScenarioError, UsageError
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.sweep import with_values
from moesim.simulate import prepare, run
from moesim.sweep.division import (
    COARSE,
    Room,
    best_of,
    count_peaks,
    flat_around,
    remarks,
    room_of,
    search,
)

# --- the search ----------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 90), st.integers(3, 40), st.data())
def test_a_search_runs_each_division_once_and_never_too_many(
    least: int, span: int, runs: int, data: st.DataObject
) -> None:
    scores = data.draw(st.lists(st.integers(-9, 9), min_size=span + 1, max_size=span + 1))
    called: list[int] = []

    def score(slots: int) -> float:
        called.append(slots)
        return scores[slots - least]

    found = search(least, least + span, score, runs)
    assert len(called) == len(set(called)) <= runs
    assert list(found.tried) == called
    assert {least, least + span} <= set(called)
    assert found.coarse == sorted(called[: len(found.coarse)])
    assert found.tried[found.best] == max(found.tried.values())
    assert found.narrow or len(called) == runs


@given(st.integers(1, 100), st.data())
def test_a_search_with_one_optimum_finds_it(span: int, data: st.DataObject) -> None:
    peak = data.draw(st.integers(0, span))
    found = search(0, span, lambda slots: -abs(slots - peak), 100)
    assert found.narrow
    assert found.best == peak
    assert len(found.tried) <= COARSE + 2 * math.ceil(math.log2(span + 1))


def test_a_search_of_many_divisions_ends_within_a_64th_of_the_optimum() -> None:
    found = search(0, 6400, lambda slots: -abs(slots - 4321), 40)
    assert found.narrow
    assert abs(found.best - 4321) <= 100
    assert len(found.tried) <= 20


def test_a_search_without_a_choice_runs_once() -> None:
    found = search(5, 5, lambda slots: math.nan, 12)
    assert (found.best, dict(found.tried).keys(), found.narrow) == (5, {5}, True)


def test_undefined_scores_are_the_worst_and_of_equal_ones_the_fewest_slots_win() -> None:
    assert best_of({1: math.nan, 2: -5.0, 3: math.nan}) == 2
    assert best_of({9: 4.0, 7: 4.0, 8: 4.0, 6: 3.0}) == 7


@pytest.mark.parametrize(
    ("scores", "peaks"),
    [
        ([1, 2, 3], 1),
        ([3, 2, 1], 1),
        ([1, 3, 1], 1),
        ([3, 1, 3], 2),
        ([1, 3, 1, 3, 1], 2),
        ([100, 99.5, 100, 99.5], 1),  # less than 1 % apart
        ([100, 98, 100, 98, 100], 3),
        ([5], 1),
        ([-3, -9, -3], 2),
        ([math.nan, 2, 1], 1),
        ([2, math.nan, 2], 2),
    ],
)
def test_optima_are_counted_where_they_are_a_percent_apart(scores: list[float], peaks: int) -> None:
    assert count_peaks(scores) == peaks


def test_the_flat_part_is_the_connected_one_within_a_percent_of_the_best() -> None:
    scores = {0: 100.0, 1: 90.0, 2: 99.5, 3: 100.5, 4: 99.9, 5: 99.0, 6: 100.4}
    assert flat_around(scores) == (2, 4)
    assert flat_around({slots: -score for slots, score in scores.items()}) == (1, 1)


# --- the memory ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("division")
    tiny_trace(requests=6, prompt_tokens=70, output_tokens=10, stickiness=0.3).save(made / "trace")
    return made


def scenario_in(
    folder: Path, more: str = "", memory: str = "{capacity: 100MB}", prompt: int = 400
) -> Path:
    path = folder / "x.yaml"
    path.write_text(
        "trace: trace\nhardware: {profile: rtx-4090, h2d: {bandwidth: 1GB/s}}\nbounds: false\n"
        "model: {kv_bits: 64}\nbatching: {token_budget: 64, max_sequences: 4}\n"
        f"workload: {{requests: 5, lengths: {{prompt: {prompt}, output: 10}}}}\n"
        f"memory: {memory}\n{more}",
        encoding="utf-8",
    )
    return path


def loaded_in(folder: Path, *arguments: Any, **changes: Any) -> Scenario:
    return load_scenario(scenario_in(folder, *arguments, **changes))


@pytest.mark.parametrize("unequal", [False, True])
def test_each_division_fits_and_no_larger_one_of_its_slots_does(
    folder: Path, unequal: bool
) -> None:
    scenario = loaded_in(folder)
    if unequal:
        scenario = with_values(scenario, {"model.expert_bits_by": {"layer": {"0": 8}}})
    room = room_of(scenario)
    assert room.least < room.most
    longest = -(-410 // 16)
    for slots in range(room.least, room.most + 1):
        values = room.values(slots)
        budget = prepare(with_values(scenario, values)).budget
        assert budget.kv_blocks == room.blocks(slots) >= longest
        assert abs(budget.slots_bytes - slots * room.slot_bytes) <= unequal
        assert budget.kv_bytes / room.free_bytes == room.share(slots)
        assert budget.free_bytes < room.block_bytes or budget.kv_blocks == room.useful_blocks
    # With fewer slots, KV blocks gain nothing; with more, the longest request does not fit.
    assert room.blocks(room.least) == room.useful_blocks or room.least == 0
    assert room.most == 32 or room.blocks(room.most + 1) < longest


@pytest.mark.parametrize("memory", ["{capacity: 100MB, kv: 80MB}", "{capacity: 100MB, kv: 1MB}"])
@pytest.mark.parametrize("slots", ["rest", "4/layer", "0"])
def test_what_the_scenario_gives_either_part_does_not_limit_the_search(
    folder: Path, memory: str, slots: str
) -> None:
    free = room_of(loaded_in(folder))
    assert room_of(loaded_in(folder, f"cache: {{slots: {slots}}}\n", memory)) == free


def test_initial_layers_have_their_slots_in_each_division(folder: Path) -> None:
    assert room_of(loaded_in(folder)).least < 16
    assert room_of(loaded_in(folder, "cache: {initial_layers: 2}\n")).least == 16
    with pytest.raises(BudgetError, match=r"x.yaml:8:\d+: 32 slots of initial layers and the KV"):
        room_of(loaded_in(folder, "cache: {initial_layers: 4}\n"))


def test_memory_for_everything_leaves_nothing_to_divide(folder: Path) -> None:
    room = room_of(loaded_in(folder, memory="{capacity: 8GiB}"))
    assert room.least == room.most == 32
    assert room.blocks(32) == room.useful_blocks
    found = search(room.least, room.most, lambda slots: 1.0, 12)
    assert remarks(room, found) == [
        "nothing to divide: beside 32 slots, KV blocks hold all that the requests can use"
    ]


def test_a_list_of_slots_and_a_request_that_never_fits_are_refused(folder: Path) -> None:
    with pytest.raises(ScenarioError, match=r"x.yaml:8:16: cache.split: lists the slots of each"):
        room_of(loaded_in(folder, "cache: {split: [1, 2, 3, 4]}\n"))
    with pytest.raises(BudgetError, match="impossible memory: the parts exceed the memory"):
        room_of(loaded_in(folder, prompt=5000))


@pytest.mark.parametrize(
    ("best", "most", "experts", "said"),
    [
        (2, 9, 9, "the best is at an end: KV blocks hold all that the requests can use"),
        (9, 9, 9, "the best is at an end: every expert has a slot"),
        (9, 9, 12, "the best is at an end: KV blocks hold little more than the longest request"),
        (5, 9, 9, "flat: KV blocks of 50% to 50% of the free memory (5 to 6 slots) are within 1 %"),
    ],
)
def test_remarks_say_where_the_best_division_is(
    best: int, most: int, experts: int, said: str
) -> None:
    room = Room(1000, 10, 16, 50, 1, True, experts, 2, most)
    close = {best: 0.0, best + 1: -0.005} if best == 5 else {best: 0.0}
    found = search(2, most, lambda slots: 100 * (1 + close.get(slots, -abs(slots - best))), 30)
    notes = remarks(room, found)
    assert said in notes
    assert sum(note.startswith(said[:16]) for note in notes) == 1


# --- the command ---------------------------------------------------------------------------------


def split(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["split", *map(str, arguments)])


def test_the_best_division_is_that_of_all_and_its_lines_repeat_it(
    folder: Path, tmp_path: Path
) -> None:
    path = scenario_in(folder)
    room = room_of(load_scenario(path))
    every = {
        slots: run(with_values(load_scenario(path), room.values(slots))).summary
        for slots in range(room.least, room.most + 1)
    }
    for goal, key, sign in (
        ("throughput", "output_tokens_per_s", 1),
        ("ttft", "ttft_p95_ms", -1),
        ("e2e", "e2e_p95_ms", -1),
    ):
        done = split(path, "--goal", goal, "--out", tmp_path, "--no-plots", "--json", "--runs", 60)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        best = max(every, key=lambda slots: (sign * every[slots][key], -slots))
        assert document["best"] == room.values(best)
        sets = [part for name, value in document["best"].items()
                for part in ("--set", f"{name}={value}")]  # fmt: skip
        repeated = CliRunner().invoke(
            app, ["run", str(path), *sets, "--json", "--no-plots", "--out", str(tmp_path / goal)]
        )
        assert json.loads(repeated.stdout)[key] == every[best][key]


def test_the_best_is_marked_where_a_placement_uses_fewer_slots(
    folder: Path, tmp_path: Path
) -> None:
    path = scenario_in(folder, "placement: {policy: cpu_layers}\n")
    done = split(path, "--out", tmp_path, "--no-plots", "--runs", 4)
    assert done.exit_code == 0, done.output
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["slots"] for row in rows}) < len(rows)
    most = max(float(row["output_tokens_per_s"]) for row in rows if row["as_written"] == "False")
    marked = next(line for line in done.stdout.splitlines() if " ▲" in line)
    assert float(marked.split(" ▲")[0].split()[-1]) == pytest.approx(most, rel=1e-3)


def test_the_command_writes_its_divisions_and_runs_none_again(folder: Path, tmp_path: Path) -> None:
    path = scenario_in(folder)
    first = split(path, "--out", tmp_path / "out", "--runs", 5)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[-1] == str(tmp_path / "out")
    assert any(line.startswith("- tried: 5 divisions at even steps, then 0") for line in lines)
    with (tmp_path / "out/split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6  # with the scenario's own
    assert [row["as_written"] for row in rows].count("True") == 1
    assert [float(row["kv_share"]) for row in rows] == sorted(float(r["kv_share"]) for r in rows)
    assert all(int(row["slots"]) <= 32 and int(row["kv_tokens"]) >= 410 for row in rows)
    assert (tmp_path / "out/plots/split.png").stat().st_size > 1000
    manifests = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("manifest.json")}
    assert len(manifests) == 6
    assert split(path, "--out", tmp_path / "out", "--runs", 5).stdout == first.stdout
    assert manifests == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("manifest.json")}


def test_what_is_printed_names_routing_that_no_model_made(folder: Path, tmp_path: Path) -> None:
    path = scenario_in(folder)
    options = ("--out", tmp_path, "--no-plots", "--runs", 3)
    assert "SYNTHETIC ROUTING: drawn at random" in split(path, *options).stdout
    assert "SYNTHETIC ROUTING" in json.loads(split(path, *options, "--json").stdout)["caption"]


def test_the_best_division_is_printed_as_a_scenario_has_it(folder: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--no-plots", "--runs", 3)
    printed = split(scenario_in(folder), *options).stdout
    best = json.loads(split(scenario_in(folder), *options, "--json").stdout)["best"]
    lines = printed.partition("best ")[2].splitlines()[1 : 1 + len(best)]
    read = yaml.safe_load("\n".join(line.strip() for line in lines))
    assert {f"{part}.{key}": value for part in read for key, value in read[part].items()} == best


def test_a_division_that_does_not_fit_is_no_obstacle(folder: Path, tmp_path: Path) -> None:
    path = scenario_in(folder, "cache: {slots: 32}\n")
    with pytest.raises(BudgetError):
        prepare(load_scenario(path))
    done = split(path, "--out", tmp_path, "--no-plots", "--runs", 3)
    assert done.exit_code == 0, done.output
    assert "- the scenario's own division does not fit the memory" in done.stdout
    assert "as written" not in done.stdout


def test_a_sweep_and_few_runs_are_refused(folder: Path, tmp_path: Path) -> None:
    path = scenario_in(folder, "sweep: {seed: [0, 1]}\n")
    done = split(path, "--out", tmp_path / "out")
    assert isinstance(done.exception, UsageError)
    assert "set a value of each of its keys with --set: seed" in str(done.exception)
    assert not (tmp_path / "out").exists()
    assert split(path, "--set", "seed=1", "--out", tmp_path / "out", "--runs", 2).exit_code == 2
    done = split(path, "--set", "seed=1", "--out", tmp_path / "out", "--runs", 3, "--no-plots")
    assert done.exit_code == 0, done.output
