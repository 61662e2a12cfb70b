"""The optimum: the best points of a grid by one or several objectives, from few runs.

Optuna chooses the points that are tried (`moesim.search.chooser`). If the grid has no more points
than may be tried, all are, and Optuna is not needed.

With *prefixes* the search ends early on what is bad: every chosen point first serves the first
requests of its workload only. The best third of the points serves a longer prefix, or the whole
workload. This is successive halving (Jamieson and Talwalkar, arXiv 1502.07943) with a factor of 3.
A prefix may rank points in another order than the whole workload does, so its numbers are never
results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moesim.errors import MissingExtra, ScenarioError, UsageError, shown
from moesim.search.front import better_part, front_of
from moesim.search.grid import Grid, Place
from moesim.search.metrics import Condition, Objective
from moesim.search.tried import Tried, Trier

if TYPE_CHECKING:
    from moesim.search.chooser import Answer

__all__ = ["JOURNAL", "Goal", "Optimum", "find_optimum", "parse_prefix"]

JOURNAL = "optuna.journal"
"""The file of Optuna's study in the folder of a search."""
KEEP = 3
"""One in KEEP points goes from a prefix to the next longer one."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is best: objectives, conditions that must be met, and how the search is done.

    `most` is the number of points that may be tried, `shares` are the prefixes, ascending, as
    shares of the requests.
    """

    objectives: tuple[Objective, ...]
    conditions: tuple[Condition, ...] = ()
    most: int = 24
    shares: tuple[float, ...] = ()
    seed: int = 0

    @property
    def metrics(self) -> list[str]:
        """The metrics of objectives and conditions, each once."""
        metrics = [each.metric for each in self.objectives]
        return list(dict.fromkeys([*metrics, *(each.metric for each in self.conditions)]))

    def worths(self, tried: Tried) -> tuple[float, ...] | None:
        """Return the objectives of a point, more is better; None if it cannot be ranked.

        A point that failed, leaves a metric undefined or knows the future is not ranked.
        """
        values = [each.worth(tried.mean(each.metric)) for each in self.objectives]
        if tried.seers or any(math.isnan(tried.mean(metric)) for metric in self.metrics):
            return None
        return tuple(values)

    def excess(self, tried: Tried) -> tuple[float, ...]:
        """Return by how much a point misses each condition, 0 where it is met."""
        return tuple(
            0.0
            if each.meets(value := tried.mean(each.metric))
            # A strict limit that is reached exactly is missed, too.
            else max(each.excess(value), 1e-12)
            for each in self.conditions
        )


@dataclass(frozen=True, slots=True)
class Optimum:
    """The outcome of a search: all points that it tried, and the best of them.

    `rungs` has the points of each prefix, and last those with whole runs, each in the order of the
    grid. `best` are the points of the front, and with one objective the best point.
    """

    goal: Goal
    rungs: tuple[tuple[Tried, ...], ...]
    best: tuple[Tried, ...]
    chosen: tuple[Place, ...]
    """The tried places in the order in which they were chosen."""
    requests: Mapping[Place, int] = field(default_factory=dict)
    """The number of requests of whole runs, by place; empty without prefixes."""
    left_out: tuple[Place, ...] = ()
    """The places whose policies are known to know the future; they were not tried."""

    @property
    def whole(self) -> tuple[Tried, ...]:
        """The points with whole runs."""
        return self.rungs[-1]


def parse_prefix(text: str) -> tuple[float, ...]:
    """Return the shares in a text like `0.25` or `0.1,0.5`, ascending. Raise UsageError."""
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    ascending = all(one < other for one, other in itertools.pairwise(shares))
    if not shares or not ascending or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f"--prefix {shown(text)}: write shares of the requests above 0 and below 1, the lowest "
            "first, like 0.25 or 0.1,0.5"
        )
    return shares


def find_optimum(grid: Grid, goal: Goal, trier: Trier, *, anew: bool = False) -> Optimum:
    """Return the best points of a grid that a search for `goal` finds.

    `anew` forgets what an earlier command of the same search has chosen.

    Raises:
        MissingExtra: the grid is larger than `goal.most`, and Optuna is not installed.
        UsageError: every policy of the grid knows the future, or a prefix is too short.
        OutputError: a file cannot be written.
    """
    free, left_out = _real(grid)
    whole = _whole_requests(grid, free) if goal.shares else {}
    steps = _steps(whole, goal.shares)
    if steps:
        _check_prefix(grid, goal.shares[0], steps[0])
    first = trier.try_whole if not steps else lambda places: trier.try_prefix(places, steps[0])
    if len(free) <= goal.most:
        chosen = list(free)
        first(chosen)
    else:
        chosen = _chosen(grid, free, goal, first, anew=anew)
    places, rungs = [place for place in free if place in set(chosen)], []
    for requests in steps:
        rungs.append(tuple(trier.try_prefix(places, requests)))
        places = _better(goal, rungs[-1])
    rungs.append(tuple(trier.try_whole(places)))
    best = _best(goal, rungs[-1])
    return Optimum(goal, tuple(rungs), best, tuple(chosen), whole, tuple(left_out))


