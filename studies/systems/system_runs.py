"""All runs of the comparison: finished ones are kept, the others run in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from system_cells import COMMON, FITTED, OWN, Cell, Entry, Load, entry_of, own_engine, scenario_of
from system_traces import Routing

from moesim.files import clean_up
from moesim.inputs import read_json
from moesim.simulate.rundir import holds
from moesim.sweep import LocalProcesses, Point, simulate_points
from moesim.sweep.points import slug
from moesim.trace import Trace

__all__ = ["Grid", "Run", "entries_of", "runs_of"]

Tell = Callable[[str, int, int], None]
_FOLDER: Final = "runs"


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells and systems that are run, and their load by batch.

    `seeds` are those under the common engine and under a preset's own. The fitted engine has one,
    and so has a cell in which everything fits in GPU memory. `verdicts` need bounds, which take
    most of the time.
    """

    cells: Sequence[Cell]
    systems: Sequence[str]
    loads: Mapping[int, Load]
    seeds: int
    fitted: bool = True
    verdicts: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """The summaries of an entry under one engine, by seed, or why it failed."""

    entry: Entry
    engine: str
    summaries: Sequence[Mapping[str, Any]]
    failure: str = ""


def entries_of(grid: Grid, routings: Mapping[str, Routing], tell: Tell) -> list[Entry]:
    """Return an entry for each cell and system of a grid; models without routing are left out."""
    traces: dict[Path, Trace] = {}
    pairs = [(c, s) for c in grid.cells if c.model.key in routings for s in grid.systems]
    entries = []
    for done, (cell, system) in enumerate(pairs):
        tell("systems checked", done, len(pairs))
        load = grid.loads[cell.batch]
        entries.append(entry_of(cell, system, routings[cell.model.key], load, traces))
    tell("systems checked", len(pairs), len(pairs))
    return entries


def runs_of(
    grid: Grid, entries: Sequence[Entry], folder: Path, workers: int, tell: Tell
) -> list[Run]:
    """Simulate what is not finished in `folder`; return the runs of all entries that can run."""
    points = {
        (number, engine, seed): _point(grid, entries[number], engine, seed, folder / _FOLDER)
        for number, engine, seed in _planned(grid, entries)
    }
    clean_up(folder / _FOLDER)  # what a killed worker has left
    missing = [each for each in points.values() if not holds(each.scenario, each.folder)]
    failures: dict[Path, str] = {}
    done = len(points) - len(missing)
    tell("runs", done, len(points))
    # Runs of an older version of moesim are replaced.
    for result in simulate_points(missing, LocalProcesses(workers), force=True):
        done += 1
        tell("runs", done, len(points))
        if result.error is not None:
            failures[missing[result.index].folder] = str(result.error)
    runs: dict[tuple[int, str], list[Point]] = {}
    for (number, engine, _), point in points.items():
        runs.setdefault((number, engine), []).append(point)
    return [_run(entries[number], engine, own, failures) for (number, engine), own in runs.items()]


def _planned(grid: Grid, entries: Sequence[Entry]) -> Iterator[tuple[int, str, int]]:
    for number, entry in enumerate(entries):
        if entry.data is None:
            continue
        for seed in range(1 if entry.fits else grid.seeds):
            yield number, COMMON, seed
            if own_engine(entry.system) is not None:
                yield number, OWN, seed
        if grid.fitted and not entry.fits:
            yield number, FITTED, 0


def _point(grid: Grid, entry: Entry, engine: str, seed: int, folder: Path) -> Point:
    assert entry.data is not None
    model, machine = entry.cell.place
    values = {
        "model": model, "machine": machine, "batch": entry.cell.batch, "system": entry.system,
        "engine": engine, "seed": seed,
    }  # fmt: skip
    # Where everything fits, there is nothing to explain.
    bounds = grid.verdicts and engine == COMMON and seed == 0 and not entry.fits
    scenario = scenario_of(entry.data, engine, seed, bounds=bounds)
    return Point(values, scenario, folder / slug(values))


def _run(entry: Entry, engine: str, points: Sequence[Point], failures: Mapping[Path, str]) -> Run:
    failed = [failures[point.folder] for point in points if point.folder in failures]
    if failed:
        return Run(entry, engine, (), failed[0].removeprefix("scenario: "))
    return Run(entry, engine, [read_json(point.folder / "summary.json") for point in points])
