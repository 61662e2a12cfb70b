"""Reading run directories back, and refusing what is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_directories import run_directory

from moesim.errors import MoesimError, UsageError
from moesim.report import Run, compare_runs, load_run, load_runs, plots_for_run
from moesim.report.distribution import latencies_ns
from moesim.report.metrics import run_caption
from moesim.report.summary import summary_tables
from moesim.report.tabular import plain


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run", policy="lfu", seed=3, point={"seed": 3}))
    assert (run.text("cache_policy"), run.seed, run.point) == ("lfu", 3, {"seed": 3})
    assert run.value("expert_hit_rate") == run.summary["expert_hit_rate"]


def test_what_is_null_or_absent_is_nan_and_unknown(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run", summary={"tpot_mean_ms": None}))
    assert run.value("tpot_mean_ms") != run.value("tpot_mean_ms")
    assert run.value("no_such_key") != run.value("no_such_key")
    assert run.text("no_such_key") == "unknown"


def test_latencies_of_the_rows_are_those_of_the_summary(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run"))
    for name, sample in latencies_ns(run).items():
        assert sample.mean() / 1e6 == pytest.approx(run.value(f"{name}_mean_ms"))


def test_requests_of_one_token_have_no_time_per_output_token(tmp_path: Path) -> None:
    samples = latencies_ns(load_run(run_directory(tmp_path / "run", output_tokens=1)))
    assert [len(samples[name]) for name in ("ttft", "tpot", "itl", "e2e")] == [40, 0, 0, 40]


def _remove(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("manifest.json"), r"manifest\.json: is missing, so the run was interrupted"),
        (_remove("summary.json"), r"summary\.json: is missing, so the run directory is damaged"),
        (_remove("scenario.yaml"), r"scenario\.yaml: is missing"),
        (_write("summary.json", '{"a": '), r"summary\.json: is not JSON"),
        (_write("summary.json", "[1]"), r"summary\.json: must be a JSON object, not list"),
        (_write("manifest.json", ""), r"manifest\.json: is not JSON"),
        (_write("scenario.yaml", "a: [1"), r"scenario\.yaml:1"),
    ],
)
def test_a_damaged_run_is_refused_with_file_and_reason(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    run = run_directory(tmp_path / "run")
    damage(run)
    with pytest.raises(MoesimError, match=message) as refused:
        load_run(run)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("layers.parquet"), r"layers\.parquet: is missing"),
        (_write("requests.parquet", "PAR1 no more"), r"requests\.parquet: cannot be read"),
    ],
)
def test_a_damaged_table_is_refused_and_no_plots_appear(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    run = run_directory(tmp_path / "run")
    damage(run)
    with pytest.raises(MoesimError, match=message):
        plots_for_run(run)
    assert not [path for path in run.iterdir() if "plots" in path.name]


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run"))
    with pytest.raises(MoesimError, match=r"steps\.parquet: has no column colour"):
        run.table("steps", ["step", "colour"])


def test_what_is_no_run_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("absent", "there is no such run directory"),
        ("file", "is a file"),
        ("other", "is not a run directory"),
    ):
        with pytest.raises(UsageError, match=message):
            load_run(tmp_path / name)


def test_a_comparison_in_place_of_one_run_is_refused_with_the_name_of_a_run(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "runs" / "a")
    run_directory(tmp_path / "runs" / "b")
    with pytest.raises(UsageError, match=f"holds 2 runs; name one of them, like {run}"):
        load_run(tmp_path)


def test_no_runs_at_all_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for paths in ([], [tmp_path]):
        with pytest.raises(UsageError, match="no run directories"):
            load_runs(paths)


def test_a_comparison_stands_for_its_runs_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run_directory(tmp_path / "runs" / name)
    (tmp_path / "runs.csv").write_text("run,seed\nruns/c,0\nruns/a,1\n")
    assert [run.path.name for run in load_runs([tmp_path])] == ["c", "a", "b"]


def test_a_run_named_twice_is_read_once(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "runs" / "a")
    assert len(load_runs([run, tmp_path, run / ".." / "a"])) == 1


def test_the_world_of_a_run_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    near = run_directory(tmp_path / "near", trace="../traces/x")
    far = run_directory(tmp_path / "deep" / "far", trace="../../traces/x")
    assert load_run(near).world == load_run(far).world


def test_the_hash_of_a_trace_is_its_identity(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", trace="../traces/x")
    (run / "manifest.json").write_text(json.dumps({"inputs": {"trace": "abc"}}))
    assert load_run(run).world["trace"] == "abc"
    assert load_run(run).trace == "x"


@pytest.mark.parametrize(
    ("arrivals", "text"),
    [
        ({"kind": "all_at_once"}, "all at once"),
        ({"kind": "poisson", "rate_per_s": 0.2}, "poisson 0.2/s"),
        ({"kind": "gamma", "rate_per_s": 2.0, "burstiness": 4.0}, "gamma 2/s (burstiness 4)"),
        ({"kind": "recorded", "time_scale": 1.0}, "recorded"),
        ({"kind": "csv", "path": "../x/day.csv", "time_scale": 0.5}, "csv day.csv (times × 0.5)"),
        # As a finished run holds it, with all keys.
        (
            {"kind": "file", "path": "d.csv", "times": "file", "rate_per_s": None, "burstiness": 1},
            "file d.csv",
        ),
        (
            {"kind": "file", "path": "d.csv", "times": "all_at_once", "burstiness": 1},
            "file d.csv all at once",
        ),
        (
            {"kind": "file", "path": "d.csv", "times": "gamma", "rate_per_s": 3, "burstiness": 2},
            "file d.csv 3/s (burstiness 2)",
        ),
        ({"kind": "closed", "clients": 1}, "closed (1 client)"),
        ({"kind": "closed", "clients": 8, "think": {"mean": "0ns"}}, "closed (8 clients)"),
        (
            {"kind": "closed", "clients": 8, "think": {"mean": "2000ms"}},
            "closed (8 clients, think 2 s)",
        ),
        (
            {
                "kind": "closed",
                "clients": 8,
                "think": {"mean": "5us", "distribution": "exponential"},
            },
            "closed (8 clients, think exponential 5 us)",
        ),
    ],
)
def test_a_run_says_when_its_requests_arrive(
    tmp_path: Path, arrivals: dict[str, object], text: str
) -> None:
    run = load_run(run_directory(tmp_path / "run"))
    assert run.arrivals == ""
    arriving = replace(run, scenario={**run.scenario, "workload": {"arrivals": arrivals}})
    assert arriving.arrivals == text
    assert f"40 requests, arrivals {text}, seed 0" in run_caption(arriving)
    assert f"40 requests a run, arrivals {text}, seed 0" in compare_runs([arriving]).caption()
    setup = plain(summary_tables(arriving)[0])
    assert re.search(rf"^  arrivals +{re.escape(text)}$", setup, re.M)


def test_a_run_says_that_no_prompt_is_cut(tmp_path: Path) -> None:
    run = load_run(run_directory(tmp_path / "run"))
    batching = {"batching": {"chunked_prefill": False}}
    whole = replace(run, scenario={**run.scenario, **batching})
    assert "batching, prompts not cut; " in run_caption(whole)
    assert "prompts not cut, seed 0" in compare_runs([whole]).caption()
    assert re.search(
        r"^  batching .*, prompts not cut, seed 0$", plain(summary_tables(whole)[0]), re.M
    )
    both = compare_runs([run, replace(whole, path=tmp_path / "other")]).caption()
    assert "prompts may be cut / prompts not cut, seed 0" in both
    assert "cut" not in run_caption(run) + compare_runs([run]).caption()


def test_throughput_that_arrivals_limit_says_so(tmp_path: Path) -> None:
    def run(idle: float) -> Run:
        summary = {"makespan_s": 10.0, "idle_s": idle}
        return load_run(run_directory(tmp_path / f"{idle}", summary=summary))

    busy, waiting = run(1.0), run(3.7)
    said = "over 10 s, limited by arrivals (idle for 37% of it)"
    assert said in plain(summary_tables(waiting)[0])
    assert "limited by arrivals" not in plain(summary_tables(busy)[0])
    assert any("arrivals limit throughput" in note for note in compare_runs([waiting]).notes)
    assert not any("arrivals limit" in note for note in compare_runs([busy]).notes)