def _real(grid: Grid) -> tuple[list[Place], list[Place]]:
    """Return the places whose policies a server could run, and those that know the future."""
    from moesim.simulate.facts import knows_the_future

    seers = {p for p, points in grid.points.items() if knows_the_future(points[0].scenario)}
    if len(seers) == len(grid.points):
        raise UsageError(
            "every point of the grid has a policy that knows the future: these are bounds, not "
            "policies, so none is the best; add other policies"
        )
    return [p for p in grid.points if p not in seers], [p for p in grid.points if p in seers]


def _steps(whole: Mapping[Place, int], shares: Sequence[float]) -> list[dict[Place, int]]:
    """Return the number of requests of each prefix, by place. Raise UsageError if it is no part."""
    steps = [{place: math.ceil(share * many) for place, many in whole.items()} for share in shares]
    for share, step in zip(shares, steps, strict=True):
        if any(step[place] >= many for place, many in whole.items()):
            raise UsageError(
                f"--prefix {share:g}: is all of the {min(whole.values())} requests; write a lower "
                "share, or leave --prefix out"
            )
    return steps


def _check_prefix(grid: Grid, share: float, requests: Mapping[Place, int]) -> None:
    """Raise UsageError if a prefix makes a scenario wrong, like a window without requests."""
    from moesim.sweep import check_points

    try:
        check_points(
            [
                p
                for at in grid.one_by_one()
                if at in requests
                for p in grid.shortened(at, requests[at])
            ]
        )
    except ScenarioError as error:
        raise UsageError(f"--prefix {share:g}: {error.problems[0]}") from None


def _whole_requests(grid: Grid, places: Sequence[Place]) -> dict[Place, int]:
    """Return the number of requests of the workload of each place."""
    from moesim.trace import load_trace
    from moesim.workload.workload import build_workload

    # Most points share one trace and one workload.
    traces, counts, whole = {}, {}, {}
    for place in places:
        scenario = grid.points[place][0].scenario
        path = scenario.trace_path
        if path not in traces:
            traces[path] = load_trace(path)
        key = (path, scenario.seed, scenario.workload.model_dump_json())
        if key not in counts:
            counts[key] = len(build_workload(scenario, traces[path]))
        whole[place] = counts[key]
    return whole


def _chosen(
    grid: Grid,
    free: Sequence[Place],
    goal: Goal,
    attempt: Callable[[Sequence[Place]], Sequence[Tried]],
    *,
    anew: bool,
) -> list[Place]:
    """Return the places that Optuna chooses, in their order, after trying all of them."""
    try:
        from moesim.search.chooser import Answer, open_chooser
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise MissingExtra(
            "search", f"choosing {goal.most} of {len(free)} points with Optuna"
        ) from None
    chooser = open_chooser(
        grid,
        free,
        [each.maximize for each in goal.objectives],
        goal.seed,
        _study_name(grid, goal),
        anew=anew,
    )
    while batch := chooser.next_batch(goal.most):
        tried = attempt([place for _, place in batch])
        for (number, _), each in zip(batch, tried, strict=True):
            chooser.tell(number, _answer(goal, each, Answer))
    chosen = chooser.answered()[: goal.most]
    attempt(chosen)  # those that an earlier command tried, whose runs may be gone
    return chosen


def _answer(goal: Goal, tried: Tried, answer: type[Answer]) -> Answer:
    if goal.worths(tried) is None:
        return answer(None)
    return answer(tuple(tried.mean(o.metric) for o in goal.objectives), goal.excess(tried))


def _study_name(grid: Grid, goal: Goal) -> str:
    """Return a name of the study that is another for each search; `goal.most` may grow."""
    import hashlib
    import json

    from moesim.simulate.rundir import fingerprint

    first = next(iter(grid.points.values()))
    parts = {
        "values": [[key, list(values)] for key, values in grid.values.items()],
        "seeds": list(grid.seeds),
        "point": fingerprint(first[0].scenario),
        "goal": [[*map(str, goal.objectives)], [*map(str, goal.conditions)], [*goal.shares]],
        "seed": goal.seed,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{grid.scenario.name}-{digest[:10]}"


def _better(goal: Goal, rung: Sequence[Tried]) -> list[Place]:
    """Return the places of the best third of a rung."""
    ranked = [(each, worths) for each in rung if (worths := goal.worths(each)) is not None]
    excess = [sum(goal.excess(each)) for each, _ in ranked]
    count = math.ceil(len(rung) / KEEP)
    kept = better_part([worths for _, worths in ranked], excess, count)
    return [ranked[at][0].place for at in kept]


def _best(goal: Goal, whole: Sequence[Tried]) -> tuple[Tried, ...]:
    """Return the front of the points that meet all conditions; with one objective its first."""
    ranked = [
        (each, worths)
        for each in whole
        if (worths := goal.worths(each)) is not None and not any(goal.excess(each))
    ]
    front = [ranked[at][0] for at in front_of([worths for _, worths in ranked])]
    return tuple(front if len(goal.objectives) > 1 else front[:1])
