"""What a search for a threshold found, in sentences, tables and plain data."""

from __future__ import annotations

import math
from typing import Any

from moesim.config.spelling import spelled
from moesim.report.tabular import Table
from moesim.search.grid import Grid, Place
from moesim.search.page import Finding, Saved, estimate_text, plain_estimate, undefined, value_text
from moesim.search.thresholds import Line, Thresholds
from moesim.search.tried import Tried

__all__ = ["threshold_finding"]


def threshold_finding(grid: Grid, found: Thresholds) -> Finding:
    """Return the finding of a search for a threshold."""
    metric = found.condition.metric
    runs = sum(len(grid.points[each.place]) for each in found.tried)
    return Finding(
        kind="threshold",
        asked=f"{found.condition}, over {found.key}",
        sentences=[_sentence(grid, found, line) for line in found.lines],
        metrics=[metric],
        tried=found.tried,
        found=[_plain(grid, found, line) for line in found.lines],
        tables=_tables(grid, found),
        saved=Saved(runs, 0, runs, grid.runs),
        marks={each.place: "found" for line in found.lines if (each := line.at(line.search.found))},
        notes=_notes(grid, found),
        refused=undefined(found.tried, [metric]) or _refused(grid, found),
        reached=any(line.search.status in ("found", "met everywhere") for line in found.lines),
    )


def _refused(grid: Grid, found: Thresholds) -> str:
    """Return why lines have no threshold although values met the condition; "" if all have."""
    wrong = [line for line in found.lines if line.search.status == "not monotone"]
    if not wrong:
        return ""
    of = f" for {len(wrong)} of {len(found.lines)} combinations" if len(found.lines) > 1 else ""
    return (
        f"{found.condition.metric} is not monotone over {found.key}{of}, so a bisection could name "
        f"a wrong threshold: {_sentence(grid, found, wrong[0])}; narrow the values with --over, "
        "raise --tolerance if the moves do not matter, or run all points with `moesim compare`"
    )


def _others(grid: Grid, found: Thresholds, place: Place) -> dict[str, Any]:
    return {key: value for key, value in grid.chosen(place).items() if key != found.key}


def _label(grid: Grid, found: Thresholds, line: Line) -> str:
    others = _others(grid, found, line.places[0])
    return ", ".join(f"{key}={spelled(value)}" for key, value in others.items())


def _value(grid: Grid, found: Thresholds, number: int) -> str:
    return spelled(grid.values[found.key][number])


def _sentence(grid: Grid, found: Thresholds, line: Line) -> str:
    """Return the answer of one line in a sentence."""
    search, metric, last = line.search, found.condition.metric, len(line.places) - 1
    label = _label(grid, found, line)
    ends = f"from {_value(grid, found, 0)} to {_value(grid, found, last)}"
    here, beyond = line.at(search.found), line.at(search.beyond)
    if here is not None and beyond is not None:
        at, other = search.found or 0, search.beyond or 0
        what = (
            f"{found.key}={_value(grid, found, at)} is the {search.side} value with "
            f"{found.condition} ({value_text(here, metric)}; at {_value(grid, found, other)} "
            f"{value_text(beyond, metric)})"
        )
    elif search.status == "not monotone":
        what = (
            f"no threshold: {search.broken}, so a bisection over {found.key} would be wrong: "
            f"{_course(grid, found, line)}"
        )
    elif search.status == "failed":
        what = f"no threshold: a run failed before {found.key} was found"
    else:
        every = "every tried value" if search.status == "met everywhere" else "no tried value"
        what = f"{every} of {found.key} {ends} has {found.condition} ({_course(grid, found, line)})"
    return f"{label}: {what}" if label else what


def _course(grid: Grid, found: Thresholds, line: Line) -> str:
    """Return the tried values with their metrics: `1/layer 4.2, 4/layer 8.1`."""
    metric = found.condition.metric
    return ", ".join(
        f"{_value(grid, found, at)} {value_text(line.tried[at], metric)}"
        for at in sorted(line.tried)
    )


def _plain(grid: Grid, found: Thresholds, line: Line) -> dict[str, Any]:
    """Return the answer of one line as plain data."""
    search = line.search
    return {
        "of": _others(grid, found, line.places[0]),
        "status": search.status,
        "reason": search.broken,
        "key": found.key,
        "side": search.side,
        "value": _side(grid, found, line, search.found),
        "neighbour": _side(grid, found, line, search.beyond),
        "tried": len(line.tried),
    }


def _side(grid: Grid, found: Thresholds, line: Line, number: int | None) -> dict[str, Any] | None:
    """Return a value of the key and its metric."""
    tried = line.at(number)
    if number is None or tried is None:
        return None
    value = tried.estimate(found.condition.metric)
    return {"value": grid.values[found.key][number], **plain_estimate(value)}


def _tables(grid: Grid, found: Thresholds) -> list[Table]:
    """Return a table of the thresholds, and one of all tried points."""
    metric = found.condition.metric
    thresholds = Table(
        f"{found.condition}, over {found.key}",
        ["of", "threshold", metric, "next value", metric, "tried"],
    )
    points = Table("What was tried", ["of", found.key, metric, "meets"])
    for line in found.lines:
        label, search = _label(grid, found, line) or grid.scenario.name, line.search
        cells = [search.status, "", "", ""]
        here, beyond = line.at(search.found), line.at(search.beyond)
        if here is not None and beyond is not None:
            cells = [
                f"{_value(grid, found, search.found or 0)} ({search.side})",
                value_text(here, metric),
                _value(grid, found, search.beyond or 0),
                value_text(beyond, metric),
            ]
        thresholds.add(label, *cells, f"{len(line.tried)} of {len(line.places)}")
        for at in sorted(line.tried):
            meets = "yes" if search.meets(at) else "no"
            points.add(label, _value(grid, found, at), value_text(line.tried[at], metric), meets)
    return [thresholds, points]


def _notes(grid: Grid, found: Thresholds) -> list[str]:
    """Return what a reader must know: how far the answer is checked, and what is close."""
    notes = []
    if any(line.search.status == "found" for line in found.lines):
        notes.append(
            "the metric is monotone at the tried values; between them it may turn, and more "
            "--probes make that less likely"
        )
    for line in found.lines:
        for each in (line.at(line.search.found), line.at(line.search.beyond)):
            if each is not None and _is_close(found, each):
                notes.append(
                    f"{grid.label(each.place)}: the 95 % interval of the mean, "
                    f"{estimate_text(each.estimate(found.condition.metric))}, holds the limit; "
                    "more seeds may move the threshold"
                )
    undefined = [
        each for each in found.tried if each.runs and math.isnan(each.mean(found.condition.metric))
    ]
    if undefined:
        notes.append(
            f"{found.condition.metric} is undefined at {len(undefined)} tried points, which "
            "therefore miss the condition"
        )
    return notes


def _is_close(found: Thresholds, tried: Tried) -> bool:
    """Return whether the interval of a point's mean holds the limit."""
    value = tried.estimate(found.condition.metric)
    return bool(value.half) and value.low <= found.condition.limit <= value.high
