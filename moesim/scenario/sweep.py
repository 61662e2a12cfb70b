"""A sweep: the grid of runs over all combinations of the values that a scenario lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

from moesim.config.markers import BASE_DIR
from moesim.config.validation import validate
from moesim.config.yaml_document import Document, KeyPath
from moesim.errors import ScenarioError
from moesim.scenario.keys import key_path
from moesim.scenario.scenario import SHORTHANDS, Scenario
from moesim.scenario.system import with_system

__all__ = ["expand_sweep", "with_values"]

# All points are built and checked before the first one runs, which takes time and memory.
MAX_POINTS: Final = 10_000
MAX_KEYS: Final = 100


def expand_sweep(scenario: Scenario) -> list[tuple[dict[str, Any], Scenario]]:
    """Return every point of the grid as its swept values and its scenario.

    The last key varies fastest. A scenario without a sweep has one point. The scenario of a point
    has no sweep.

    Raises:
        ScenarioError: a swept key does not exist, or a value is wrong; each with its line.
    """
    document = scenario.source()
    problems = _check_keys(scenario, document)
    if problems:
        raise ScenarioError(problems)
    plain = document.with_value(("sweep",), {}, document.place(("sweep",)), SHORTHANDS)
    keys = list(scenario.sweep)
    # Each value is checked by itself first; else a wrong one shows up in every combination.
    for key in keys:
        for index in range(len(scenario.sweep[key])):
            problems += _wrong_with(scenario, plain, {key: index})
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    points = []
    for indices in itertools.product(*(range(len(scenario.sweep[key])) for key in keys)):
        chosen = dict(zip(keys, indices, strict=True))
        try:
            point = _point(scenario, plain, chosen)
        except ScenarioError as error:
            problems += error.problems
        else:
            points.append(({key: scenario.sweep[key][i] for key, i in chosen.items()}, point))
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    return points


def vary(scenario: Scenario) -> tuple[list[Scenario], set[KeyPath]]:
    """Return few points that hold every valid value of a sweep, and the keys without such a value.

    Each point differs from the first in at most one key.
    """
    document = scenario.source()
    plain = document.with_value(("sweep",), {}, document.place(("sweep",)), SHORTHANDS)
    valid = {
        key: [i for i in range(len(values)) if not _wrong_with(scenario, plain, {key: i})]
        for key, values in scenario.sweep.items()
    }
    first = {key: indices[0] for key, indices in valid.items() if indices}
    chosen = [first, *({**first, key: i} for key, indices in valid.items() for i in indices[1:])]
    points = [
        _point(scenario, plain, indices)
        for indices in chosen
        if not _wrong_with(scenario, plain, indices)
    ]
    return points, {key_path(key) for key in valid if key not in first}


def with_values(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """Return a scenario with other values of some dotted keys, checked, and without its sweep.

    Raises:
        ScenarioError: a value is wrong.
    """
    document = scenario.source()
    document = document.with_value(("sweep",), {}, document.place(("sweep",)), SHORTHANDS)
    for key, value in values.items():
        path = key_path(key)
        document = document.with_value(path, value, document.place(path), SHORTHANDS)
    return _built(scenario, document)


def oversize(scenario: Scenario) -> str | None:
    """Return the message for a sweep with too many keys or points; None if its size is fine."""
    size = math.prod(len(values) for values in scenario.sweep.values())
    place = f"{scenario.source().place(('sweep',), key=True)}: sweep"
    if len(scenario.sweep) > MAX_KEYS:
        return f"{place}: has {len(scenario.sweep)} keys; at most {MAX_KEYS} are allowed"
    if size > MAX_POINTS:
        return f"{place}: has {size} points; at most {MAX_POINTS} are allowed"
    return None


def _check_keys(scenario: Scenario, document: Document) -> list[str]:
    """Return the mistakes of a sweep that show without building its points."""
    if too_large := oversize(scenario):
        return [too_large]
    problems = []
    for key, values in scenario.sweep.items():
        place = document.place(("sweep", key), key=True)
        if not all(key.split(".")) or key.split(".")[0] == "sweep":
            problems.append(f"{place}: sweep.{key}: is not a dotted key of a scenario")
        if key == "system" and scenario._document is None:
            # Its values cannot be told from those of its own system, which would win.
            problems.append(f"{place}: sweep.system: needs a scenario from load_scenario")
        problems += [
            f"{place}: sweep.{key}: cannot be swept together with {other}, which is inside it"
            for other in scenario.sweep
            if other.startswith(f"{key}.")
        ]
        problems += [
            f"{document.place(('sweep', key, i))}: sweep.{key}: {value!r} is listed twice"
            for i, value in enumerate(values)
            # Python's 1, 1.0 and True are equal, but differ as values of a key.
            if any(value == other and type(value) is type(other) for other in values[:i])
        ]
    return problems


def _wrong_with(scenario: Scenario, plain: Document, chosen: dict[str, int]) -> list[str]:
    """Return the mistakes of one point."""
    try:
        _point(scenario, plain, chosen)
    except ScenarioError as error:
        return error.problems
    return []


def _point(scenario: Scenario, plain: Document, chosen: dict[str, int]) -> Scenario:
    """Return `plain`, the scenario without its sweep, with value number `chosen[key]` of each key.

    Raise ScenarioError.
    """
    document = plain
    source = scenario.source()
    for key, index in chosen.items():
        place = source.place(("sweep", key, index))
        value = scenario.sweep[key][index]
        document = document.with_value(key_path(key), value, place, SHORTHANDS)
    return _built(scenario, document)


def _built(scenario: Scenario, document: Document) -> Scenario:
    """Return the scenario in a document that `scenario`'s was changed to. Raise ScenarioError."""
    # A scenario from `model_validate` has no document; its paths are not checked either.
    context = {BASE_DIR: scenario.base_dir} if scenario._document is not None else None
    point = validate(with_system(document, SHORTHANDS), Scenario, context)
    point._document = document
    point._base_dir = scenario.base_dir
    return point
