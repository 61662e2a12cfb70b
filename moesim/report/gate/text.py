"""The text of a judgement: tables for a terminal, Markdown for pull requests, and plain data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from moesim.config.spelling import spelled
from moesim.report.gate.judge import Check, Judgement
from moesim.report.gate.paired import Change, Interval
from moesim.report.marks import foresight_sentence, shared_sentence
from moesim.report.metrics import costs_sentence, number, of_requests
from moesim.report.runs import Run
from moesim.report.tabular import Table, escaped, markdown
from moesim.results.metric_names import unit_of

__all__ = ["as_json", "as_markdown", "failure", "sentences", "tables", "verdict"]

_SCALES: Final = {"bytes": (2.0**-30, " GiB"), "share": (100.0, " %"), "/s": (1.0, "/s")}
NO_INTERVAL: Final = "–"


def verdict(judgement: Judgement) -> str:
    """Return in one line what the gate decides."""
    total, failed = len(judgement.checks), len(judgement.exceeded)
    if not total:
        return "no threshold is stated"
    if not failed:
        return "the threshold holds" if total == 1 else f"all {total} thresholds hold"
    return "the threshold is exceeded" if total == 1 else f"{failed} of {total} thresholds exceeded"


def failure(judgement: Judgement) -> str:
    """Return the message of a gate that fails: each exceeded threshold with its numbers."""
    return "; ".join(f"{check.threshold.text}: {_found(check)}" for check in judgement.exceeded)


def tables(judgement: Judgement) -> list[Table]:
    """Return the table of thresholds, and that of the headline metrics; without empty ones."""
    checks = Table("Thresholds", ["fails if", "value", "baseline", "change", "95 % interval", ""])
    for check in judgement.checks:
        change = check.change
        base, moved, ends = ("", "", "") if change is None else _cells(change, check)
        checks.add(check.threshold.text, _value(check), base, moved, ends, _outcome(check))
    changes = Table("Changes", ["metric", "value", "baseline", "change", "95 % interval"])
    for change in judgement.changes:
        changes.add(change.metric, _with_unit(change.metric, change.value), *_cells(change))
    return [table for table in (checks, changes) if table.rows]


def sentences(judgement: Judgement) -> list[str]:
    """Return what a reader must know: marks, what differs, warnings, and how intervals are made."""
    runs = [*judgement.runs, *judgement.baselines]
    found = [shared_sentence(runs), *dict.fromkeys(map(foresight_sentence, runs))]
    found += [f"WARNING: {warning}" for warning in judgement.warnings]
    found += [f"{_work(judgement.runs)}; {text}" for text in _costs(runs)]
    if judgement.baselines:
        found.append(_differing(judgement))
    found += _unfinished(runs)
    found += [f"{_named(metrics)}: {basis}" for basis, metrics in _bases(judgement).items()]
    if limited := [check for check in judgement.checks if _own_interval(check)]:
        metrics = dict.fromkeys(check.threshold.metric for check in limited)
        found.append(
            f"{', '.join(metrics)}: beside the value its 95 % t-interval over "
            f"{len(judgement.runs)} seeds"
        )
    if any(check.settled is False for check in judgement.checks):
        found.append(
            "unsettled: the limit lies inside the interval of the number that it is about, so this "
            "workload does not tell on which side that is; the number decides, not its interval"
        )
    return [text for text in found if text]


def as_markdown(judgement: Judgement, command: str) -> str:
    """Return a block of Markdown for a pull request; `command` makes it again."""
    failed = bool(judgement.exceeded)
    outcome = "failed: " if failed else "passed: " if judgement.checks else ""
    parts = [f"### moesim: {outcome}{verdict(judgement)}"]
    if failed:
        parts.append("\n".join(
            f"- `{check.threshold.text}`: {escaped(_found(check))}" for check in judgement.exceeded
        ))  # fmt: skip
    for table in tables(judgement):
        parts.append(f"**{table.title}**\n\n" + markdown(Table("", table.columns, table.rows)))
    parts.append("\n".join(f"- {escaped(text)}" for text in sentences(judgement)))
    again = "\n".join([*map(_rerun, (*judgement.baselines, *judgement.runs)), command])
    parts.append(
        "<details><summary>How to run this again</summary>\n\n"
        f"```sh\n{again}\n```\n\n</details>"
    )  # fmt: skip
    return "\n\n".join(parts)


def as_json(judgement: Judgement) -> dict[str, Any]:
    """Return the judgement as plain data; NaN for what is undefined."""
    return {
        "exceeded": bool(judgement.exceeded),
        "verdict": verdict(judgement),
        "runs": [str(run.path) for run in judgement.runs],
        "baselines": [str(run.path) for run in judgement.baselines],
        "checks": [
            {
                "fail_if": check.threshold.text,
                "metric": check.threshold.metric,
                "sign": check.threshold.sign,
                "limit": check.threshold.limit,
                "kind": check.threshold.kind,
                "value": check.value,
                "exceeded": check.exceeded,
                "interval": _ends(check.interval),
                "settled": check.settled,
                "change": None if check.change is None else _plain(check.change),
            }
            for check in judgement.checks
        ],
        "changes": [_plain(change) for change in judgement.changes],
        "differing": {
            key: {"baseline": before, "value": after}
            for key, (before, after) in judgement.differing.items()
        },
        "notes": sentences(judgement),
    }


def _plain(change: Change) -> dict[str, Any]:
    return {
        "metric": change.metric,
        "value": change.value,
        "baseline": change.baseline,
        "absolute": change.absolute,
        "relative": change.relative,
        "absolute_interval": _ends(change.absolute_interval),
        "relative_interval": _ends(change.relative_interval),
        "basis": change.basis,
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _cells(change: Change, check: Check | None = None) -> tuple[str, str, str]:
    """Return the baseline, the change and its interval as text.

    The change has the form of the threshold; shares change in percentage points otherwise.
    """
    relative = _is_relative(change, check)
    moved = change.relative if relative else change.absolute
    ends = change.relative_interval if relative else change.absolute_interval
    interval = NO_INTERVAL
    if ends is not None:
        interval = " to ".join(_change(change.metric, end, relative=relative) for end in ends)
    return (
        _with_unit(change.metric, change.baseline),
        _change(change.metric, moved, relative=relative),
        interval,
    )


def _is_relative(change: Change, check: Check | None) -> bool:
    if check is not None and check.threshold.kind != "value":
        return check.threshold.kind == "relative"
    return unit_of(change.metric) != "share" and not math.isnan(change.relative)


def _change(metric: str, amount: float, *, relative: bool) -> str:
    if relative:
        return f"{_signed(100 * amount)} %"
    if unit_of(metric) == "share":
        return f"{_signed(100 * amount)} pp"
    return _with_unit(metric, amount, signed=True)


def _with_unit(metric: str, amount: float, *, signed: bool = False) -> str:
    """Return a number with the unit of its metric, like `812.4 ms` or `3.2 GiB`."""
    unit = unit_of(metric)
    scale, name = _SCALES.get(unit, (1.0, f" {unit}" if unit else ""))
    text = _signed(amount * scale) if signed else number(amount * scale)
    return text if math.isnan(amount) else f"{text}{name}"


def _signed(amount: float) -> str:
    return f"+{number(amount)}" if amount > 0 else number(amount)


def _outcome(check: Check) -> str:
    unsettled = ", unsettled" if check.settled is False else ""
    return ("EXCEEDED" if check.exceeded else "holds") + unsettled


def _value(check: Check) -> str:
    """Return the value of a check, with its interval if the threshold limits the value itself."""
    value = _with_unit(check.threshold.metric, check.value)
    ends = _own_interval(check)
    if ends is None:
        return value
    return f"{value} [{' to '.join(_with_unit(check.threshold.metric, end) for end in ends)}]"


def _own_interval(check: Check) -> Interval | None:
    """Return the interval of a value; None where the threshold limits a change."""
    return check.interval if check.threshold.kind == "value" else None


def _found(check: Check) -> str:
    """Return the numbers of a check in words."""
    value = _value(check)
    if check.change is None:
        return f"it is {value}"
    base, moved, ends = _cells(check.change, check)
    interval = f"95 % interval {ends}" if ends != NO_INTERVAL else check.change.basis
    return f"{moved}, from {base} to {value} ({interval})"


def _work(runs: Sequence[Run]) -> str:
    run, seeds = runs[0], ", ".join(str(run.seed) for run in runs)
    requests = of_requests(run.text("requests"))
    return (
        f"{requests} a run, {'seeds' if len(runs) > 1 else 'seed'} {seeds}; "
        f"trace {run.trace} costed as {run.text('model')} on {run.hardware}"
    )


def _costs(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(map(costs_sentence, runs)))


def _differing(judgement: Judgement) -> str:
    if not judgement.differing:
        return "the scenarios are the same as the baseline's"
    texts = [
        f"{key} ({spelled(before)} → {spelled(after)})"
        for key, (before, after) in judgement.differing.items()
    ]
    return f"differs from the baseline in {', '.join(texts)}"


def _unfinished(runs: Sequence[Run]) -> list[str]:
    """Return a warning of runs that left requests unfinished, which makes them look faster."""
    counts = [(run, run.value("finished"), run.value("requests")) for run in runs]
    texts = [f"{finished:.0f} of {requests:.0f} in {run.path}"
             for run, finished, requests in counts if finished < requests]  # fmt: skip
    said = "not all requests finished, and latencies leave out the others"
    return [f"WARNING: {said}: {', '.join(texts)}"] if texts else []


def _bases(judgement: Judgement) -> Mapping[str, list[str]]:
    """Return the metrics by the way in which their intervals were made, or are not made."""
    changes = [check.change for check in judgement.checks if check.change is not None]
    found: dict[str, list[str]] = {}
    for change in [*changes, *judgement.changes]:
        # The reason names its metric, which the list says anyway.
        basis = change.basis.replace(f"{change.metric} is one number", "one number")
        metrics = found.setdefault(basis, [])
        if change.metric not in metrics:
            metrics.append(change.metric)
    return found


def _named(metrics: Sequence[str]) -> str:
    return ", ".join(metrics)


def _rerun(run: Run) -> str:
    """Return the command that makes a run again, in its place."""
    scenario = Path(run.path) / "scenario.yaml"
    return shlex.join(["moesim", "run", str(scenario), "--out", str(run.path), "--force"])
