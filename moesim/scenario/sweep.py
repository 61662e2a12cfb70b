"""A sweep: one scenario file that stands for the grid of all combinations of some values."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

from moesim.config.markers import BASE_DIR
from moesim.config.validation import validate
from moesim.config.yaml_document import Document, KeyPath
from moesim.errors import ScenarioError
from moesim.scenario.keys import key_path
from moesim.scenario.scenario import SHORTHANDS, Scenario

__all__ = ["expand_sweep"]

MAX_POINTS: Final = 10_000


def expand_sweep(scenario: Scenario) -> list[tuple[dict[str, Any], Scenario]]:
    """Every point of the grid with its values, the last key varying fastest.

    A scenario without a sweep is a grid of one point. Each point is a scenario without a sweep.

    Raises:
        ScenarioError: a key that no scenario has, or a value that is wrong there, at its line.
    """
    document = scenario.document()
    problems = _check_keys(scenario, document)
    if problems:
        raise ScenarioError(problems)
    plain = document.with_value(("sweep",), {}, document.place(("sweep",)), SHORTHANDS)
    keys = list(scenario.sweep)
    # Value by value first: a wrong one would otherwise be found in every combination.
    for key in keys:
        for index in range(len(scenario.sweep[key])):
            problems += _wrong_with(scenario, plain, {key: index})
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    points = []
    for indices in itertools.product(*(range(len(scenario.sweep[key])) for key in keys)):
        chosen = dict(zip(keys, indices, strict=True))
        try:
            made = _point(scenario, plain, chosen)
        except ScenarioError as error:
            problems += error.problems
        else:
            points.append(({key: scenario.sweep[key][i] for key, i in chosen.items()}, made))
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    return points


def vary(scenario: Scenario) -> tuple[list[Scenario], set[KeyPath]]:
    """Return points that show every value of a sweep, and the keys of which no value is right.

    Each point differs from the first in one key. Wrong values are left out.
    """
    document = scenario.document()
    plain = document.with_value(("sweep",), {}, document.place(("sweep",)), SHORTHANDS)
    good = {
        key: [i for i in range(len(values)) if not _wrong_with(scenario, plain, {key: i})]
        for key, values in scenario.sweep.items()
    }
    first = {key: indices[0] for key, indices in good.items() if indices}
    chosen = [first, *({**first, key: i} for key, indices in good.items() for i in indices[1:])]
    points = [
        _point(scenario, plain, indices)
        for indices in chosen
        if not _wrong_with(scenario, plain, indices)
    ]
    return points, {key_path(key) for key in good if key not in first}


def _check_keys(scenario: Scenario, document: Document) -> list[str]:
    """What can be said of a sweep without building its points."""
    problems = []
    size = math.prod(len(values) for values in scenario.sweep.values())
    if size > MAX_POINTS:
        problems.append(
            f"{document.place(('sweep',), key=True)}: sweep: has {size} points; "
            f"at most {MAX_POINTS} are built"
        )
    for key, values in scenario.sweep.items():
        place = document.place(("sweep", key), key=True)
        if not all(key.split(".")) or key.split(".")[0] == "sweep":
            problems.append(f"{place}: sweep.{key}: is no dotted key of a scenario")
        problems += [
            f"{place}: sweep.{key}: {other} is swept as well, which is inside it"
            for other in scenario.sweep
            if other.startswith(f"{key}.")
        ]
        problems += [
            f"{document.place(('sweep', key, i))}: sweep.{key}: {value!r} is listed twice"
            for i, value in enumerate(values)
            if any(value == other and type(value) is type(other) for other in values[:i])
        ]
    return problems


def _wrong_with(scenario: Scenario, plain: Document, chosen: dict[str, int]) -> list[str]:
    try:
        _point(scenario, plain, chosen)
    except ScenarioError as error:
        return error.problems
    return []


def _point(scenario: Scenario, plain: Document, chosen: dict[str, int]) -> Scenario:
    """The scenario with, for each key, the value of this index."""
    document = plain
    source = scenario.document()
    for key, index in chosen.items():
        place = source.place(("sweep", key, index))
        value = scenario.sweep[key][index]
        document = document.with_value(key_path(key), value, place, SHORTHANDS)
    context = {BASE_DIR: scenario.base_dir} if scenario._document is not None else None
    made = validate(document, Scenario, context)
    made._document = document
    made._base_dir = scenario.base_dir
    return made
