"""What a sweep costs: 96 short runs alone, by two processes, by two workers, and on Ray.

    python benchmarks/sweep.py [--rounds N]

Rounds of the four are interleaved, because a busy machine disturbs some rounds. Printed are:

- the speed-up of two workers as a share of what two independent processes reach. Two processors of
  a shared machine may give little more than one, so both are measured. Other programs disturb this.
  The share of time that processes spend inside runs depends less on them, and is printed too;
- CPU time for each run in a worker, compared with an independent process beside another, and with a
  process alone. The start of the workers is counted apart;
- the time that Ray adds to a run, once it is started.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from moesim.scenario import load_scenario
from moesim.simulate import run
from moesim.sweep import LocalProcesses, Point, points_of, simulate_points
from moesim.sweep.points import _simulate

ROUNDS = 5
RUNS = 96
SCENARIO = Path(__file__).resolve().parents[1] / "scenarios/quickstart.yaml"
CHANGES = (
    "workload.requests=4",
    "bounds=false",
    "sweep={cache.policy: [lru, lfu], cache.slots: [2/layer, 3/layer, 4/layer, 5/layer], "
    "seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}",
)
LATENCIES = 24


def points(folder: str) -> list[Point]:
    """Return the points of the sweep, with runs inside `folder`."""
    found = points_of(load_scenario(SCENARIO, CHANGES), Path(folder))
    assert len(found) == RUNS
    return found


def simulate(point: Point) -> None:
    """Simulate one point in this process."""
    run(point.scenario, out=point.folder, point=point.values)


def independent(folder: str, first: int, step: int) -> None:
    """Simulate every `step`-th point; print CPU seconds of runs and of the start, and wall seconds.

    The latter are of the runs alone.
    """
    chosen = points(folder)[first::step]
    started, began_s = time.process_time(), time.perf_counter()
    for point in chosen:
        simulate(point)
    print(time.process_time() - started, started, time.perf_counter() - began_s)


def counted(task: tuple[Point, bool]) -> None:
    """Do the task of a worker; add a line of its CPU seconds, those before it, and wall seconds."""
    before, began_s = time.process_time(), time.perf_counter()
    _simulate(task)
    spent, spent_s = time.process_time() - before, time.perf_counter() - began_s
    with (task[0].folder.parent / f"{os.getpid()}.cpu").open("a") as file:
        file.write(f"{spent} {before} {spent_s}\n")


def pool(folder: str) -> None:
    """Simulate all points by two workers.

    Print CPU seconds of runs and of starts, wall seconds of runs, and those of the whole.
    """
    tasks = [(point, False) for point in points(folder)]
    began_s = time.perf_counter()
    assert all(each.error is None for each in LocalProcesses(2).results(counted, tasks))
    wall_s = time.perf_counter() - began_s
    files = [file.read_text().splitlines() for file in Path(folder).glob("*.cpu")]
    lines = [[tuple(map(float, line.split())) for line in file] for file in files]
    # All that a worker spends after its start is of runs, also what lies between two of them.
    starts = sum(worker[0][1] for worker in lines)
    cpu_s = sum(worker[-1][0] + worker[-1][1] for worker in lines) - starts
    print(cpu_s, starts, sum(line[2] for worker in lines for line in worker), wall_s)


def on_ray(folder: str) -> None:
    """Simulate all points on Ray; print the time, then what Ray adds to a run in ms."""
    from moesim.sweep.addresses import Address
    from moesim.sweep.ray_tasks import RayTasks

    every = points(folder)
    with RayTasks(Address.of("ray"), 2) as cluster:
        assert all(each.error is None for each in simulate_points(every[:4], cluster))  # warm
        began_s = time.perf_counter()
        assert all(each.error is None for each in simulate_points(every[4:], cluster))
        wall_s = time.perf_counter() - began_s
        added_ms = []
        for point in every[:LATENCIES]:
            began_s = time.perf_counter()
            simulate(Point(point.values, point.scenario, Path(folder, "here", point.folder.name)))
            here_s = time.perf_counter() - began_s
            began_s = time.perf_counter()
            there = Point(point.values, point.scenario, Path(folder, "there", point.folder.name))
            assert [each.error for each in simulate_points([there], cluster)] == [None]
            added_ms.append((time.perf_counter() - began_s - here_s) * 1e3)
    print(wall_s * RUNS / (RUNS - 4), *added_ms)


def started(*mode: str) -> tuple[subprocess.Popen[str], float]:
    """Start this script in a mode of its own, with a temporary folder; return when it began."""
    command = [sys.executable, __file__, *mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True), time.perf_counter()


def numbers(process: subprocess.Popen[str]) -> list[float]:
    """Return what a mode printed when it has ended."""
    text, _ = process.communicate()
    assert process.returncode == 0
    return [float(word) for word in text.split()]


def told(name: str, values: Sequence[float]) -> None:
    """Print the median of some values and their range; that of many is of all but a tenth."""
    ordered = sorted(values)
    cut = len(ordered) // 20
    low, high = ordered[cut], ordered[-1 - cut]
    print(f"{name}: {statistics.median(ordered):.3f} ({low:.3f} to {high:.3f})", flush=True)


def measured() -> tuple[dict[str, float], list[float]]:
    """Return the figures of one round by name, and the times that Ray added to single runs."""
    with tempfile.TemporaryDirectory() as folder:
        process, began_s = started("independent", f"{folder}/a", "0", "1")
        alone = numbers(process)
        alone_s = time.perf_counter() - began_s
        pair = [started("independent", f"{folder}/b", str(first), "2") for first in (0, 1)]
        two = [sum(each) for each in zip(*(numbers(each) for each, _ in pair), strict=True)]
        two_s = time.perf_counter() - pair[0][1]
        Path(folder, "c").mkdir()
        cpu_s, starts_s, inside_s, wall_s = numbers(started("pool", f"{folder}/c")[0])
        ray_s, *added_ms = numbers(started("ray", f"{folder}/d")[0])
    inside = (inside_s / wall_s, two[2] / two_s)
    figures = {
        "speed-up of two independent processes": alone_s / two_s,
        "speed-up of two workers, as a share of that": two_s / wall_s,
        "speed-up of two workers of Ray, once started, as a share of that": two_s / ray_s,
        "share of time inside runs: workers": inside[0] / 2,
        "share of time inside runs: independent processes": inside[1] / 2,
        "the first of these shares to the second": inside[0] / inside[1],
        "CPU per run in a worker, to an independent process beside another": cpu_s / two[0],
        "the same with the starts of all": (cpu_s + starts_s) / (two[0] + two[1]),
        "CPU per run in a worker, to a process alone": cpu_s / alone[0],
        "CPU of the start of a worker in s": starts_s / 2,
        "CPU of a run in a process alone in ms": alone[0] / RUNS * 1e3,
    }
    return figures, added_ms


def measure(rounds: int) -> None:
    """Measure rounds, and print median and range of each figure."""
    every: dict[str, list[float]] = {}
    added_ms: list[float] = []
    for number in range(rounds):
        load = os.getloadavg()[0]
        figures, added = measured()
        added_ms += added
        for name, value in figures.items():
            every.setdefault(name, []).append(value)
        line = ", ".join(f"{value:.2f}" for value in figures.values())
        print(f"round {number + 1}, load {load:.1f}: {line}", flush=True)
    for name, values in every.items():
        told(name, values)
    told("ms that Ray adds to a run", added_ms)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["independent", folder, first, step]:
            independent(folder, int(first), int(step))
        case ["pool", folder]:
            pool(folder)
        case ["ray", folder]:
            on_ray(folder)
        case ["--rounds", number]:
            measure(int(number))
        case _:
            measure(ROUNDS)
