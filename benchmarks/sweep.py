"""What a sweep costs: 96 short runs alone, by two processes, by two workers, and on Ray.

    python benchmarks/sweep.py

Rounds of the four are interleaved, because a busy machine disturbs some rounds. Printed are:

- the speed-up of two workers as a share of what two independent processes reach. Two processors of
  a shared machine may give little more than one, so both are measured;
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
    """Simulate every `step`-th point; print the CPU seconds of all runs and of the start."""
    chosen = points(folder)[first::step]
    started = time.process_time()
    for point in chosen:
        simulate(point)
    print(time.process_time() - started, started)


def counted(task: tuple[Point, bool]) -> None:
    """Do the task of a worker; add its CPU seconds, and those before it, to the worker's file."""
    before = time.process_time()
    _simulate(task)
    with (task[0].folder.parent / f"{os.getpid()}.cpu").open("a") as file:
        file.write(f"{time.process_time() - before} {before}\n")


def pool(folder: str) -> None:
    """Simulate all points by two workers; print CPU seconds of runs and of starts, and the time."""
    tasks = [(point, False) for point in points(folder)]
    began_s = time.perf_counter()
    assert all(each.error is None for each in LocalProcesses(2).results(counted, tasks))
    wall_s = time.perf_counter() - began_s
    files = [file.read_text().splitlines() for file in Path(folder).glob("*.cpu")]
    lines = [[tuple(map(float, line.split())) for line in file] for file in files]
    # All that a worker spends after its start is of runs, also what lies between two of them.
    starts = sum(worker[0][1] for worker in lines)
    print(sum(sum(worker[-1]) for worker in lines) - starts, starts, wall_s)


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


def told(name: str, values: Sequence[float], form: str = ".2f") -> None:
    """Print the median of some values and their range."""
    middle = statistics.median(values)
    print(f"{name}: {middle:{form}} ({min(values):{form}} to {max(values):{form}})", flush=True)


def measure() -> None:
    """Measure all four in turn and print the figures."""
    speed, beside, alone_ratio, whole, start_s, ray_speed = [], [], [], [], [], []
    gains, added, loads = [], [], []
    for _ in range(ROUNDS):
        loads.append(os.getloadavg()[0])
        with tempfile.TemporaryDirectory() as folder:
            process, began_s = started("independent", f"{folder}/a", "0", "1")
            alone = numbers(process)
            alone_s = time.perf_counter() - began_s
            pair = [started("independent", f"{folder}/b", str(first), "2") for first in (0, 1)]
            two = [numbers(each) for each, _ in pair]
            two_s = time.perf_counter() - pair[0][1]
            Path(folder, "c").mkdir()
            worked = numbers(started("pool", f"{folder}/c")[0])
            rayed = numbers(started("ray", f"{folder}/d")[0])
        gains.append(alone_s / two_s)
        speed.append(two_s / worked[2])
        beside.append(worked[0] / sum(each[0] for each in two))
        alone_ratio.append(worked[0] / alone[0])
        whole.append(sum(worked[:2]) / sum(sum(each) for each in two))
        start_s.append(worked[1] / 2)
        ray_speed.append(two_s / rayed[0])
        added += rayed[1:]
    print(f"{RUNS} runs, {ROUNDS} rounds; load before each: {', '.join(f'{x:.1f}' for x in loads)}")
    told("speed-up of two independent processes", gains)
    told("speed-up of two workers, as a share of that", speed)
    told("speed-up of two workers of Ray, as a share of that", ray_speed)
    told("CPU per run in a worker, to an independent process beside another", beside, ".3f")
    told("the same with the starts of all", whole, ".3f")
    told("CPU per run in a worker, to a process alone", alone_ratio, ".3f")
    told("CPU of the start of a worker in s", start_s)
    told("ms that Ray adds to a run", added, ".1f")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["independent", folder, first, step]:
            independent(folder, int(first), int(step))
        case ["pool", folder]:
            pool(folder)
        case ["ray", folder]:
            on_ray(folder)
        case _:
            measure()
