"""Points of a sweep and the processes that run them: no result is lost, no process remains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from moesim.errors import TraceError, UsageError
from moesim.sweep import LocalProcesses
from moesim.sweep.backend import WorkerDied
from moesim.sweep.local import interrupts_blocked
from moesim.sweep.points import slug

TESTS = Path(__file__).parents[1]

WORKERS = [1, 2]


def write_square(task: tuple[Path, int]) -> None:
    """Write number² to a file named by the number."""
    folder, number = task
    if number == 2:
        raise TraceError("a.npy", "row 2", "is odd")
    if number == 3:
        raise RuntimeError("not foreseen")
    (folder / str(number)).write_text(str(number**2))


def die_on_two(task: tuple[Path, int]) -> None:
    """Kill the process at task two, as the system does if memory runs out."""
    folder, number = task
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(number)).write_text("")


def linger(task: tuple[Path, int]) -> None:
    """Run long, and clean up when the process is ended."""
    folder, number = task
    try:
        (folder / f"{number}.begun").write_text(str(os.getpid()))
        time.sleep(600)
        (folder / f"{number}.waited_for").write_text("")
    finally:
        (folder / f"{number}.cleaned").write_text("")


@pytest.mark.parametrize("workers", WORKERS)
def test_every_task_has_one_result_and_failures_stop_no_other_task(
    tmp_path: Path, workers: int
) -> None:
    tasks = [(tmp_path, number) for number in range(6)]
    errors = {o.index: o.error for o in LocalProcesses(workers).results(write_square, tasks)}
    assert sorted(errors) == list(range(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "4", "5"]
    assert isinstance(errors[2], TraceError)
    assert str(errors[2]) == "a.npy: row 2: is odd"
    assert isinstance(errors[3], RuntimeError)


def test_no_tasks_give_no_results() -> None:
    assert list(LocalProcesses(4).results(write_square, [])) == []


def test_workers_are_at_least_one() -> None:
    with pytest.raises(UsageError, match="workers must be a whole number of at least 1, not 0"):
        LocalProcesses(0)


def test_a_worker_that_dies_costs_its_own_task_only(tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in range(9)]
    errors = {o.index: o.error for o in LocalProcesses(2).results(die_on_two, tasks)}
    assert sorted(errors) == list(range(9))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"01345678"]
    assert [index for index, error in errors.items() if error is not None] == [2]
    assert isinstance(errors[2], WorkerDied)
    assert "out of memory" in str(errors[2])


def test_closing_early_ends_the_workers_which_clean_up(tmp_path: Path) -> None:
    tasks = [(tmp_path, 0), (tmp_path, 1), (tmp_path, 2), (tmp_path, 3)]
    before = set(multiprocessing.active_children())
    code = LocalProcesses(2).results(linger_or_return, tasks)
    assert next(code).error is None
    wait_until(lambda: (tmp_path / "1.begun").exists())
    code.close()
    wait_until(lambda: set(multiprocessing.active_children()) <= before)  # ended ones are reaped
    assert (tmp_path / "1.cleaned").exists()
    assert not list(tmp_path.glob("*.waited_for"))
    begun = {path.stem for path in tmp_path.glob("*.begun")}
    assert begun == {path.stem for path in tmp_path.glob("*.cleaned")}


def test_signals_wait_while_workers_start_and_end_whichever_thread_takes_them() -> None:
    over = threading.Event()
    other = threading.Thread(target=over.wait)  # as those of numpy, which hold no signals back
    other.start()
    left = []

    def start_and_end() -> None:
        with interrupts_blocked():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            left.append("in order")

    try:
        with pytest.raises(KeyboardInterrupt):
            start_and_end()
    finally:
        over.set()
        other.join()
    assert left == ["in order"]


def linger_or_return(task: tuple[Path, int]) -> None:
    """Return at once in the first task; run long in the others."""
    if task[1] > 0:
        linger(task)


@pytest.mark.slow
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            sys.path[:0] = {[str(TESTS / room) for room in ("unit", "support")]!r}
            from test_sweep import linger
            from moesim.sweep import LocalProcesses
            if __name__ == "__main__":
                tasks = [(Path({str(tmp_path)!r}), number) for number in range(2)]
                list(LocalProcesses(2).results(linger, tasks))
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    marks = [tmp_path / f"{number}.begun" for number in range(2)]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    workers = [int(mark.read_text()) for mark in marks]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def is_alive(process: int) -> bool:
    """Return whether a process runs (one that ended but was not reaped does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"cache.policy": "lru", "seed": 0}, "cache.policy=lru,seed=0"),
        ({"cache.slots": "25%"}, "cache.slots=25%"),
        ({"bounds": True, "memory.capacity": None}, "bounds=true,memory.capacity=null"),
    ],
)
def test_a_folder_is_named_by_its_values(values: dict[str, Any], name: str) -> None:
    assert slug(values) == name


def test_values_that_no_file_system_takes_are_spelt_out_and_told_apart() -> None:
    awkward = [
        "4/layer",
        "4:layer",
        "4 layer",
        "../x",
        {"kind": "gamma", "rate_per_s": 2},
        "x" * 300,
    ]
    names = [slug({"key": value}) for value in awkward]
    assert len(set(names)) == len(awkward)
    for name in names:
        assert len(name) < 150
        assert not set(name) & set('/\\:*?"<>| {}')


def test_a_number_and_the_same_as_text_are_told_apart() -> None:
    assert len({slug({"a": value}) for value in (1, "1", [1], True, "true", None, "null")}) == 7
