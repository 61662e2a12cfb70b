"""The runs of the dial: one without prefetch for each link and seed, and one for each accuracy.

A run is that of the scenario with another `prefetch`. Other keys of `prefetch` stay as they are.
The run without prefetch has none of them, because it needs no memory for copies that
never come. The perfect predictor is always among the runs, also where the grid leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moesim.dial.grid import Grid, Link
from moesim.errors import ScenarioError, UsageError
from moesim.policies.placement import fixes_residents
from moesim.scenario import Prefetch, Scenario
from moesim.scenario.keys import key_path
from moesim.scenario.loader import build
from moesim.scenario.scenario import SHORTHANDS
from moesim.simulate import Plan, prepare
from moesim.simulate.checks import policy_of
from moesim.sweep.points import Point, slug
from moesim.trace import Trace, load_trace

__all__ = ["NO_RECALL", "PERFECT", "DialPoint", "check", "dial_points", "refuse"]

PERFECT: Final = (1.0, 1.0)
"""Recall and precision of the perfect predictor."""
NO_RECALL: Final = (0.0, 1.0)
"""The one accuracy without recall that is simulated."""
_PLACE: Final = "moesim dial"
# No run of the dial needs them, and each costs time.
_LEFT_OUT: Final[dict[str, Any]] = {"bounds": False, "timeline.steps": 0}


@dataclass(frozen=True, slots=True)
class DialPoint:
    """One run: its link, seed and accuracy; `depth` is 0 without prefetch."""

    link: Link
    seed: int
    depth: int
    accuracy: tuple[float, float] = field(default=NO_RECALL)
    point: Point = field(kw_only=True, compare=False)


def dial_points(
    scenario: Scenario, grid: Grid, folder: Path, *, copied: bool = False
) -> list[DialPoint]:
    """Return the runs of a grid, with run directories inside `folder`.

    `copied` says that the folder is a copy of one elsewhere.

    Raises:
        ScenarioError: the scenario cannot be built with these values.
    """
    hardware = scenario.load_hardware()
    points = []
    for link in grid.links:
        for number in range(grid.seeds):
            seed = scenario.seed + number
            for depth, (recall, precision) in _predictors(grid):
                shared = {**_LEFT_OUT, "seed": seed, **link.changes(hardware)}
                prefetch = _prefetch(depth, recall, precision)
                values = {**shared, **prefetch}
                point = Point(
                    {key: value for key, value in values.items() if key not in _LEFT_OUT},
                    _with(scenario, values),
                    folder / slug(_named(link, seed, depth, recall, precision)),
                    copied,
                )
                points.append(DialPoint(link, seed, depth, (recall, precision), point=point))
    return points


def _predictors(grid: Grid) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield depth, recall and precision of the runs of one link and seed, each once."""
    yield 0, NO_RECALL
    if 0.0 in grid.recalls:
        # Without any recall nothing is predicted, at any depth and precision.
        yield grid.depths[0], NO_RECALL
    for depth in grid.depths:
        accuracies = [(r, p) for r in grid.recalls if r for p in grid.precisions]
        yield from ((depth, accuracy) for accuracy in dict.fromkeys([*accuracies, PERFECT]))


def _prefetch(depth: int, recall: float, precision: float) -> dict[str, Any]:
    if not depth:
        return {"prefetch": Prefetch().model_dump(mode="json")}
    options = {"recall": recall, "precision": precision, "depth": depth}
    return {"prefetch.policy": "dial", "prefetch.options": options}


def _named(link: Link, seed: int, depth: int, recall: float, precision: float) -> dict[str, Any]:
    """Return the values that name a run's folder, which is short and tells runs apart."""
    if not depth:
        return {"prefetch": "none", "link": link.text, "seed": seed}
    accuracy = {"recall": recall, "precision": precision}
    return {**accuracy, "depth": depth, "link": link.text, "seed": seed}


def _with(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    document = scenario.source()
    for key, value in values.items():
        document = document.with_value(key_path(key), value, _PLACE, SHORTHANDS)
    return build(document, scenario.base_dir)


def refuse(scenario: Scenario) -> None:
    """Raise ScenarioError where a scenario has no single run, or copies no expert."""
    if scenario.sweep:
        raise ScenarioError.at(
            scenario,
            "sweep",
            "`moesim dial` sweeps accuracies of one run; take the sweep out, as with "
            "--set sweep={}",
        )
    placement = scenario.placement.policy
    if fixes_residents(policy_of(scenario, "placement")[0]):
        raise ScenarioError.at(
            scenario,
            "placement.policy",
            f"{placement} fixes which experts are in GPU memory, so none is ever copied, and no "
            "predictor can help; choose a placement that lets experts come and go, like copy",
        )
    hardware = scenario.load_hardware()
    if hardware.unified or not hardware.has_gpu:
        why = "copies take no time" if hardware.has_gpu else "there is no GPU to copy to"
        raise ScenarioError.at(
            scenario, "hardware", f"{why}, so no predictor can help; choose a machine with a card"
        )


def check(points: Sequence[DialPoint]) -> None:
    """Check one run of each link with and without prefetch, before any is simulated.

    Raises:
        UsageError: a depth exceeds the number of MoE layers.
        ScenarioError: the scenario is wrong, or every expert has a slot.
        BudgetError: the model does not fit the memory.
        TraceError: the trace cannot be used.
    """
    first = {(each.link, bool(each.depth)): each.point.scenario for each in reversed(points)}
    traces: dict[Path, Trace] = {}
    for (_, ahead), scenario in first.items():
        if scenario.trace_path not in traces:
            traces[scenario.trace_path] = trace = load_trace(scenario.trace_path)
            _check_depths([each.depth for each in points], trace.num_layers)
        plan = prepare(scenario, traces[scenario.trace_path])
        if not ahead:
            _check_slots(plan)


def _check_depths(depths: Sequence[int], layers: int) -> None:
    """Raise UsageError where a depth reaches beyond the next token."""
    if (deepest := max(depths)) > layers:
        raise UsageError(
            f"--depth {deepest}: the trace has {layers} MoE layers, so this predictor would look "
            f"further than the next token; give at most {layers}"
        )


def _check_slots(plan: Plan) -> None:
    """Raise ScenarioError where every expert has a slot."""
    experts = plan.trace.num_layers * plan.trace.num_experts
    if sum(plan.slots) >= experts:
        raise ScenarioError.at(
            plan.scenario,
            "cache.slots",
            f"all {experts} experts have a slot, so none is copied twice, and no predictor can "
            "help; give fewer slots, like cache.slots: 50%",
        )
