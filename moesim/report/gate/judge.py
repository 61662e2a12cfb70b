"""The judgement of the gate: changes against a baseline, and the thresholds that they exceed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moesim.errors import UsageError
from moesim.report.comparison import varying_keys
from moesim.report.gate.paired import Change, Interval, change_of
from moesim.report.gate.samples import RequestPairs
from moesim.report.gate.thresholds import Threshold
from moesim.report.labels import differs, value_at
from moesim.report.metrics import SPEEDS
from moesim.report.runs import Run
from moesim.report.seeds import repeated
from moesim.report.statistics import estimate

__all__ = ["HEADLINES", "Check", "Judgement", "judge"]

HEADLINES: Final = (
    *(metric.key for metric in SPEEDS),
    "on_time_hit_rate",
    "late_hit_rate",
    "h2d_bytes",
    "stall_share",
)
"""The metrics whose changes are shown also without a threshold."""


@dataclass(frozen=True, slots=True)
class Check:
    """A threshold, the value of its metric, and whether the number that it limits exceeds it.

    That number is the value or the change, as the threshold says; `interval` is its own, None
    without one. `change` is None without a baseline.
    """

    threshold: Threshold
    value: float
    change: Change | None
    exceeded: bool
    interval: Interval | None

    @property
    def settled(self) -> bool | None:
        """Whether the interval lies wholly on one side of the limit; None without an interval."""
        if self.interval is None:
            return None
        return all(self.threshold.holds(end) is self.exceeded for end in self.interval)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of the gate: `checks` of its thresholds, and `changes` of the headline metrics.

    `differing` are the scenario keys in which the runs differ from the baselines, each with both
    values. `warnings` say what makes the comparison doubtful, for example costs of two kinds.
    """

    runs: tuple[Run, ...]
    baselines: tuple[Run, ...]
    checks: tuple[Check, ...]
    changes: tuple[Change, ...]
    differing: Mapping[str, tuple[Any, Any]]
    warnings: tuple[str, ...]

    @property
    def exceeded(self) -> list[Check]:
        """The checks whose threshold is exceeded."""
        return [check for check in self.checks if check.exceeded]


def judge(
    runs: Sequence[Run], baselines: Sequence[Run], thresholds: Sequence[Threshold]
) -> Judgement:
    """Compare runs with baselines, and check the thresholds.

    The runs, and likewise the baselines, differ in their seeds alone. `baselines` may be empty if
    all thresholds are of values.

    Raises:
        UsageError: the runs cannot be compared, a metric is undefined, or a baseline is missing.
    """
    _check_seeds(runs, "the runs")
    if not baselines:
        if needy := [each for each in thresholds if each.kind != "value"]:
            raise UsageError(
                f"--fail-if {needy[0].text!r} is about a change; name the run that it compares "
                "with: --baseline RUN"
            )
        checks = [_check_value(each, runs, None) for each in thresholds]
        return Judgement(tuple(runs), (), tuple(checks), (), {}, tuple(_equal_seeds(runs)))
    _check_seeds(baselines, "the baselines")
    runs, baselines = (sorted(each, key=lambda run: run.seed or 0) for each in (runs, baselines))
    _check_same_work(runs, baselines)
    requests = RequestPairs(runs[0], baselines[0])
    metrics = dict.fromkeys([*(each.metric for each in thresholds), *HEADLINES])
    # Seeds without effect are one pair, whose requests can be drawn.
    number = 1 if repeated(runs) and repeated(baselines) else len(runs)
    pairs = runs[:number], baselines[:number]
    changes = {key: change_of(key, *pairs, requests) for key in metrics}
    return Judgement(
        tuple(runs),
        tuple(baselines),
        tuple(_check(each, runs, baselines, changes[each.metric]) for each in thresholds),
        tuple(changes[key] for key in HEADLINES if not math.isnan(changes[key].absolute)),
        _differing(runs[0], baselines[0]),
        tuple(_warnings(runs, baselines)),
    )


def _check(
    threshold: Threshold, runs: Sequence[Run], baselines: Sequence[Run], change: Change
) -> Check:
    if threshold.kind == "value":
        return _check_value(threshold, runs, change)
    for run in (*runs, *baselines):
        _check_defined(threshold, run)
    if threshold.kind == "change":
        return _judged(threshold, change.value, change, change.absolute, change.absolute_interval)
    if zero := [run for run in baselines if not run.value(threshold.metric)]:
        raise UsageError(
            f"--fail-if {threshold.text!r}: {threshold.metric} is 0 in {zero[0].path}, so there is "
            "no relative change; state the change in its unit, or a value"
        )
    return _judged(threshold, change.value, change, change.relative, change.relative_interval)


def _check_value(threshold: Threshold, runs: Sequence[Run], change: Change | None) -> Check:
    for run in runs:
        _check_defined(threshold, run)
    observed = runs[:1] if repeated(runs) else runs
    values = estimate(run.value(threshold.metric) for run in observed)
    interval = None if values.half is None else Interval(values.low, values.high)
    return _judged(threshold, values.mean, change, values.mean, interval)


def _judged(
    threshold: Threshold, value: float, change: Change | None, found: float, ends: Interval | None
) -> Check:
    # The number decides, not its interval: docs/report.md says why.
    return Check(threshold, value, change, threshold.holds(found), ends)


