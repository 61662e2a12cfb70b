"""`moesim search`, checked against the whole grid, killed, repeated, and asked wrongly."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from paths import ROOT
from typer.testing import CliRunner, Result
from workloads import tiny_trace

from moesim.cli import app
from moesim.errors import MissingExtra, MoesimError, OutputError, ThresholdError, UsageError
from moesim.report import Run, load_runs
from moesim.search.front import dominates, front_of
from moesim.search.threshold import most_steps

HEAD = "trace: trace\nhardware: rtx-4090\nbounds: false\ncache: {slots: 3/layer}\n"
SWEEP = """\
sweep:
  cache.policy: [lru, lfu]
  cache.slots: [1/layer, 2/layer, 3/layer, 4/layer, 5/layer, 6/layer, 7/layer, 8/layer]
  batching.max_sequences: [1, 2, 8]
"""
LINK = ("--over", "hardware.h2d.bandwidth=1GB/s..64GB/s")
WINDOW = ("--set", "metrics.window={skip_requests: 2, last: 2}")
OUTPUT = ("search.json", "search.csv", "search.md")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace, scenarios, and the whole grid of `x.yaml` in `full`."""
    home = tmp_path_factory.mktemp("search")
    tiny_trace(requests=8).save(home / "trace")
    (home / "x.yaml").write_text(HEAD + SWEEP)
    (home / "plain.yaml").write_text(HEAD)
    (home / "seeds.yaml").write_text(
        f"{HEAD}workload: {{order: resampled}}\n"
        "sweep: {seed: [0, 1, 2], cache.slots: [1/layer, 3/layer, 5/layer, 7/layer]}\n"
    )
    done = moesim("compare", home / "x.yaml", "--out", home / "full", "--no-plots", "--workers", 1)
    assert done.exit_code == 0, done.output
    return home


def moesim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def search(*arguments: object, workers: int = 1) -> Result:
    return moesim("search", *arguments, "--workers", workers)


def answer(*arguments: object) -> Any:
    result = search(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def grid_of(folder: Path) -> dict[tuple[str, ...], Run]:
    """Return the runs of a comparison's folder by their values as text."""
    return {tuple(map(str, run.point.values())): run for run in load_runs([folder])}


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUT}


def test_bisections_find_the_thresholds_of_the_whole_grid(home: Path, tmp_path: Path) -> None:
    limit = 2000.0
    data = answer(
        home / "x.yaml", "--until", f"output_tokens_per_s >= {limit}", "--over", "cache.slots",
        "--out", tmp_path / "o",
    )  # fmt: skip
    grid = grid_of(home / "full")
    assert len(data["found"]) == 6
    for line in data["found"]:
        of = line["of"]
        row = {
            slots: grid[of["cache.policy"], slots, str(of["batching.max_sequences"])].value(
                "output_tokens_per_s"
            )
            for slots in data["grid"]["cache.slots"]
        }
        meets = [slots for slots, value in row.items() if value >= limit]
        if len(meets) == 8:
            assert (line["status"], line["value"]) == ("met everywhere", None)
            continue
        assert (line["status"], line["side"]) == ("found", "smallest")
        assert line["value"]["value"] == meets[0]
        assert line["value"]["mean"] == row[meets[0]]
        below = list(row)[list(row).index(meets[0]) - 1]
        assert (line["neighbour"]["value"], line["neighbour"]["mean"]) == (below, row[below])
        assert line["tried"] <= most_steps(8, 2)
    assert {line["status"] for line in data["found"]} >= {"found"}
    assert data["runs"] == sum(line["tried"] for line in data["found"]) < data["grid_runs"] == 48
    assert data["saved_share"] == 1 - data["runs"] / 48


