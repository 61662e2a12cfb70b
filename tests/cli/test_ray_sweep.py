"""Sweeps on a real Ray cluster of this machine: the same results, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from sweep_homes import content, sweep_home
from typer.testing import CliRunner, Result
from waiting import wait_until

from moesim.cli import app
from moesim.errors import MissingExtra, MoesimError, TraceError, UsageError
from moesim.scenario import load_scenario
from moesim.sweep import LocalProcesses, points_of, simulate_points
from moesim.sweep.addresses import Address
from moesim.sweep.backend import Shared, WorkerDied
from moesim.sweep.ray_tasks import ATTEMPTS, RayTasks

pytest.importorskip("ray", reason="ray is in the extra `ray`")

# Ray leaves open the files that its processes write.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

KEYS = """\
sweep:
  cache.policy: [lru, fifo]
  cache.slots: [2/layer, 8/layer]
  seed: [0, 1]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace and a scenario, of which the points with 8 slots do not fit."""
    return sweep_home(tmp_path_factory.mktemp("ray"), KEYS, vram="60GB")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayTasks]:
    with RayTasks(Address.of("ray"), 2) as started:
        yield started


def square(task: tuple[Path, int]) -> int:
    """Return number²; number 2 fails as foreseen, 3 as not foreseen, 4 kills its worker once."""
    folder, number = task
    if number == 2:
        raise TraceError("a.npy", "row 2", "is odd")
    if number == 3:
        raise RuntimeError("not foreseen")
    if number == 4 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def die(task: Path) -> None:
    """Kill the worker each time, as the system does if memory runs out."""
    (task / f"{time.monotonic_ns()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def ended(_index: int, _value: Any) -> None:
    """Say that each task has ended."""


def test_every_task_has_one_result_and_a_worker_that_dies_costs_no_task(
    cluster: RayTasks, tmp_path: Path
) -> None:
    tasks = [(tmp_path, number) for number in range(7)]
    results = {each.index: each for each in cluster.answers(square, tasks, ended)}
    assert sorted(results) == list(range(7))
    assert cluster.repeated == 1
    values = [results[number].value for number in range(7)]
    assert values == [0, 1, None, None, 16, 25, 36]
    assert isinstance(results[2].error, TraceError)
    assert str(results[2].error) == "a.npy: row 2: is odd"
    assert isinstance(results[3].error, RuntimeError)
    assert "in square" in "".join(results[3].error.__notes__)


def test_a_task_that_kills_every_worker_ends_with_an_error(
    cluster: RayTasks, tmp_path: Path
) -> None:
    (result,) = cluster.answers(die, [tmp_path], ended)
    assert isinstance(result.error, WorkerDied)
    assert "out of memory" in str(result.error)
    assert len(list(tmp_path.iterdir())) == ATTEMPTS


def test_a_task_is_replaced_until_it_needs_nothing_more(cluster: RayTasks) -> None:
    def again(_index: int, value: int) -> int | None:
        return value + 1 if value % 10 < 5 else None

    results = {each.index: each.value for each in cluster.answers(abs, [0, -13, 27], again)}
    assert results == {0: 5, 1: 15, 2: 27}


def total(numbers: Shared) -> int:
    return int(sum(numbers.get()))


def test_every_worker_reads_what_the_caller_shares(cluster: RayTasks) -> None:
    shared = [cluster.share([number, 1]) for number in range(3)]
    results = {each.index: each.value for each in cluster.answers(total, shared, ended)}
    assert results == {0: 1, 1: 2, 2: 3}


def test_a_lost_connection_is_said_to_be_one(
    cluster: RayTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise ConnectionError("Client is shutting down.")

    monkeypatch.setattr("moesim.sweep.ray_tasks._answer", lost)
    with pytest.raises(MoesimError, match=r"lost the connection .*the same command continues"):
        list(cluster.answers(abs, [1], ended))


def test_no_tasks_give_no_results(cluster: RayTasks) -> None:
    assert list(cluster.answers(abs, [], ended)) == []


def test_a_sweep_on_ray_writes_the_bytes_of_a_local_one_and_isolates_what_fails(
    cluster: RayTasks, home: Path
) -> None:
    scenario = load_scenario(home / "demo.yaml")
    there = list(simulate_points(points_of(scenario, home / "there"), cluster))
    here = list(simulate_points(points_of(scenario, home / "here"), LocalProcesses(1)))
    errors = [{each.index: str(each.error) for each in results} for results in (there, here)]
    assert errors[0] == errors[1]
    assert sum(error == "None" for error in errors[0].values()) == 4
    assert content(home / "there") == content(home / "here")


def moesim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SWEEPS: dict[str, tuple[object, ...]] = {
    "compare": (),
    "dial": ("--set", "sweep={}", "--recall", "0,1", "--precision", "0.5,1", "--depth", "1",
             "--link", "0.5x", "--seeds", "2"),
    "search": ("--maximize", "output_tokens_per_s", "--minimize", "tpot_mean_ms", "--runs", 9,
               "--over", "cache.slots=1/layer..3/layer", "--over", "cache.policy=lru,lfu,fifo,min",
               "--prefix", "0.5"),
}  # fmt: skip


@pytest.mark.parametrize("command", SWEEPS)
def test_each_command_writes_the_same_files_on_ray_and_resumes_without_it(
    cluster: RayTasks, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One `--out` in two folders, because pages have the command with its `--out`."""

    def place(on: str, workers: int | None) -> AbstractContextManager[RayTasks]:
        assert (on, workers) == ("ray", 2)
        return nullcontext(cluster)

    monkeypatch.setattr(cluster, "repeated", 0)  # by earlier tests
    arguments = [command, home / "demo.yaml", *SWEEPS[command], "--out", "o"]
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = moesim(*arguments, "--workers", 1)
    monkeypatch.chdir(tmp_path / "there")
    with monkeypatch.context() as patched:
        patched.setattr(f"moesim.cli.{command}.backend_of", place)
        there = moesim(*arguments, "--on", "ray", "--workers", 2)
    assert (there.exit_code, there.stdout, there.stderr) == (
        here.exit_code, here.stdout, here.stderr,
    )  # fmt: skip
    assert there.stdout.splitlines()[-1] == "o"
    files = content(tmp_path / "there")
    assert len([name for name in files if name.endswith("manifest.json")]) >= 4
    # The journal has the time of each choice.
    different = set(files.items()) ^ set(content(tmp_path / "here").items())
    assert {name for name, _ in different} <= {"o/optuna.journal"}
    if command == "compare":  # its points that do not fit are tried again
        return

    def none(**_: object) -> None:
        raise AssertionError("a cluster is started though nothing is missing")

    monkeypatch.setattr("ray.init", none)
    again = moesim(*arguments, "--on", "ray")
    assert again.exit_code == 0, again.output
    assert content(tmp_path / "there") == files


