"""Simulated times of a claim: one scenario, some of its keys changed, and paired seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from moesim.report.statistics import Estimate, difference
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.trace import Trace

__all__ = ["Served", "change", "merged", "read", "serve"]

SCENARIOS: Final = Path(__file__).with_name("scenarios")
Served = Mapping[str, Any]
"""The summary of one run."""


@cache
def _text(name: str) -> str:
    return (SCENARIOS / f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Return the scenario of a claim as plain data. Its trace is given in memory."""
    data: dict[str, Any] = yaml.safe_load(_text(name))
    return {**data, "trace": "in memory"}


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with values changed; a key like `cache.slots` names a nested one."""
    result: dict[str, Any] = {
        key: merged(value, {}) if isinstance(value, dict) else value for key, value in data.items()
    }
    for path, value in changes.items():
        *sections, last = path.split(".")
        place = result
        for section in sections:
            held = place.setdefault(section, {})
            # A section may be written as its first key's value.
            if not isinstance(held, dict):
                held = place[section] = {_SHORT[section]: held}
            place = held
        place[last] = value
    return result


_SHORT: Final = {"hardware": "profile", "model": "shape", "cache": "policy", "engine": "profile"}


def serve(name: str, trace: Trace, seeds: Sequence[int], **changes: Any) -> list[Served]:
    """Return the summaries of a claim's scenario, one for each seed.

    Changes are written with two underscores for a dot: `cache__slots="16/layer"`.
    """
    data = merged(read(name), {key.replace("__", "."): value for key, value in changes.items()})
    return [
        result_of(prepare(Scenario.model_validate({**data, "seed": seed}), trace)).summary
        for seed in seeds
    ]


def change(ours: Sequence[Served], theirs: Sequence[Served], key: str) -> Estimate:
    """Return the change of a number in per cent, paired by seed."""
    found = difference([run[key] for run in ours], [run[key] for run in theirs])
    half = None if found.half is None else 100 * found.half
    return Estimate(100 * found.mean, half, found.n, found.undefined)
