"""The points of a sweep: the combinations of its values, each with a scenario and a run directory.

A point's folder is named by its values alone (`cache.policy=lru,seed=0`), never by its number.
A sweep that is extended therefore finds its earlier runs.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.spelling import looks_like_data, spelled
from moesim.config.validation import order
from moesim.errors import BudgetError, OutputError, ScenarioError
from moesim.inputs import read_json
from moesim.sweep.backend import Backend, Cluster, TaskResult

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["Point", "check_points", "points_of", "simulate_all", "simulate_points", "unfinished"]

_LONGEST: Final = 120  # most file systems take 255 bytes, and temporary names add to it


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its values, its scenario (without a sweep) and its run directory.

    `copied` says that the folder is a copy of one elsewhere. Paths in its files are then absolute.
    """

    values: Mapping[str, Any]
    scenario: Scenario
    folder: Path
    copied: bool = False

    @property
    def label(self) -> str:
        """The values for a message: `cache.policy=lru, seed=0`."""
        return ", ".join(f"{key}={spelled(value)}" for key, value in self.values.items())

    def text(self) -> str:
        """Return the content of the run's `scenario.yaml`."""
        return self.scenario.text_for(None if self.copied else self.folder)


def points_of(scenario: Scenario, folder: Path, *, copied: bool = False) -> list[Point]:
    """Return the points of a scenario's sweep in order, with run directories inside `folder`.

    `copied` says that the folder is a copy of one elsewhere.

    Raises:
        ScenarioError: a value of the sweep is wrong.
    """
    from moesim.scenario import expand_sweep

    return [
        Point(values, each, folder / slug(values), copied)
        for values, each in expand_sweep(scenario)
    ]


def check_points(points: Sequence[Point]) -> None:
    """Check all points before any of them is simulated.

    Without this, an unknown policy in the last point would show only after all other runs.

    Raises:
        ScenarioError: with the mistakes of all points.
        TraceError: a trace cannot be used.
    """
    from moesim.simulate import prepare
    from moesim.trace import load_trace

    # Points mostly share one trace; it is opened once.
    traces = {point.scenario.trace_path: None for point in points}
    loaded = {path: load_trace(path) for path in traces}
    problems: dict[str, None] = {}
    for point in points:
        try:
            prepare(point.scenario, loaded[point.scenario.trace_path])
        except ScenarioError as error:
            problems.update(dict.fromkeys(error.problems))
        except BudgetError:
            pass  # a size that does not fit is a result of its point, not a mistake in the file
    if problems:
        raise ScenarioError(sorted(problems, key=order))


def unfinished(points: Sequence[Point]) -> list[Point]:
    """Return the points whose run directory does not exist yet.

    Raises:
        OutputError: a folder holds a run of another scenario, trace, policy or moesim code.
    """
    from moesim.simulate.rundir import fingerprint

    fingerprints = {point.folder: _fingerprint_in(point.folder) for point in points}
    outdated = [p for p in points if fingerprints[p.folder] not in (None, fingerprint(p.scenario))]
    if outdated:
        raise OutputError(
            outdated[0].folder.parent,
            f"{len(outdated)} of its {len(points)} points were made from another scenario, trace, "
            "policy or version of moesim; choose another --out, or pass --force to run all points "
            "again",
        )
    return [point for point in points if fingerprints[point.folder] is None]


def simulate_points(
    points: Sequence[Point], backend: Backend | Cluster, *, force: bool = False
) -> Generator[TaskResult]:
    """Simulate every point into its folder; yield results as they end, by index into `points`.

    `force` replaces existing runs.
    """
    if isinstance(backend, Cluster):
        from moesim.sweep.away import simulate_away

        return simulate_away(points, backend, force=force)
    return backend.results(_simulate, [(point, force) for point in points])


def simulate_all(
    points: Sequence[Point],
    backend: Backend | Cluster,
    *,
    force: bool = False,
    ended: Callable[[Point, Exception | None], None],
) -> list[tuple[Point, Exception]]:
    """Simulate every point into its folder; return those that failed, in order, with their errors.

    `ended(point, error)` is called as each one ends; the error of a whole run is None.
    """
    failures: dict[int, Exception] = {}
    # Closing ends the workers at once, also after an interrupt.
    with closing(simulate_points(points, backend, force=force)) as results:
        for result in results:
            if result.error is not None:
                failures[result.index] = result.error
            ended(points[result.index], result.error)
    return [(points[index], error) for index, error in sorted(failures.items())]


def slug(values: Mapping[str, Any]) -> str:
    """Return a folder name for these values: legible, valid on every file system, unambiguous."""
    plain = ",".join(f"{key}={_plain(value)}" for key, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9._=,%+-]+", "-", plain)
    if safe == plain and len(safe) <= _LONGEST and not any(map(_mistakable, values.values())):
        return safe
    # Replaced or cut characters could make two points share a name; the checksum tells them apart.
    checksum = zlib.crc32(json.dumps(dict(values), sort_keys=True).encode())
    return f"{safe[:_LONGEST]}-{checksum:08x}"


def _fingerprint_in(folder: Path) -> str | None:
    """Return the fingerprint of the run in a folder; None if there is no folder."""
    if not os.path.exists(folder):  # unlike `Path.exists`, False where the name is too long
        return None
    try:
        manifest = read_json(folder / "manifest.json")
        return str(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"  # equal to no fingerprint: `unfinished` refuses the folder


def _mistakable(value: Any) -> bool:
    """Return whether a text looks like a number or another type, or like two values."""
    return isinstance(value, str) and (looks_like_data(value) or bool({",", "="} & set(value)))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _simulate(task: tuple[Point, bool]) -> None:
    """Simulate one point; a worker process imports this function by name."""
    from moesim.simulate import run

    point, force = task
    text = point.text() if point.copied else None
    run(point.scenario, out=point.folder, force=force, point=point.values, text=text)
