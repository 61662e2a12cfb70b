"""Labels of the rows of a comparison: the scenario values that differ, complete and distinct.

A policy has its usual name in the literature, a trace the name of its folder. Where two different
values would get the same label, both are spelt out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moesim.config.spelling import entries, shortest_tails, spelled
from moesim.policies.references import is_reference, referred_class
from moesim.report.names import policy_label
from moesim.report.runs import Run

__all__ = ["differs", "identity", "labels", "value_at"]

# From the JSON of a section's value to those of its entries that differ between runs.
Distinguishing = Mapping[str, Mapping[str, Any]]


def value_at(run: Run, key: str) -> Any:
    """Return the value of a dotted scenario key, as the sweep or the resolved scenario has it.

    Relative paths become absolute. The trace is given by its name.
    """
    if key in run.point:
        return run.point[key]
    if key == "trace":
        return run.trace
    value: Any = run.scenario
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return run.with_absolute_paths(value)


def identity(run: Run, key: str) -> str:
    """Return a text that is equal for two runs exactly if their values of a key are equal."""
    # Folders of one name can hold different traces, so a trace is told by path and content.
    content = run.trace_identity if key == "trace" else None
    return _json([value_at(run, key), content])


def differs(values: Iterable[Any]) -> bool:
    """Return whether there are two different values; 1, 1.0, true and "1" are different."""
    # As JSON, because Python holds 1, 1.0 and True for equal.
    return len({_json(value) for value in values}) > 1


def labels(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, list[str]]:
    """Return for each key the labels of the runs' values: `bandwidth = 25GB/s`, `LRU`."""
    names = shortest_tails(keys)
    return {key: _distinct(runs, key, names[key]) for key in keys}


def _distinct(runs: Sequence[Run], key: str, name: str) -> list[str]:
    """Return the usual labels; values that would share a label are spelt out."""
    identities = [identity(run, key) for run in runs]
    distinguishing = _distinguishing(runs, key)
    usual = [_usual(run, key, name, distinguishing) for run in runs]
    owners: dict[str, set[str]] = {}  # the different values behind each label
    for label, owner in zip(usual, identities, strict=True):
        owners.setdefault(label, set()).add(owner)
    return [
        label if len(owners[label]) == 1 else f"{name} = {_whole(run, key)}"
        for run, label in zip(runs, usual, strict=True)
    ]


def _usual(run: Run, key: str, name: str, distinguishing: Distinguishing) -> str:
    value = value_at(run, key)
    if key == "trace":
        return f"{name} = {spelled(run.trace)}"
    if key == "system":
        return str(value or "no system")
    if isinstance(value, Mapping):
        return _section(name, distinguishing.get(_json(value), value), value)
    if key == "cache.policy":
        options = run.scenario.get("cache", {}).get("options")
        return policy_label(str(value or run.text("cache_policy")), options)
    if value is None:
        return f"{name} not set"
    if key.endswith(".policy"):
        family = key.split(".")[0]
        if isinstance(value, str) and is_reference(value):
            return f"{referred_class(value)} {family}"
        return f"{'no' if value == 'none' else value} {family}".replace("_", "-")
    return f"{name} = {spelled(value)}"


def _section(name: str, differing: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return the label of a section swept as a whole: its policy and what differs."""
    if not isinstance(whole.get("policy"), str):
        return f"{name} = {spelled(differing)}"
    options = differing.get("options")
    rest = {k: v for k, v in differing.items() if k not in ("policy", "options")}
    rest |= options if isinstance(options, Mapping) else {}
    named = f"{whole['policy']} {name}".replace("_", "-")
    return f"{named} ({entries(rest)})" if rest else named


def _whole(run: Run, key: str) -> str:
    if key == "trace":
        # Eight digits of the hash, since a trace may have been recorded again under one path.
        path, content = run.trace_identity
        return f"{spelled(run.point.get(key, path))} ({content[:8]})"
    return spelled(value_at(run, key))


def _distinguishing(runs: Sequence[Run], key: str) -> Distinguishing:
    """Return the entries that differ between sections swept as a whole; {} for other values."""
    values = [value_at(run, key) for run in runs]
    if not all(isinstance(value, Mapping) for value in values):
        return {}
    names = dict.fromkeys(name for value in values for name in value)
    kept = [name for name in names if differs(value.get(name) for value in values)]
    return {_json(value): {name: value[name] for name in kept if name in value} for value in values}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
