"""What a search for an optimum found, in sentences, tables and plain data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from moesim.config.spelling import spelled
from moesim.report.statistics import difference
from moesim.report.tabular import Cell, Table
from moesim.search.grid import Grid
from moesim.search.metrics import Objective
from moesim.search.optimum import KEEP, Goal, Optimum
from moesim.search.page import Finding, Saved, plain_estimate, undefined, value_text
from moesim.search.tried import Tried

__all__ = ["optimum_finding"]

_FLAT = 0.01  # the relative difference from the best below which points count as equal


def optimum_finding(grid: Grid, found: Optimum) -> Finding:
    """Return the finding of a search for an optimum."""
    goal, best = found.goal, {each.place for each in found.best}
    word = "front" if len(goal.objectives) > 1 else "best"
    return Finding(
        kind="optimum",
        asked=", ".join(map(str, (*goal.objectives, *goal.conditions))),
        sentences=_sentences(grid, found),
        metrics=goal.metrics,
        tried=found.whole,
        found=[_plain(grid, goal, each) for each in found.best],
        tables=_tables(grid, found),
        saved=_saved(grid, found),
        marks=dict.fromkeys(best, word),
        notes=_notes(grid, found),
        prefixes=[each for rung in found.rungs[:-1] for each in rung],
        reached=bool(found.best) or not goal.conditions,
        refused=undefined(found.whole, goal.metrics)
        or ("" if found.best or goal.conditions else _sentences(grid, found)[0]),
    )


def _saved(grid: Grid, found: Optimum) -> Saved:
    seeds = {place: len(points) for place, points in grid.points.items()}
    whole = sum(seeds[each.place] for each in found.whole)
    short = [each for rung in found.rungs[:-1] for each in rung]
    # A prefix that failed has no runs, but may have taken as long.
    cost = sum(
        seeds[each.place] * (each.requests or 0) / found.requests[each.place] for each in short
    )
    return Saved(whole, sum(seeds[each.place] for each in short), whole + cost, grid.runs)


def _sentences(grid: Grid, found: Optimum) -> list[str]:
    goal, asked = found.goal, ", ".join(map(str, found.goal.objectives))
    where = "".join(f", with {condition}" for condition in goal.conditions)
    if not found.best:
        return [f"no tried point can be ranked for {asked}{where}"]
    if len(goal.objectives) > 1:
        return [
            f"{len(found.best)} points are on the front ({asked}{where}): no tried point is better "
            "in one objective and not worse in another"
        ]
    (best,) = found.best
    values = ", ".join(f"{metric} {value_text(best, metric)}" for metric in goal.metrics)
    return [f"best of the tried points ({asked}{where}): {grid.label(best.place)}: {values}"]


def _plain(grid: Grid, goal: Goal, tried: Tried) -> dict[str, Any]:
    metrics = {metric: plain_estimate(tried.estimate(metric)) for metric in goal.metrics}
    return {"values": grid.chosen(tried.place), "metrics": metrics}


def _tables(grid: Grid, found: Optimum) -> list[Table]:
    """Return a table of the best points, and one of the others with whole runs."""
    goal, best = found.goal, {each.place for each in found.best}
    title = "The front" if len(goal.objectives) > 1 else "The best point"
    others = [each for each in found.whole if each.place not in best]
    tables = [_table(grid, goal, title, found.best)] if found.best else []
    return [*tables, *([_table(grid, goal, "Others with whole runs", others)] if others else [])]


def _table(grid: Grid, goal: Goal, title: str, points: Sequence[Tried]) -> Table:
    """Return the points, the best of the first objective first."""
    table = Table(title, [", ".join(grid.keys), *goal.metrics])
    for each in sorted(points, key=lambda point: _order(goal.objectives[0], point)):
        label = ", ".join(spelled(value) for value in grid.chosen(each.place).values())
        table.add(label, *(_cell(goal, each, metric) for metric in goal.metrics))
    return table


def _cell(goal: Goal, tried: Tried, metric: str) -> Cell:
    """Return a metric of a point; one that misses a condition says so."""
    text = value_text(tried, metric)
    limits = [each for each in goal.conditions if each.metric == metric]
    missed = bool(tried.runs) and not all(each.meets(tried.mean(metric)) for each in limits)
    return Cell(f"{text} (misses)" if missed else text)


def _order(objective: Objective, tried: Tried) -> tuple[bool, float]:
    value = objective.worth(tried.mean(objective.metric))
    return (value != value, -value if value == value else 0.0)


def _notes(grid: Grid, found: Optimum) -> list[str]:
    """Return what a reader must know: how points were chosen, left out or ended early."""
    goal, notes = found.goal, []
    many = len(grid.points) - len(found.left_out)
    if len(found.chosen) == many:
        notes.append(f"all {many} points of the grid were tried")
    else:
        notes.append(
            f"{len(found.chosen)} of {many} points were tried, as Optuna chose them (seed "
            f"{goal.seed}); a better point may be among the others, and --runs allows more"
        )
    if found.left_out:
        notes.append(
            f"not tried: {len(found.left_out)} of the grid's points, whose policies know the "
            "future; they are bounds"
        )
    if seers := [each for each in found.whole if each.seers]:
        notes.append(
            f"not ranked: {len(seers)} of the tried points, which know the future; they are bounds"
        )
    for share, (rung, after) in zip(goal.shares, itertools.pairwise(found.rungs), strict=True):
        notes.append(
            f"ended early: {len(rung) - len(after)} of {len(rung)} points after the first "
            f"{share:.0%} of the requests, where only the best {len(after)} (one in {KEEP}) "
            "continued; the whole workload might rank them otherwise"
        )
    return [*notes, *_close(grid, found)]


def _close(grid: Grid, found: Optimum) -> list[str]:
    """Return a note on tried points that are about as good as the best one."""
    goal = found.goal
    if len(goal.objectives) != 1 or not found.best:
        return []
    (best,), objective = found.best, goal.objectives[0]
    top = best.mean(objective.metric)
    equal = [
        each
        for each in found.whole
        if each.place != best.place
        and goal.worths(each) is not None
        and not any(goal.excess(each))
        and (abs(each.mean(objective.metric) - top) <= _FLAT * abs(top) or _tied(best, each, goal))
    ]
    if not equal:
        return []
    names = "; ".join(grid.label(each.place) for each in equal[:3])
    more = f" and {len(equal) - 3} more" if len(equal) > 3 else ""
    return [f"about as good, within 1 % or the intervals of the seeds: {names}{more}"]


def _tied(best: Tried, other: Tried, goal: Goal) -> bool:
    """Return whether the interval of the difference over the seeds holds zero."""
    metric = goal.objectives[0].metric
    values = [[run.value(metric) for run in each.runs] for each in (other, best)]
    gap = difference(*values, relative=False)
    return bool(gap.half) and gap.low <= 0 <= gap.high
