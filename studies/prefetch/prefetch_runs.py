"""The runs of the study: the dial's grid, published accuracies, and policies that learn.

Each is compared with the run without prefetch of the same place and seed. Finished runs are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from held_out_accuracy import LEARNED, Accuracy
from prefetch_places import DEEPSEEK, Place
from published_predictors import Predictor

from moesim.dial import Grid, Plane, dial_points, planes_of
from moesim.dial.break_even import steps_s
from moesim.report.runs import Run, load_run
from moesim.report.statistics import Estimate, difference
from moesim.scenario import Scenario, load_scenario
from moesim.sweep import LocalProcesses, Point, simulate_points, unfinished
from moesim.sweep.points import slug
from moesim.trace import load_trace

__all__ = ["Found", "run_places"]


@dataclass(frozen=True, slots=True)
class Found:
    """What the runs of one place say: the plane, and time saved by predictor and by policy.

    `dialled` is the dial of the same accuracy as each policy that learns.
    """

    place: Place
    plane: Plane
    published: Mapping[str, Estimate]
    learned: Mapping[str, Estimate]
    dialled: Mapping[str, Estimate]


def run_places(
    scenarios: Mapping[Place, Scenario],
    grid: Grid,
    predictors: Sequence[Predictor],
    measured: Mapping[str, Accuracy],
    folder: Path,
    workers: int,
) -> list[Found]:
    """Simulate all that is missing; return what was found at each place."""
    plans = {
        place: _Plan(place, scenario, grid, predictors, measured, folder / slug({"at": place.name}))
        for place, scenario in scenarios.items()
    }
    every = {point.folder: point for plan in plans.values() for point in plan.points()}
    missing = unfinished(list(every.values()))
    with closing(simulate_points(missing, LocalProcesses(workers))) as results:
        for done, result in enumerate(results, 1):
            if result.error is not None:
                raise result.error
            print(f"\rruns: {done} of {len(missing)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [plan.found() for plan in plans.values()]


class _Plan:
    """The runs of one place."""

    def __init__(
        self,
        place: Place,
        scenario: Scenario,
        grid: Grid,
        predictors: Sequence[Predictor],
        measured: Mapping[str, Accuracy],
        folder: Path,
    ) -> None:
        self._place, self._grid = place, grid
        self._dial = dial_points(scenario, grid, folder)
        layers = load_trace(scenario.trace_path).num_layers
        seeds = [scenario.seed + number for number in range(grid.seeds)]

        def points(prefetches: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Point]]:
            return {
                name: [_point(scenario, name, keys, seed, folder) for seed in seeds]
                for name, keys in prefetches.items()
            }

        self._published = points({each.name: _dialled(each.options(layers)) for each in predictors})
        real = measured if place.model == DEEPSEEK else {}
        self._learned = points(
            {name: {"policy": name, "options": {**LEARNED[name], "depth": 1}} for name in real}
        )
        accuracies = {
            f"dial as {name}": {"recall": it.recall, "precision": it.precision}
            for name, it in real.items()
        }
        self._as_learned = points({name: _dialled(it) for name, it in accuracies.items()})

    def points(self) -> Iterator[Point]:
        """Yield all runs."""
        yield from (each.point for each in self._dial)
        for group in (self._published, self._learned, self._as_learned):
            for points in group.values():
                yield from points

    def found(self) -> Found:
        """Return what the finished runs say."""
        runs = {each: load_run(each.point.folder) for each in self._dial}
        (plane,) = planes_of(runs, self._grid)
        base = list(plane.base)

        def saved(group: Mapping[str, Sequence[Point]]) -> dict[str, Estimate]:
            return {
                name: _saved([load_run(point.folder) for point in points], base)
                for name, points in group.items()
            }

        dialled = {
            name.removeprefix("dial as "): value for name, value in saved(self._as_learned).items()
        }
        return Found(self._place, plane, saved(self._published), saved(self._learned), dialled)


def _dialled(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"policy": "dial", "options": dict(options)}


def _point(
    scenario: Scenario, name: str, prefetch: Mapping[str, Any], seed: int, folder: Path
) -> Point:
    kept = {"buffers": scenario.prefetch.buffers, **prefetch}
    data = {**scenario.resolved(), "seed": seed, "prefetch": kept}
    values = {"predictor": name, "seed": seed}
    # The paths of a mapping start at the working directory, as those of the places do.
    return Point(values, load_scenario(data), folder / slug(values))


def _saved(runs: Sequence[Run], base: Sequence[Run]) -> Estimate:
    longer = difference([steps_s(run) for run in runs], [steps_s(run) for run in base])
    return Estimate(0.0 - longer.mean, longer.half, longer.n, longer.undefined)
