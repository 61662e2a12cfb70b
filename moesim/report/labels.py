"""What the rows of a comparison are called: the values that differ, whole and distinct.

A policy has the name that the field gives it, a trace that of its folder. Where two values would
read alike, both are spelt out instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moesim.config.spelling import entries, shortest_tails, spelled
from moesim.report.names import policy_label
from moesim.report.runs import Run

__all__ = ["differs", "identity", "labels", "value_at"]

Telling = Mapping[str, Mapping[str, Any]]


def value_at(run: Run, key: str) -> Any:
    """The value of a dotted scenario key: as the sweep wrote it, or else as resolved, with paths
    from the root; the trace by its name."""
    if key in run.point:
        return run.point[key]
    if key == "trace":
        return run.trace
    value: Any = run.scenario
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return run.with_absolute_paths(value)


def identity(run: Run, key: str) -> str:
    """Return a text that is the same for two runs just where their values of a key are."""
    content = run.trace_identity if key == "trace" else None
    return _json([value_at(run, key), content])


def differs(values: Iterable[Any]) -> bool:
    """Return whether there are two different values; 1, 1.0, true and "1" are different."""
    return len({_json(value) for value in values}) > 1


def labels(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return for each key the label of each run's value: `bandwidth = 25GB/s`, `LRU`."""
    names = shortest_tails(keys)
    return {key: _distinct(runs, key, names[key]) for key in keys}


def _distinct(runs: Sequence[Run], key: str, name: str) -> list[str]:
    """The usual labels, but for those that more than one value would have."""
    identities = [identity(run, key) for run in runs]
    telling = _telling(runs, key)
    usual = [_usual(run, key, name, telling) for run in runs]
    owners: dict[str, set[str]] = {}
    for label, owner in zip(usual, identities, strict=True):
        owners.setdefault(label, set()).add(owner)
    return [
        label if len(owners[label]) == 1 else f"{name} = {_whole(run, key)}"
        for run, label in zip(runs, usual, strict=True)
    ]


def _usual(run: Run, key: str, name: str, telling: Telling) -> str:
    value = value_at(run, key)
    if key == "trace":
        return f"{name} = {spelled(run.trace)}"
    if isinstance(value, Mapping):
        return _section(name, telling.get(_json(value), value), value)
    if key == "cache.policy":
        options = run.scenario.get("cache", {}).get("options")
        return policy_label(str(value or run.text("cache_policy")), options)
    if key.endswith(".policy"):
        family = key.split(".")[0]
        return f"{'no' if value == 'none' else value} {family}".replace("_", "-")
    return f"{name} = {spelled(value)}"


def _section(name: str, told: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A section that was swept whole: its policy, and of the rest what tells it from others."""
    if not isinstance(whole.get("policy"), str):
        return f"{name} = {spelled(told)}"
    options = told.get("options")
    rest = {k: v for k, v in told.items() if k not in ("policy", "options")}
    rest |= options if isinstance(options, Mapping) else {}
    named = f"{whole['policy']} {name}".replace("_", "-")
    return f"{named} ({entries(rest)})" if rest else named


def _whole(run: Run, key: str) -> str:
    if key == "trace":
        path, content = run.trace_identity
        return f"{spelled(run.point.get(key, path))} ({content[:8]})"
    return spelled(value_at(run, key))


def _telling(runs: Sequence[Run], key: str) -> Telling:
    """Of whole sections that were swept: by value, the entries that tell them apart."""
    values = [value_at(run, key) for run in runs]
    if not all(isinstance(value, Mapping) for value in values):
        return {}
    names = dict.fromkeys(name for value in values for name in value)
    kept = [name for name in names if differs(value.get(name) for value in values)]
    return {_json(value): {name: value[name] for name in kept if name in value} for value in values}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
