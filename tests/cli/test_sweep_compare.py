"""`moesim compare` and `moesim report`, from a scenario to tables and figures, for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from run_directories import run_directory
from typer.testing import CliRunner, Result
from waiting import wait_until

from moesim.cli import app
from moesim.errors import OutputError, ScenarioError, UsageError
from moesim.sweep import Point
from moesim.trace.synthetic import SyntheticKnobs, synthesize

SCENARIO = """\
trace: trace
model: mixtral-8x7b
hardware: {profile: rtx-4090, vram: 80GB}
workload: {order: resampled}
batching: {max_sequences: 4}
bounds: true
sweep:
  cache.policy: [lru, static]
  cache.slots: [2/layer, 6/layer]
  seed: [0, 1]
"""
KNOBS = SyntheticKnobs(requests=4, prompt_tokens=3, output_tokens=4, num_layers=32, num_experts=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace, a scenario and its finished comparison in `done`."""
    folder = tmp_path_factory.mktemp("compare")
    synthesize(KNOBS).save(folder / "trace")
    (folder / "demo.yaml").write_text(SCENARIO)
    result = moesim("compare", folder / "demo.yaml", "--out", folder / "done", "--workers", 2)
    assert result.exit_code == 0, result.output
    return folder


def moesim(*arguments: object) -> Result:
    """Run a command in this process; errors that moesim foresees are in `.exception`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def digests(folder: Path, skip: Sequence[str] = ()) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in skip
    }


def test_a_comparison_leaves_runs_tables_and_figures(home: Path) -> None:
    done = home / "done"
    assert {path.name for path in done.iterdir()} == {
        "compare.csv", "compare.md", "plots", "runs", "runs.csv",
    }  # fmt: skip
    assert len(list((done / "runs").iterdir())) == 8
    assert (done / "plots" / "hit_rate_capacity.png").is_file()
    text = (done / "compare.md").read_text()
    assert "static (oracle)" in text
    assert "n = 2 seeds" in text
    assert f"moesim compare {home}/demo.yaml --out {done}" in text


def test_the_last_line_is_the_folder_and_nothing_is_run_twice(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "done" / "runs").rglob("*")}
    result = moesim("compare", home / "demo.yaml", "--out", home / "done", "--no-plots")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == str(home / "done")
    assert "\x1b" not in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (home / "done" / "runs").rglob("*")}


def test_workers_and_order_change_nothing(home: Path, tmp_path: Path) -> None:
    result = moesim(
        "compare", home / "demo.yaml", "--out", tmp_path / "one", "--workers", 1, "--no-plots"
    )
    assert result.exit_code == 0
    skip = ("manifest.json", "scenario.yaml")  # wall times; the way to the trace
    one, two = (digests(folder / "runs", skip) for folder in (tmp_path / "one", home / "done"))
    assert one == two
    for name in ("compare.csv", "runs.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (home / "done" / name).read_bytes()


def test_a_lost_point_is_made_again_and_only_it(home: Path, tmp_path: Path) -> None:
    folder = home / "again"
    shutil.copytree(home / "done", folder)
    lost = sorted((folder / "runs").iterdir())[3]
    kept = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir() if path != lost}
    shutil.rmtree(lost)
    assert moesim("compare", home / "demo.yaml", "--out", folder, "--no-plots").exit_code == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert digests(lost, ("manifest.json",)) == digests(
        home / "done" / "runs" / lost.name, ("manifest.json",)
    )


def test_json_is_one_document(home: Path) -> None:
    result = moesim("compare", home / "demo.yaml", "--out", home / "done", "--no-plots", "--json")
    data = json.loads(result.stdout)
    assert data["out"] == str(home / "done")
    assert [row["variant"] for row in data["rows"]] == ["LRU", "LRU"] + ["static (oracle)"] * 2
    assert data["rows"][0]["metrics"]["expert_hit_rate"]["n"] == 2


def test_a_scenario_without_a_sweep_is_sent_to_run(home: Path) -> None:
    (home / "plain.yaml").write_text(SCENARIO.partition("sweep:")[0])
    result = moesim("compare", home / "plain.yaml")
    assert isinstance(result.exception, UsageError)
    assert "moesim run" in str(result.exception)
    assert result.exception.exit_code == 2


def test_a_mistake_in_the_sweep_is_refused_before_anything_runs(home: Path, tmp_path: Path) -> None:
    (home / "typo.yaml").write_text(SCENARIO.replace("[lru, static]", "[lru, statik]"))
    result = moesim("compare", home / "typo.yaml", "--out", tmp_path / "out")
    assert isinstance(result.exception, ScenarioError)
    assert "typo.yaml:8:" in str(result.exception)
    assert "did you mean 'static'" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(home: Path) -> None:
    result = moesim("compare", home / "demo.yaml", "--out", home / "demo.yaml" / "out")
    assert isinstance(result.exception, OutputError)
    assert "demo.yaml/out/runs" in str(result.exception)


def test_other_runs_are_not_overwritten_without_force(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(home / "done", folder)
    changed = ("--set", "batching.max_sequences=3", "--out", folder, "--no-plots")
    before = digests(folder)
    result = moesim("compare", home / "demo.yaml", *changed)
    assert isinstance(result.exception, OutputError)
    assert "8 of its 8 points were made from another scenario" in str(result.exception)
    assert digests(folder) == before
    assert moesim("compare", home / "demo.yaml", *changed, "--force").exit_code == 0
    assert digests(folder) != before


def test_a_failing_point_is_named_and_the_others_are_kept(home: Path, tmp_path: Path) -> None:
    (home / "big.yaml").write_text(
        SCENARIO.replace("[2/layer, 6/layer]", "[2/layer, 8/layer]").replace("80GB", "60GB")
    )
    result = moesim("compare", home / "big.yaml", "--out", tmp_path, "--no-plots")
    assert result.exit_code == 1
    assert "4 of 8 points failed:" in result.stderr
    assert "cache.policy=lru, cache.slots=8/layer, seed=0: " in result.stderr
    assert result.stderr.count("impossible memory") == 1
    assert result.stderr.count("cache.slots=8/layer, seed=1: the same\n") == 2
    assert len(list((tmp_path / "runs").iterdir())) == 4
    assert "## Points that failed" in (tmp_path / "compare.md").read_text()


def test_a_sweep_of_which_no_point_fits_is_a_usage_error(home: Path, tmp_path: Path) -> None:
    result = moesim(
        "compare", home / "demo.yaml", "--set", "hardware.vram=1GB", "--out", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "8 of 8 points failed" in result.stderr


# A policy whose runs end only once there is a file: a signal then always finds work to do.
PATIENT = """\
import os, time
from moesim.policies import register
from moesim.policies.eviction.lru import LRU