def _check_defined(threshold: Threshold, run: Run) -> None:
    metric = threshold.metric
    if not math.isnan(run.value(metric)):
        return
    null = metric in run.summary
    why = "is null" if null else "is missing, perhaps because an older moesim wrote it,"
    raise UsageError(
        f"--fail-if {threshold.text!r}: {metric} {why} in the summary of {run.path}, so it cannot "
        "be checked; docs/results.md says when it is undefined"
    )


def _check_seeds(runs: Sequence[Run], what: str) -> None:
    """Raise UsageError unless runs differ in their seeds, and in nothing else."""
    if keys := varying_keys(runs):
        raise UsageError(
            f"{what} of a gate differ in {', '.join(keys)}, so there is no one number to compare; "
            "name runs that differ in their seeds alone, and gate each point of a sweep by itself"
        )
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{what} of a gate have one seed twice ({seeds}); name each seed once")


def _check_same_work(runs: Sequence[Run], baselines: Sequence[Run]) -> None:
    """Raise UsageError where runs and baselines do not serve the same requests."""
    seeds = [[run.seed for run in each] for each in (runs, baselines)]
    wrong = []
    if seeds[0] != seeds[1]:
        wrong.append(f"their seeds ({_listed(seeds[0])} and {_listed(seeds[1])})")
    hashed = _hashes(runs[0]).keys() & _hashes(baselines[0]).keys()
    works = [_work(each[0], hashed) for each in (runs, baselines)]
    for key, name in (("trace", "the trace"), ("workload", "workload"), ("window", "the window")):
        after, before = (work[key] for work in works)
        if not differs([after, before]):
            continue
        both = isinstance(after, Mapping) and isinstance(before, Mapping)
        inner = _differences(after, before) if both else []
        wrong += inner or [f"{name} ({after} and {before})"]
    if wrong:
        raise UsageError(
            f"{runs[0].path} and {baselines[0].path} differ in {'; '.join(wrong)}: their requests "
            "are not the same, so no pair of them can be compared; run both on the same trace, "
            "workload, window and seeds"
        )


def _listed(seeds: Sequence[int | None]) -> str:
    return ", ".join(map(str, seeds))


def _work(run: Run, hashed: Collection[str]) -> dict[str, Any]:
    """Return what decides the requests of a run, and which of them its summary counts.

    Files count by their content, because a baseline is often of another checkout; by their paths
    where they are not `hashed`, as in runs of an older moesim.
    """
    path, content = run.trace_identity
    hashes = {key: value for key, value in _hashes(run).items() if key in hashed}
    section = run.with_absolute_paths(run.scenario.get("workload"))
    metrics = run.scenario.get("metrics")
    window = metrics.get("window") if isinstance(metrics, Mapping) else None
    return {
        "trace": f"{run.trace} with hash {content[:12]}" if "trace" in hashes else path,
        "workload": _with_hashes(section, "workload", hashes),
        "window": window or "whole",
    }


def _with_hashes(value: Any, key: str, hashes: Mapping[str, Any]) -> Any:
    """Return a section of a scenario in which paths of files are the hashes of their content."""
    if isinstance(value, Mapping):
        return {name: _with_hashes(inner, f"{key}.{name}", hashes) for name, inner in value.items()}
    return hashes.get(key, value)


def _differences(after: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys((*after, *before))
    return [
        f"workload.{name} ({after.get(name)} and {before.get(name)})"
        for name in names
        if differs([after.get(name), before.get(name)])
    ]


def _differing(run: Run, baseline: Run) -> dict[str, tuple[Any, Any]]:
    return {
        key: (value_at(baseline, key), value_at(run, key))
        for key in varying_keys([run, baseline])
        if key != "trace" and not _same_content(run, baseline, key)
    }


def _same_content(run: Run, baseline: Run, key: str) -> bool:
    """Return whether a key names files of equal content in two places."""
    after, before = (_hashes(each).get(key) for each in (run, baseline))
    return after is not None and after == before


def _hashes(run: Run) -> Mapping[str, Any]:
    """Return the hashes of a run's inputs; {} if an older moesim wrote none."""
    inputs = run.manifest.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _warnings(runs: Sequence[Run], baselines: Sequence[Run]) -> list[str]:
    found = []
    kinds = [sorted({run.text("cost_kind") for run in each}) for each in (runs, baselines)]
    if kinds[0] != kinds[1]:
        found.append(
            "costs are of two kinds (" + " and ".join("/".join(each) for each in kinds) + "), so "
            "times cannot be compared"
        )
    if any("trace" not in _hashes(each[0]) for each in (runs, baselines)):
        found.append(
            "a manifest has no hash of the trace, so only its path says that it is the same trace"
        )
    codes = [_hashes(each[0]).get("code") for each in (runs, baselines)]
    if None not in codes and codes[0] != codes[1]:
        found.append("another version of moesim's code made the baseline")
    return [*found, *_equal_seeds(runs)]


def _equal_seeds(runs: Sequence[Run]) -> Iterator[str]:
    if repeated(runs):
        yield (
            "all seeds gave the same numbers, because the workload draws nothing at random, so "
            "they count as one; set workload.order: resampled"
        )
