"""The points of a sweep: which run stands for which values, and where it is kept.

A point's folder is named by its values alone (`cache.policy=lru,seed=0`), never by its number, so
that a sweep that grows finds its earlier runs again.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.spelling import looks_like_data, spelled
from moesim.config.validation import order
from moesim.errors import BudgetError, OutputError, ScenarioError
from moesim.sweep.backend import Backend, Outcome

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["Point", "check_points", "points_of", "simulate_points", "unfinished"]

_LONGEST: Final = 120


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its values, its scenario (without a sweep) and its run directory."""

    values: Mapping[str, Any]
    scenario: Scenario
    folder: Path

    @property
    def label(self) -> str:
        """The values for a message: `cache.policy=lru, seed=0`."""
        return ", ".join(f"{key}={spelled(value)}" for key, value in self.values.items())


def points_of(scenario: Scenario, folder: Path) -> list[Point]:
    """The points of a scenario's sweep in order, each with its run directory inside `folder`.

    Raises:
        ScenarioError: a value of the sweep is wrong.
    """
    from moesim.scenario import expand_sweep

    return [Point(values, made, folder / slug(values)) for values, made in expand_sweep(scenario)]


def check_points(points: Sequence[Point]) -> None:
    """Look for mistakes that would show only when a point's turn comes, such as a policy that
    there is none of; nothing is simulated.

    Raises:
        ScenarioError: with the mistakes of all points.
        TraceError: a trace cannot be used.
    """
    from moesim.simulate import prepare
    from moesim.trace import load_trace

    traces = {point.scenario.trace_path: None for point in points}
    loaded = {path: load_trace(path) for path in traces}
    problems: dict[str, None] = {}
    for point in points:
        try:
            prepare(point.scenario, loaded[point.scenario.trace_path])
        except ScenarioError as error:
            problems.update(dict.fromkeys(error.problems))
        except BudgetError:
            pass  # a size that does not fit is a result of its point, and no mistake in the file
    if problems:
        raise ScenarioError(sorted(problems, key=order))


def unfinished(points: Sequence[Point]) -> list[Point]:
    """The points that are not there yet, made from the same scenario, trace, code and policies.

    Raises:
        OutputError: the folder of a point holds something else.
    """
    from moesim.rundir import fingerprint

    there = {point.folder: _fingerprint_in(point.folder) for point in points}
    others = [p for p in points if there[p.folder] not in (None, fingerprint(p.scenario))]
    if others:
        raise OutputError(
            others[0].folder.parent,
            f"{len(others)} of its {len(points)} points were made from another scenario, trace, "
            "policy or version of moesim; choose another --out, or pass --force to run all points "
            "again",
        )
    return [point for point in points if there[point.folder] is None]


def simulate_points(
    points: Sequence[Point], backend: Backend, *, force: bool = False
) -> Generator[Outcome]:
    """Simulate every point into its folder; yields outcomes as they end, by index into `points`.

    `force` replaces what is there.
    """
    return backend.outcomes(_simulate, [(point, force) for point in points])


def slug(values: Mapping[str, Any]) -> str:
    """A folder name for these values: legible, usable on every file system, never ambiguous."""
    plain = ",".join(f"{key}={_plain(value)}" for key, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9._=,%+-]+", "-", plain)
    if safe == plain and len(safe) <= _LONGEST and not any(map(_mistakable, values.values())):
        return safe
    checksum = zlib.crc32(json.dumps(dict(values), sort_keys=True).encode())
    return f"{safe[:_LONGEST]}-{checksum:08x}"


def _fingerprint_in(folder: Path) -> str | None:
    """What the run in a folder was made from; None where there is no folder."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _mistakable(value: Any) -> bool:
    """Whether a text reads as other data, or as the end of one value and the start of the next."""
    return isinstance(value, str) and (looks_like_data(value) or bool({",", "="} & set(value)))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _simulate(task: tuple[Point, bool]) -> None:
    from moesim.simulate import run

    point, force = task
    run(point.scenario, out=point.folder, force=force, point=point.values)