def test_a_long_range_takes_the_logarithm_of_its_runs(home: Path, tmp_path: Path) -> None:
    limit = 1500.0
    data = answer(
        home / "plain.yaml", *LINK, "--until", f"output_tokens_per_s >= {limit}",
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert data["runs"] <= most_steps(64, 2) == 9
    assert data["saved_share"] > 0.85
    sweep = [f"{speed}GB/s" for speed in range(1, 65)]
    (tmp_path / "all.yaml").write_text(
        HEAD.replace("trace: trace", f"trace: {home / 'trace'}")
        + f"name: plain\nsweep: {{hardware.h2d.bandwidth: {json.dumps(sweep)}}}\n"
    )
    # The whole grid in the folder of the search: it runs only the points that are missing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o/runs").rglob("*")}
    done = moesim(
        "compare", tmp_path / "all.yaml", "--out", tmp_path / "o", "--no-plots", "--workers", 1
    )
    assert done.exit_code == 0, done.output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    runs = grid_of(tmp_path / "o")
    assert len(runs) == 64
    meets = [speed for speed in sweep if runs[speed,].value("output_tokens_per_s") >= limit]
    (line,) = data["found"]
    assert 1 < len(meets) < 63
    assert line["value"]["value"] == meets[0]


def test_the_first_key_of_several_is_searched_for_each_value_of_the_others(
    home: Path, tmp_path: Path
) -> None:
    data = answer(
        home / "plain.yaml", "--over", "cache.slots=1/layer..7/layer", "--over",
        "cache.policy=lru,fifo", "--until", "expert_hit_rate >= 0.5", "--out", tmp_path / "o",
    )  # fmt: skip
    assert [line["of"] for line in data["found"]] == [
        {"cache.policy": "lru"}, {"cache.policy": "fifo"}
    ]  # fmt: skip
    assert {line["key"] for line in data["found"]} == {"cache.slots"}


def test_numbers_are_put_in_order_and_other_values_keep_theirs(home: Path, tmp_path: Path) -> None:
    data = answer(
        home / "plain.yaml", "--over", "cache.slots=7/layer,1/layer,10%,60%", "--over",
        "memory.capacity=8GiB,6144MiB", "--maximize", "output_tokens_per_s",
        "--out", tmp_path / "o",
    )  # fmt: skip
    assert data["grid"] == {
        "cache.slots": ["7/layer", "1/layer", "10%", "60%"], "memory.capacity": ["6144MiB", "8GiB"]
    }  # fmt: skip
    data = answer(
        home / "plain.yaml", "--over", "cache.slots=7/layer,2/layer,5/layer", "--until",
        "expert_hit_rate >= 0.5", "--out", tmp_path / "o",
    )  # fmt: skip
    assert data["grid"] == {"cache.slots": ["2/layer", "5/layer", "7/layer"]}
    assert data["found"][0]["value"]["value"] == "5/layer"


def test_the_largest_value_is_found_where_the_metric_grows_with_the_key(
    home: Path, tmp_path: Path
) -> None:
    data = answer(
        home / "x.yaml", "--until", "tpot_mean_ms <= 1", "--over", "batching.max_sequences=1..8",
        "--set", "cache.policy=lru", "--set", "cache.slots=5/layer", "--out", tmp_path / "o",
    )  # fmt: skip
    (line,) = data["found"]
    assert line["side"] == "largest"
    value, beyond = line["value"], line["neighbour"]
    assert value["mean"] <= 1 < beyond["mean"]
    assert beyond["value"] == value["value"] + 1


def test_a_metric_that_is_not_monotone_is_refused_and_the_runs_are_kept(
    home: Path, tmp_path: Path
) -> None:
    """The smallest cache is in the middle of this order."""
    result = search(
        home / "plain.yaml", "--until", "expert_hit_rate >= 0.7", "--out", tmp_path / "o",
        "--over", "cache={slots: 6/layer},{slots: 1/layer},{slots: 7/layer}",
    )  # fmt: skip
    error = result.exception
    assert isinstance(error, MoesimError)
    assert error.exit_code == 1
    assert "expert_hit_rate is not monotone over cache, so a bisection could name a wrong" in str(
        error
    )
    assert "changes 2 times" in str(error)
    data = json.loads((tmp_path / "o/search.json").read_text())
    (line,) = data["found"]
    assert (line["status"], line["value"]) == ("not monotone", None)
    assert len(list((tmp_path / "o/runs").iterdir())) == 3


def test_a_condition_that_no_value_meets_ends_with_exit_code_3(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    result = search(home / "plain.yaml", *LINK, "--until", "ttft_p99_ms < 0", "--out", out)
    assert isinstance(result.exception, ThresholdError)
    assert json.loads((out / "search.json").read_text())["found"][0]["status"] == "met nowhere"
    assert "no tried value of hardware.h2d.bandwidth from 1GB/s to 64GB/s has" in result.stdout


def test_a_metric_that_no_run_defines_is_named(home: Path, tmp_path: Path) -> None:
    for wanted in (("--until", "min_hit_rate > 0.5"), ("--maximize", "min_hit_rate")):
        result = search(home / "seeds.yaml", *wanted, "--out", tmp_path / "o")
        assert isinstance(result.exception, MoesimError)
        assert "min_hit_rate: is undefined in every run" in str(result.exception)
        assert "bounds: true" in str(result.exception)


def test_a_size_that_does_not_fit_misses_the_condition(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    data = answer(
        home / "plain.yaml", "--until", "output_tokens_per_s > 0", "--out", out,
        "--over", "memory.capacity=1MiB,2MiB,4GiB,8GiB",
    )  # fmt: skip
    (line,) = data["found"]
    assert (line["value"]["value"], line["neighbour"]["value"]) == ("4GiB", "2MiB")
    assert line["neighbour"]["mean"] is None
    assert [failure.split(":")[0] for failure in data["failures"]] == [
        "memory.capacity=1MiB", "memory.capacity=2MiB",
    ]  # fmt: skip


def test_the_front_is_that_of_the_whole_grid_from_fewer_runs(home: Path, tmp_path: Path) -> None:
    """Throughput against memory: with one size of the cache per step of the front."""
    data = answer(
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--minimize", "cache_slots",
        "--runs", 32, "--out", tmp_path / "o",
    )  # fmt: skip
    grid = grid_of(home / "full")
    scores = {
        values: (run.value("output_tokens_per_s"), -run.value("cache_slots"))
        for values, run in grid.items()
    }
    every = list(scores)
    front = {every[at] for at in front_of([scores[values] for values in every])}
    found = {tuple(map(str, each["values"].values())) for each in data["found"]}
    assert data["runs"] == 32
    assert data["saved_share"] == pytest.approx(1 / 3)
    assert found == front
    tried = [tuple(map(str, each["values"].values())) for each in data["tried"]]
    assert len(set(tried)) == 32
    for each in set(tried) - found:
        assert any(dominates(scores[better], scores[each]) for better in found)


def test_the_best_point_is_that_of_the_whole_grid_from_a_third_of_its_runs(
    home: Path, tmp_path: Path
) -> None:
    data = answer(
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--runs", 16, "--out", tmp_path / "o"
    )
    best = max(run.value("output_tokens_per_s") for run in grid_of(home / "full").values())
    (found,) = data["found"]
    assert found["metrics"]["output_tokens_per_s"]["mean"] == best


def test_a_condition_bounds_the_optimum(home: Path, tmp_path: Path) -> None:
    limit = 1.0
    data = answer(
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--where", f"tpot_mean_ms <= {limit}",
        "--where", "cache_slots <= 28", "--runs", 24, "--out", tmp_path / "o",
    )  # fmt: skip
    allowed = [
        run.value("output_tokens_per_s")
        for run in grid_of(home / "full").values()
        if run.value("tpot_mean_ms") <= limit and run.value("cache_slots") <= 28
    ]
    (found,) = data["found"]
    assert found["metrics"]["output_tokens_per_s"]["mean"] == max(allowed)
    result = search(
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--where", "tpot_mean_ms < 0",
        "--runs", 4, "--out", tmp_path / "none",
    )  # fmt: skip
    assert isinstance(result.exception, ThresholdError)


def test_a_grid_that_is_small_enough_is_tried_whole_and_needs_no_optuna(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_optuna(monkeypatch)
    out = tmp_path / "o"
    shutil.copytree(home / "full/runs", out / "runs")
    wanted = ("--maximize", "output_tokens_per_s", "--runs", 48, "--out", out)
    data = answer(home / "x.yaml", *wanted)
    assert (data["runs"], data["made"], data["saved_share"]) == (48, 0, 0)
    assert "all 48 points of the grid were tried" in data["notes"]
    # With a slot for every expert, all policies are equal.
    assert data["found"][0]["values"]["cache.policy"] == "lru"
    assert (
        "about as good, within 1 % or the intervals of the seeds: cache.policy=lfu, "
        "cache.slots=8/layer, batching.max_sequences=8"
    ) in data["notes"]
    data = answer(home / "plain.yaml", *LINK, "--until", "ttft_p99_ms < 100", "--out", out)
    assert data["found"][0]["status"] == "found"


def without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("chooser", "sampler"):
        monkeypatch.delitem(sys.modules, f"moesim.search.{name}", raising=False)


def test_a_search_that_needs_optuna_names_the_extra(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_optuna(monkeypatch)
    result = search(home / "x.yaml", "--minimize", "ttft_p99_ms", "--out", tmp_path / "o")
    assert isinstance(result.exception, MissingExtra)
    assert "'.[search]'" in str(result.exception)


def test_a_search_repeats_byte_by_byte_with_other_processes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("--maximize", "output_tokens_per_s", "--minimize", "tpot_mean_ms", "--runs", 9)
    written = []
    for number, workers in enumerate((1, 2)):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        result = search(home / "x.yaml", *wanted, "--out", "o", workers=workers)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == "o"
        written.append(files(Path("o")))
    assert written[0] == written[1]
    assert search(home / "x.yaml", *wanted, "--out", "o").exit_code == 0
    assert files(Path("o")) == written[0], "a finished search is read, not continued"
    other = search(home / "x.yaml", *wanted, "--seed", 1, "--out", "o")
    assert other.exit_code == 0
    assert files(Path("o")) != written[0]


class Killed(BaseException):
    """Ends a search as SIGKILL does: no handler of errors may tidy up after it."""


@pytest.mark.parametrize("writes", [1, 3, 7, 12, 20, 31, 38, 45, 57, 61])
def test_a_killed_search_continues_to_the_same_result(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Killed in the middle of a write of the journal, of a choice or of an answer."""
    from optuna.storages.journal import JournalFileBackend

    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "full/runs", "whole/runs")  # the runs themselves matter elsewhere
    shutil.copytree(home / "full/runs", "o/runs")
    command = [
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--where", "tpot_mean_ms <= 1",
        "--runs", 11,
    ]  # fmt: skip
    assert search(*command, "--out", "whole").exit_code == 0
    append = JournalFileBackend.append_logs

    def killed(self: Any, logs: list[dict[str, Any]]) -> None:
        nonlocal writes
        writes -= 1
        if writes < 0:
            with Path("o/optuna.journal").open("ab") as file:
                file.write(json.dumps(logs[0]).encode()[:20])
            raise Killed
        append(self, logs)

    with monkeypatch.context() as patched:
        patched.setattr(JournalFileBackend, "append_logs", killed)
        with pytest.raises(Killed):
            search(*command, "--out", "o")
    assert not Path("o/search.json").exists()
    result = search(*command, "--out", "o")
    assert result.exit_code == 0, result.output
    for name, content in files(Path("whole")).items():
        assert (Path("o") / name).read_bytes() == content.replace(b"--out whole", b"--out o")


def after_runs(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    """Let `count` runs of this process succeed and the next one raise."""
    import moesim.simulate

    simulate: Callable[..., Any] = moesim.simulate.run

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count -= 1
        if count == -1:
            raise error
        return simulate(*arguments, **options)

    monkeypatch.setattr(moesim.simulate, "run", run)


@pytest.mark.parametrize(
    "wanted",
    [
        ("--until", "output_tokens_per_s >= 1500", "--over", "cache.slots"),
        ("--minimize", "tpot_mean_ms", "--runs", 8, "--prefix", 0.5),
    ],
)
def test_an_interrupted_search_keeps_its_runs_and_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    with monkeypatch.context() as patched:
        after_runs(patched, 3, KeyboardInterrupt())
        result = search(home / "x.yaml", *wanted, "--out", out)
    assert result.exit_code != 0
    assert "3 runs were made and are kept; the same command continues from there" in result.stderr
    assert not (out / "search.json").exists()
    again = search(home / "x.yaml", *wanted, "--out", out)
    assert again.exit_code == 0, again.output
    assert "(3 lay in the folder)" in again.stdout


def test_a_run_that_fails_ends_its_line_and_is_listed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    wanted = ("--until", "output_tokens_per_s >= 1500", "--over", "cache.slots", "--out", out)
    with monkeypatch.context() as patched:
        after_runs(patched, 23, ValueError("a fault"))
        result = search(home / "x.yaml", *wanted)
    assert result.exit_code == 1
    data = json.loads((out / "search.json").read_text())
    assert [line["status"] for line in data["found"]].count("failed") == 1
    assert data["failures"][0].endswith("ValueError: a fault")
    assert "1 of the tried points failed" in result.stderr
    assert search(home / "x.yaml", *wanted).exit_code == 0, "a failed point is tried again"


def test_a_prefix_ends_bad_points_early_and_its_numbers_are_no_result(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    data = answer(
        home / "x.yaml", "--maximize", "output_tokens_per_s", "--runs", 24, "--prefix", "0.25,0.5",
        "--out", out,
    )  # fmt: skip
    # 24 points on 2 requests, the best 8 of them on 4, the best 3 of those on all 8.
    assert [each["requests"] for each in data["tried"]] == [2] * 24 + [4] * 8 + [None] * 3
    assert (data["runs"], data["prefix_runs"]) == (3, 32)
    assert data["cost_runs"] == 3 + 24 / 4 + 8 / 2
    assert data["saved_share"] == 1 - 13 / 48
    (found,) = data["found"]
    whole = {tuple(map(str, run.point.values())): run for run in load_runs([out])}
    assert len(whole) == 3
    run = whole[tuple(map(str, found["values"].values()))]
    assert run.value("requests") == 8
    assert run.value("output_tokens_per_s") == found["metrics"]["output_tokens_per_s"]["mean"]
    assert sum(note.startswith("ended early") for note in data["notes"]) == 2
    with (out / "search.csv").open() as file:
        assert [row["requests"] for row in csv.DictReader(file)][-3:] == ["all"] * 3


def test_seeds_are_averaged_and_give_intervals(home: Path, tmp_path: Path) -> None:
    data = answer(home / "seeds.yaml", "--until", "expert_hit_rate >= 0.6", "--out", tmp_path / "o")
    (line,) = data["found"]
    assert (data["seeds"], data["grid_runs"]) == ([0, 1, 2], 12)
    assert line["value"]["n"] == 3
    assert line["value"]["half_interval"] > 0
    runs = [
        r for r in load_runs([tmp_path / "o"]) if r.point["cache.slots"] == line["value"]["value"]
    ]
    assert len(runs) == 3
    mean = sum(run.value("expert_hit_rate") for run in runs) / 3
    assert line["value"]["mean"] == pytest.approx(mean)


def test_policies_that_know_the_future_are_never_the_best(home: Path, tmp_path: Path) -> None:
    over = ("--over", "cache.policy=lru,min,static", "--over", "cache.slots=3/layer")
    data = answer(
        home / "plain.yaml", *over, "--maximize", "expert_hit_rate", "--out", tmp_path / "o"
    )
    (found,) = data["found"]
    assert found["values"]["cache.policy"] == "lru"
    tried = {each["values"]["cache.policy"]: each["knows_the_future"] for each in data["tried"]}
    assert tried == {"lru": "", "static": "eviction static"}
    starts = [note.split(",")[0] for note in data["notes"]]
    assert starts[1:3] == [
        "not tried: 1 of the grid's points", "not ranked: 1 of the tried points"
    ]  # fmt: skip


def test_the_page_names_its_command_which_repeats_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    arguments = [
        "search", "x.yaml", "--until", "output_tokens_per_s >= 1500", "--over", "cache.slots",
        "--set", "cache.policy=lru", "--probes", "1", "--out", str(tmp_path / "o"),
    ]  # fmt: skip
    assert moesim(*arguments, "--workers", 1).exit_code == 0
    before = files(tmp_path / "o")
    command = json.loads(before["search.json"])["command"]
    assert command in before["search.md"].decode()
    shutil.rmtree(tmp_path / "o")
    assert moesim(*shlex.split(command)[1:], "--workers", 1).exit_code == 0
    assert files(tmp_path / "o") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to search for"),
        (("--where", "ttft_p99_ms < 1"), "say what to search for"),
        (("--until", "ttft < 1"), "is no number of a run's summary"),
        (("--until", "ttft_p99_ms < 1"), "the sweep has cache.policy, cache.slots, batching"),
        (("--until", "ttft_p99_ms < 1", "--over", "seed"), "does not sweep this key"),
        (("--until", "ttft_p99_ms < 1", "--over", "cache.slot=1,2"), "--over cache.slot"),
        (("--until", "ttft_p99_ms < 1", "--over", "cache.slots=0..3..0"), "has no step"),
        (("--until", "ttft_p99_ms < 1", "--over", "cache.policy=lru,lruu"), "lruu"),
        (("--until", "ttft_p99_ms < 1", "--maximize", "hits"), "--where 'ttft_p99_ms < 1'"),
        (("--until", "ttft_p99_ms < 1", "--prefix", "0.5"), "has another threshold"),
        (("--maximize", "hits", "--prefix", "2"), "above 0 and below 1"),
        (("--maximize", "hits", "--prefix", "0.95"), "is all of the 8 requests"),
        (("--maximize", "hits", "--prefix", "0.5", *WINDOW), "--prefix 0.5: --set metrics.window"),
        (("--maximize", "hits", "--minimize", "hits"), "is an objective twice"),
        (("--maximize", "hit"), "the nearest are"),
        (("--maximize", "hits", "--over", "cache.slots", "--over", "cache.slots"), "given twice"),
        (("--maximize", "hits", "--set", "sweep={seed: [0, 1]}"), "nothing to search"),
        (("--maximize", "hits", "--over", "cache.policy=min,min_window"), "knows the future"),
    ],
)
def test_what_is_wrong_is_refused_before_any_run(
    home: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    result = search(home / "x.yaml", *arguments, "--out", tmp_path / "o")
    assert isinstance(result.exception, UsageError), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "o/runs").exists() or not list((tmp_path / "o/runs").iterdir())


def test_force_runs_and_chooses_anew(home: Path, tmp_path: Path) -> None:
    wanted = ("--minimize", "tpot_mean_ms", "--runs", 5, "--out", tmp_path / "o")
    assert search(home / "x.yaml", *wanted).exit_code == 0
    before, runs = files(tmp_path / "o"), list((tmp_path / "o/runs").iterdir())
    stamps = {run: (run / "manifest.json").stat().st_mtime_ns for run in runs}
    assert search(home / "x.yaml", *wanted, "--force").exit_code == 0
    assert files(tmp_path / "o") == before
    assert all((run / "manifest.json").stat().st_mtime_ns > stamps[run] for run in runs)


def test_runs_of_another_scenario_in_the_folder_are_refused(home: Path, tmp_path: Path) -> None:
    wanted = ("--minimize", "tpot_mean_ms", "--runs", 4, "--out", tmp_path / "o")
    assert search(home / "x.yaml", *wanted).exit_code == 0
    result = search(home / "x.yaml", *wanted, "--set", "batching.token_budget=8")
    assert isinstance(result.exception, MoesimError)
    assert "made from another scenario" in str(result.exception)


def test_more_runs_continue_a_search_to_what_all_of_them_would_find(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    for steps in ((16,), (8, 16)):
        shutil.copytree(home / "full/runs", "o/runs")
        for runs in steps:
            wanted = ("--maximize", "expert_hit_rate", "--minimize", "tpot_mean_ms", "--runs", runs)
            assert search(home / "x.yaml", *wanted, "--out", "o").exit_code == 0
        written.append(files(Path("o")))
        shutil.rmtree("o")
    assert written[0] == written[1]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"op_code": 99}', '{"op_code": 5}', "7"])
def test_a_damaged_journal_is_refused_and_says_what_to_do(
    home: Path, tmp_path: Path, line: str
) -> None:
    shutil.copytree(home / "full/runs", tmp_path / "o/runs")
    journal = tmp_path / "o/optuna.journal"
    journal.write_text(f"{line}\n{line}\n")
    wanted = ("--maximize", "expert_hit_rate", "--runs", 4, "--out", tmp_path / "o")
    result = search(home / "x.yaml", *wanted)
    assert isinstance(result.exception, OutputError), result.exception
    assert "remove it, and the same command chooses anew" in str(result.exception)
    journal.unlink()
    assert search(home / "x.yaml", *wanted).exit_code == 0


def documented() -> list[list[str]]:
    """Return the commands of docs/search.md as arguments."""
    text = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def test_the_options_of_the_document_exist() -> None:
    command = typer.main.get_command(app).commands["search"]  # type: ignore[attr-defined]
    assert len(documented()) == 3
    for _, *arguments in documented():
        scenario = command.make_context("search", arguments).params["scenario"]
        assert (ROOT / scenario).exists()