@pytest.mark.parametrize("command", SWEEPS)
def test_ray_that_is_not_installed_is_named_before_anything_is_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = moesim(
        command, home / "demo.yaml", *SWEEPS[command], "--on", "ray", "--out", tmp_path / "out"
    )
    assert isinstance(refused.exception, MissingExtra)
    assert "pip install -c constraints.txt '.[ray]'" in str(refused.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", SWEEPS)
def test_a_machine_that_belongs_to_no_cluster_is_told_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def none(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", none)
    options = (*SWEEPS[command], "--on", "ray://auto", "--out", tmp_path / "out")
    refused = moesim(command, home / "demo.yaml", *options)
    assert isinstance(refused.exception, UsageError)
    assert "--on ray://auto: cannot join or start" in str(refused.exception)


def test_another_version_of_ray_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n Ray: 1.0")

    monkeypatch.setattr("ray.init", older)
    with pytest.raises(UsageError, match="has another version of Ray or Python"):
        RayTasks(Address.of("ray://auto")).__enter__()


def compare(home: Path, out: Path) -> subprocess.Popen[str]:
    code = "import sys; from moesim.cli import main; sys.argv[0] = 'moesim'; main()"
    command = [sys.executable, "-c", code, "compare", str(home / "patient.yaml")]
    return subprocess.Popen(
        [*command, "--on", "ray", "--workers", "2", "--out", str(out), "--no-plots"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


PATIENT = """\
import os, time
from moesim.policies.eviction.lru import LRU

class Patient(LRU):
    def decide(self, view):
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)
        return super().decide(view)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended_resumes_where_it_was(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (home / "patient.py").write_text(PATIENT)
    text = (
        (home / "demo.yaml").read_text().replace("[lru, fifo]", "[lru, fifo, 'patient.py:Patient']")
    )
    text = text.replace("[2/layer, 8/layer]", "[2/layer]").replace("[0, 1]", "[0]")
    (home / "patient.yaml").write_text(text)  # one run waits, on one of two workers
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    out = tmp_path / "out"
    with compare(home, out) as process:
        try:
            wait_until(lambda: len(list(out.glob("runs/cache*"))) == 2, patience_s=60)
        finally:
            os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number), stderr
    kept = {path: path.stat().st_mtime_ns for path in out.glob("runs/cache*")}
    assert len(kept) == 2
    (tmp_path / "gate").touch()
    with compare(home, out) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout.splitlines()[-1] == str(out)
    assert len(list(out.glob("runs/*"))) == 3
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
