"""A comparison from Python: every point of a sweep is simulated, and the runs are compared.

`moesim compare` takes the same steps, and prints and draws what this returns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import UsageError, described, shown
from moesim.files import as_path, output_errors, without_leftovers
from moesim.locks import exclusive
from moesim.report import Comparison, Run, compare_runs, load_run
from moesim.simulate.rundir import TABLES
from moesim.sweep.backend import Backend
from moesim.sweep.local import LocalProcesses
from moesim.sweep.points import Point, check_points, points_of, simulate_all, unfinished

if TYPE_CHECKING:
    from moesim.progress import Progress
    from moesim.scenario import Scenario

__all__ = ["compare", "comparison_of"]

_EXAMPLE: Final = "{'cache.policy': ['lru', 'lfu']}"


def compare(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    force: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Simulate every point of a scenario's sweep and return the comparison of the runs.

    `sweep` replaces that of the scenario: dotted keys, each with its values. `overrides` are those
    of `moesim.run`. With `out`, the runs are kept in `out/runs`, and a later call simulates only
    points that are missing there; `force` simulates all again. Without it the runs stay in memory.
    More than one of `workers` starts processes, so that a script needs
    `if __name__ == "__main__":`. `progress("points", done, total)` is called after each point.

    Points that fail are left out, and listed in `failures` of the comparison.

    Raises:
        ScenarioError: the scenario has mistakes.
        UsageError: there is no sweep, or an argument is wrong.
        TraceError: a trace cannot be used.
        OutputError: `out` cannot be written, or holds runs of another scenario.
        MoesimError: all points failed; the error is that of the first.

    >>> sweep = {"cache.policy": ["lru", "lfu"]}
    >>> moesim.compare("scenarios/quickstart.yaml", sweep=sweep, overrides={"bounds": False})
    <Comparison: 2 runs in 2 rows, 2 variants, 1 settings>
    """
    from moesim.scenario import load_scenario

    loaded = load_scenario(scenario, overrides)
    if sweep is not None:
        if not isinstance(sweep, Mapping):
            raise UsageError(
                f"sweep must map keys to lists of values, like {_EXAMPLE}, not {shown(sweep)}"
            )
        loaded = load_scenario(loaded, {"sweep": dict(sweep)})
    if not loaded.sweep:
        raise UsageError(
            "the scenario has no sweep, so there is nothing to compare; give one, like "
            f"sweep={_EXAMPLE}, or simulate it with moesim.run"
        )
    backend = LocalProcesses(workers)
    if out is not None:
        folder = as_path(out)
        points = points_of(loaded, folder / "runs")
        missing = points if force else unfinished(points)
        check_points(missing)
        with _writing(folder):
            failures = _simulated(missing, len(points), backend, force, progress)
            return _compared(points, failures)
    with tempfile.TemporaryDirectory(prefix="moesim-") as temporary:
        points = points_of(loaded, Path(temporary), copied=True)
        check_points(points)
        failures = _simulated(points, len(points), backend, force, progress)
        return _compared(points, failures, held=True)


def _compared(
    points: Sequence[Point], failures: Sequence[tuple[Point, Exception]], *, held: bool = False
) -> Comparison:
    comparison = comparison_of(points, failures, held=held)
    if comparison is None:
        raise failures[0][1]
    return comparison


def comparison_of(
    points: Sequence[Point], failures: Sequence[tuple[Point, Exception]], *, held: bool = False
) -> Comparison | None:
    """Return the comparison of the finished points, with the others as `failures`.

    `held` reads all tables into memory, so that the folders may go. None if all points failed.
    """
    failed = {point.folder for point, _ in failures}
    runs = [load_run(point.folder) for point in points if point.folder not in failed]
    if not runs:
        return None
    compared = compare_runs([_held(run) for run in runs] if held else runs)
    lines = [f"{point.label}: {described(error).splitlines()[0]}" for point, error in failures]
    return replace(compared, failures=tuple(lines))


def _held(run: Run) -> Run:
    tables = {name: run.arrow(name) for name in TABLES}
    columns = {name: {key: t[key] for key in t.column_names} for name, t in tables.items()}
    return replace(run, held=columns)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the folder of a comparison and lock it; remove partial runs at both ends."""
    runs = folder / "runs"
    with output_errors(folder):
        runs.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, inside=True), without_leftovers(runs):
        yield


def _simulated(
    points: Sequence[Point],
    total: int,
    backend: Backend,
    force: bool,
    progress: Progress | None,
) -> list[tuple[Point, Exception]]:
    done = total - len(points)

    def ended(_point: Point, _error: Exception | None) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("points", done, total)

    return simulate_all(points, backend, force=force, ended=ended)
