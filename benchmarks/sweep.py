"""What a sweep costs: 96 short runs alone, by two processes, by two workers, and on Ray.

    python benchmarks/sweep.py

Rounds of the four are interleaved, because a busy machine disturbs some rounds. Figures are:

- the speed-up of two workers as a share of what two independent processes reach. Two processors of
  a shared machine may give little more than one, so both are measured. Other programs disturb this.
  The share of time that processes spend inside runs depends less on them, and is printed too;
- CPU time for each run in a worker, compared with an independent process beside another, and with a
  process alone. The start of the workers is counted apart;
- the time that Ray adds to a run, once it is started. Without the extra `ray` it is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from figures import Figure, main

from moesim.scenario import load_scenario
from moesim.simulate import run
from moesim.sweep import LocalProcesses, Point, points_of, simulate_points
from moesim.sweep.points import _simulate

ROUNDS = 5
SEEDS = 12
RUNS_EACH = 8  # of a seed
SPEED_UP = "speed-up of two workers, as a share of that of two independent processes"
SCENARIO = Path(__file__).resolve().parents[1] / "scenarios/quickstart.yaml"
CHANGES = (
    "workload.requests=4",
    "workload.arrivals={kind: all_at_once}",
    "bounds=false",
    "sweep={cache.policy: [lru, lfu], cache.slots: [2/layer, 3/layer, 4/layer, 5/layer]}",
)
LATENCIES = 24


def points(folder: str, seeds: int) -> list[Point]:
    """Return the points of the sweep, with runs inside `folder`."""
    changes = (*CHANGES, f"sweep.seed={list(range(seeds))}")
    found = points_of(load_scenario(SCENARIO, changes), Path(folder))
    assert len(found) == RUNS_EACH * seeds
    return found


def simulate(point: Point) -> None:
    """Simulate one point in this process."""
    run(point.scenario, out=point.folder, point=point.values)


def independent(folder: str, seeds: int, first: int, step: int) -> None:
    """Simulate every `step`-th point; print CPU seconds of runs and of the start, and wall seconds.

    The latter are of the runs alone.
    """
    chosen = points(folder, seeds)[first::step]
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


def pool(folder: str, seeds: int) -> None:
    """Simulate all points by two workers.

    Print CPU seconds of runs and of starts, wall seconds of runs, and those of the whole.
    """
    tasks = [(point, False) for point in points(folder, seeds)]
    began_s = time.perf_counter()
    assert all(each.error is None for each in LocalProcesses(2).results(counted, tasks))
    wall_s = time.perf_counter() - began_s
    files = [file.read_text().splitlines() for file in Path(folder).glob("*.cpu")]
    lines = [[tuple(map(float, line.split())) for line in file] for file in files]
    # All that a worker spends after its start is of runs, also what lies between two of them.
    starts = sum(worker[0][1] for worker in lines)
    cpu_s = sum(worker[-1][0] + worker[-1][1] for worker in lines) - starts
    print(cpu_s, starts, sum(line[2] for worker in lines for line in worker), wall_s)


def on_ray(folder: str, seeds: int) -> None:
    """Simulate all points on Ray; print the time, then what Ray adds to a run in ms."""
    from moesim.sweep.addresses import Address
    from moesim.sweep.ray_tasks import RayTasks

    every = points(folder, seeds)
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
    print(wall_s * len(every) / (len(every) - 4), *added_ms)


def started(*mode: str) -> tuple[subprocess.Popen[str], float]:
    """Start this script in a mode of its own, with a temporary folder; return when it began."""
    command = [sys.executable, __file__, *mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True), time.perf_counter()


def numbers(process: subprocess.Popen[str]) -> list[float]:
    """Return what a mode printed when it has ended."""
    text, _ = process.communicate()
    assert process.returncode == 0
    return [float(word) for word in text.split()]


def measured(seeds: int) -> tuple[dict[str, float], float, list[float]]:
    """Return the ratios of one round by name, and two times.

    These are the CPU seconds of a worker's start, and the ms that Ray added to single runs.
    """
    number = str(seeds)
    with tempfile.TemporaryDirectory() as folder:
        process, began_s = started("independent", f"{folder}/a", number, "0", "1")
        alone = numbers(process)
        alone_s = time.perf_counter() - began_s
        pair = [started("independent", f"{folder}/b", number, str(first), "2") for first in (0, 1)]
        two = [sum(each) for each in zip(*(numbers(each) for each, _ in pair), strict=True)]
        two_s = time.perf_counter() - pair[0][1]
        Path(folder, "c").mkdir()
        cpu_s, starts_s, inside_s, wall_s = numbers(started("pool", f"{folder}/c", number)[0])
        ray = numbers(started("ray", f"{folder}/d", number)[0]) if find_spec("ray") else []
    figures = {
        SPEED_UP: two_s / wall_s,
        "speed-up of two independent processes": alone_s / two_s,
        "share of time inside runs: workers, to two independent processes":
            (inside_s / wall_s) / (two[2] / two_s),
        "CPU per run in a worker, to a process alone": cpu_s / alone[0],
        "CPU per run in a worker, to an independent process beside another": cpu_s / two[0],
        "the same with the starts of all": (cpu_s + starts_s) / (two[0] + two[1]),
    }  # fmt: skip
    if ray:
        figures["speed-up of two workers of Ray, once started, as the first"] = two_s / ray[0]
    return figures, starts_s / 2, ray[1:]


TARGETS = {SPEED_UP: "at least 0.9", "CPU per run in a worker, to a process alone": "at most 1.05"}


def measure(quick: bool) -> list[Figure]:
    """Return the figures of all rounds."""
    every: dict[str, list[float]] = {}
    added_ms: list[float] = []
    starts_s: list[float] = []
    seeds = 1 if quick else SEEDS
    for _ in range(1 if quick else ROUNDS):
        found, start_s, added = measured(seeds)
        starts_s.append(start_s)
        added_ms += added
        for name, value in found.items():
            every.setdefault(name, []).append(value)
    figures = [
        Figure.of(f"{RUNS_EACH * seeds} short runs: {name}", values, "", TARGETS.get(name, ""))
        for name, values in every.items()
    ]
    figures.append(Figure.of("start of a worker", starts_s, "CPU s"))
    if added_ms:
        cut = len(added_ms) // 20  # single runs, of which other programs delay some by far
        inner = sorted(added_ms)[cut : len(added_ms) - cut]
        name = "time that Ray adds to a run, without the extreme tenth"
        figures.append(Figure.of(name, inner, "ms", "under 50"))
    return figures


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["independent", folder, seeds, first, step]:
            independent(folder, int(seeds), int(first), int(step))
        case ["pool", folder, seeds]:
            pool(folder, int(seeds))
        case ["ray", folder, seeds]:
            on_ray(folder, int(seeds))
        case _:
            main(__doc__, measure)
