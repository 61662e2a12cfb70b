"""Offloading systems side by side: all presets on three models, three machines and three batches.

    python studies/systems/systems.py DIR [--workers 2] [--quick]

Each preset of `system:` serves the same requests on the same machine, under the same engine. Those
that name an engine run under it too. DIR gets `systems.md`, figures and CSV files, and in `runs/`
each run. Finished runs are used again, so an interrupted command resumes where it was.

`--quick` runs a small part of the grid, to see that everything works.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from system_cells import FITTED, LOADS, MACHINES, MODELS, Cell, Load
from system_report import write_report
from system_rows import rows_of
from system_runs import Grid, entries_of, runs_of
from system_traces import ready

from moesim.cli.ending import run_to_its_end
from moesim.systems.preset import system_names

__all__ = ["FULL", "QUICK", "compare", "main"]

SHARED = Path(__file__).resolve().parents[3] / "shared"
FULL = Grid(
    cells=[
        Cell(model, machine, batch)
        for model in MODELS.values()
        for machine in MACHINES.values()
        for batch in LOADS
    ],
    systems=system_names(),
    loads=LOADS,
    seeds=4,
)
QUICK = Grid(
    cells=[
        Cell(MODELS["mixtral"], MACHINES[key], batch)
        for key in ("12GB", "80GB")
        for batch in (1, 8)
    ],
    systems=("fiddler", "llama.cpp", "mixtral-offloading", "moe-lightning", "pre-gated"),
    loads={1: Load(1, 1), 8: Load(8, 8)},
    seeds=2,
    fitted=False,
)


def main() -> None:
    options = parse()
    grid = QUICK if options.quick else FULL
    grid = replace(
        grid,
        seeds=options.seeds or grid.seeds,
        fitted=grid.fitted and not options.no_fitted,
        verdicts=not options.no_verdicts,
    )
    compare(grid, options.folder, workers=options.workers, shared=options.shared)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--quick", action="store_true", help="run a small part of the grid")
    parser.add_argument("--seeds", type=int, help=f"seeds (default: {FULL.seeds})")
    parser.add_argument("--no-fitted", action="store_true", help=f"no runs under {FITTED}")
    parser.add_argument("--no-verdicts", action="store_true", help="no bounds, so no verdicts")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder of shared data")
    return parser.parse_args()


def compare(grid: Grid, folder: Path, *, workers: int, shared: Path) -> None:
    """Run a grid and write its report into a folder."""
    models = list(dict.fromkeys(cell.model.key for cell in grid.cells))
    routings = {key: ready(key, folder / "traces", shared) for key in models}
    here = {key: routing for key, routing in routings.items() if routing is not None}
    entries = entries_of(grid, here, say)
    runs = runs_of(grid, entries, folder, workers, say)
    left_out = [MODELS[key].label for key in models if key not in here]
    write_report(rows_of(entries, runs), grid, folder, left_out)
    print(folder)


_last = [0.0]


def say(what: str, done: int, total: int) -> None:
    """Count on stderr, at most five times a second."""
    now = time.monotonic()
    if done < total and now - _last[0] < 0.2:
        return
    _last[0] = now
    end = "\n" if done == total else ""
    print(f"\r{what}: {done} of {total} ", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_to_its_end(main)