@register("eviction", "patient")
class Patient(LRU):
    def decide(self, view):
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)
        return super().decide(view)
"""


@pytest.fixture
def gate(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that lets the second half of `patient.yaml` end, once it is there."""
    (home / "patience.py").write_text(PATIENT)
    (home / "patience-1.dist-info").mkdir(exist_ok=True)
    metadata = "Metadata-Version: 2.1\nName: patience\nVersion: 1\n"
    (home / "patience-1.dist-info/METADATA").write_text(metadata)
    entry = "[moesim.policies]\npatient = patience\n"
    (home / "patience-1.dist-info/entry_points.txt").write_text(entry)
    text = SCENARIO.replace("static", "patient").replace("bounds: true", "bounds: false")
    (home / "patient.yaml").write_text(text)
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("GATE", str(home / "gate"))
    (home / "gate").unlink(missing_ok=True)
    return home / "gate"


def patient_compare(home: Path, out: Path) -> subprocess.Popen[str]:
    code = "import sys; from moesim.cli import main; sys.argv[0] = 'moesim'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "compare", str(home / "patient.yaml"), "--out", str(out),
         "--workers", "2", "--no-plots"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def interrupted(
    home: Path, out: Path, until: tuple[str, int], number: int
) -> subprocess.CompletedProcess[str]:
    """`moesim compare`, ended as soon as that number of files exists: by a signal to all its
    processes, as a terminal sends it, or by SIGTERM to the command alone."""
    with patient_compare(home, out) as process:
        wait_until(
            lambda: len(list(out.glob(until[0]))) >= until[1] or process.poll() is not None,
            patience_s=300,
            pause_s=0.005,
        )
        if process.poll() is None:
            (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_signal_keeps_what_is_done_and_leaves_nothing_half_done(
    home: Path, tmp_path: Path, gate: Path, number: int, code: int, said: str
) -> None:
    out = tmp_path / "out"
    ended = interrupted(home, out, ("runs/cache*", 2), number)
    assert ended.returncode == code
    assert " of 8 points are done and kept; " in ended.stderr
    assert ended.stderr.splitlines()[-1] == said
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    left = list((out / "runs").iterdir())
    assert 2 <= len(left) <= 4
    assert all((run / "manifest.json").is_file() for run in left)
    assert [path.name for path in out.iterdir()] == ["runs"]
    gate.touch()
    for folder in (out, tmp_path / "whole"):
        with patient_compare(home, folder) as process:
            _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    for name in ("compare.csv", "runs.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_worker_left_that_had_to_be_killed_is_removed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(points: Sequence[Point], *_: object, **__: object) -> None:
        folder = points[0].folder
        folder.with_name(f".{folder.name}.moesim-lock").touch()
        folder.with_name(f".{folder.name}.partial-x").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("moesim.sweep.points.simulate_points", killed)
    moesim("compare", home / "demo.yaml", "--out", tmp_path / "out", "--force")
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_a_second_command_on_a_folder_is_refused_by_name_and_the_first_is_whole(
    home: Path, tmp_path: Path
) -> None:
    """While one `compare` runs, neither another nor a `report` may write where it writes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "moesim", "compare", str(home / "demo.yaml")]
    with subprocess.Popen(
        [*command, "--out", str(out), "--no-plots"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as first:
        try:
            deadline = time.monotonic() + 60
            while not list(out.glob("runs/cache*")) and time.monotonic() < deadline:
                time.sleep(0.005)
            for arguments in (
                ("compare", home / "demo.yaml", "--out", out, "--no-plots"),
                ("report", home / "done", "--out", out, "--no-plots"),
            ):
                refused = moesim(*arguments)
                assert isinstance(refused.exception, OutputError)
                assert f"is being written by process {first.pid}" in str(refused.exception)
            assert first.wait(timeout=60) == 0
        finally:
            first.kill()
    for name in ("compare.csv", "runs.csv"):
        assert (out / name).read_bytes() == (home / "done" / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.md", "runs", "runs.csv"
    }  # fmt: skip


@pytest.mark.slow
def test_leftovers_of_a_killed_compare_are_removed_by_the_next(
    home: Path, tmp_path: Path, gate: Path
) -> None:
    ended = interrupted(home, tmp_path / "out", ("runs/.cache.policy=patient*.partial-*", 1), 9)
    assert ended.returncode == -signal.SIGKILL
    # The next sweep has none of these points.
    fewer = "sweep={cache.policy: [fifo], cache.slots: [2/layer], seed: [0]}"
    done = moesim("compare", home / "demo.yaml", "--out", tmp_path / "out", "--set", fewer)
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_run_that_is_being_written_is_not_reported_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "done", tmp_path / "done")
    run = next((tmp_path / "done" / "runs").iterdir())
    run.rename(run.with_name(f".{run.name}.partial-x"))
    done = moesim("report", tmp_path / "done", "--no-plots", "--json")
    assert done.exit_code == 0, done.output
    assert sum(len(row["runs"]) for row in json.loads(done.stdout)["rows"]) == 7


def test_report_makes_a_comparison_again_in_place(home: Path) -> None:
    folder = home / "reported"
    shutil.copytree(home / "done", folder)
    shutil.rmtree(folder / "plots")
    result = moesim("report", folder)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == str(folder)
    again, before = digests(folder / "plots"), digests(home / "done" / "plots")
    assert again.keys() == before.keys()
    figures = {name for name in again if not name.endswith(".md")}  # captions name the command
    assert {again[name] for name in figures} == {before[name] for name in figures}
    for name in ("compare.csv", "runs.csv"):
        assert (folder / name).read_bytes() == (home / "done" / name).read_bytes()


def test_report_of_one_run_draws_beside_it_or_where_it_is_told(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(next((home / "done" / "runs").iterdir()), run)
    result = moesim("report", run, "--out", tmp_path / "elsewhere")
    assert result.stdout.splitlines()[-1] == str(tmp_path / "elsewhere")
    assert "latency (ms)" in result.stdout
    assert not (run / "plots").exists()
    assert len(list((tmp_path / "elsewhere" / "plots").iterdir())) == 16
    data = json.loads(moesim("report", run, "--no-plots", "--json").stdout)
    assert data["summary"]["accesses"] > 0


def test_report_compares_runs_from_anywhere(tmp_path: Path) -> None:
    runs = [run_directory(tmp_path / name, policy=name) for name in ("lru", "lfu")]
    result = moesim("report", *runs, "--out", tmp_path / "out", "--no-plots")
    assert result.exit_code == 0
    assert "Difference to LRU" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["absent"]])
def test_report_refuses_what_is_no_run(arguments: list[str], tmp_path: Path) -> None:
    result = moesim("report", *(tmp_path / argument for argument in arguments))
    assert isinstance(result.exception, UsageError)


def test_a_swept_key_that_is_set_is_said_to_leave_the_sweep(home: Path, tmp_path: Path) -> None:
    one = ["--set", "cache.policy=lru"]
    (home / "short.yaml").write_text(SCENARIO.replace("seed: [0, 1]", "seed: [0]"))
    result = moesim("compare", home / "short.yaml", *one, "--out", tmp_path / "a", "--no-plots")
    assert result.exit_code == 0
    assert "--set takes cache.policy out of the sweep\n" in result.stderr
    every = [*one, "--set", "cache.slots=2/layer", "--set", "seed=0"]
    refused = moesim("compare", home / "short.yaml", *every)
    assert "--set takes cache.policy, cache.slots, seed out of its `sweep:`" in str(
        refused.exception
    )
    assert "moesim run" in str(refused.exception)
    assert "--set cache.slots=2/layer --set seed=0" in str(refused.exception)
