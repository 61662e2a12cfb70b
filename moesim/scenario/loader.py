"""Loading a scenario from a YAML file and `--set` overrides, with all mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from moesim.config.markers import BASE_DIR, file_under, seen_from
from moesim.config.validation import COMMAND_LINE, OVERRIDE, order, validate
from moesim.config.yaml_document import (
    Document,
    KeyPath,
    load_document,
    parse_value,
    plain_document,
)
from moesim.errors import ScenarioError, UsageError, shown
from moesim.files import as_path
from moesim.policies.references import referred_file, with_file
from moesim.scenario.behind import mistakes_behind
from moesim.scenario.keys import key_path, map_paths
from moesim.scenario.scenario import SHORTHANDS, Scenario
from moesim.scenario.sweep import expand_sweep
from moesim.scenario.system import with_system

__all__ = ["load_scenario"]


class _Override(NamedTuple):
    """A dotted key, the place that messages name, and the value."""

    key: str
    place: str
    value: Any


def load_scenario(
    source: str | os.PathLike[str] | Mapping[str, Any] | Scenario,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Scenario:
    """Return the checked scenario in `source`, changed by `overrides`.

    `source` is a YAML file, a mapping or a scenario; the relative paths of a mapping start at the
    working directory. `overrides` maps dotted keys to values, `{"cache.policy": "lru"}`, or lists
    texts with a value in YAML, `["cache.policy=lru"]`. An override also removes the key from the
    sweep. Every point of a sweep is checked.

    Raises:
        ScenarioError: the scenario has mistakes; each is given with its file:line:column, or with
            the key of the mapping or override.
        UsageError: `source` is not a path, or `overrides` is no mapping and no list of texts.
    """
    if isinstance(source, Scenario):
        if not overrides:
            return source
        document, base_dir = source.source(), source.base_dir
    elif isinstance(source, Mapping):
        document = plain_document(source, "scenario")
        base_dir = Path()
    else:
        source = as_path(source)
        document = load_document(source)
        base_dir = Path(source).parent
        if "name" not in document.data and Path(source).stem:
            document.data["name"] = Path(source).stem
    document, problems = _override(document, overrides, base_dir)
    try:
        scenario = build(document, base_dir)
        expand_sweep(scenario)
    except ScenarioError as error:
        # Both may report the same mistake, hence the `dict.fromkeys`.
        mistakes = [*error.problems, *problems, *mistakes_behind(document, base_dir)]
        raise ScenarioError(sorted(dict.fromkeys(mistakes), key=order)) from None
    if problems:
        raise ScenarioError([*problems, *mistakes_behind(document, base_dir)])
    return scenario


def build(document: Document, base_dir: Path) -> Scenario:
    """Return the scenario in a document without checking its sweep. Raise ScenarioError."""
    scenario = validate(with_system(document, SHORTHANDS), Scenario, {BASE_DIR: base_dir})
    scenario._document = document
    scenario._base_dir = base_dir
    return scenario


def _override(
    document: Document, overrides: Sequence[str] | Mapping[str, Any], base_dir: Path
) -> tuple[Document, list[str]]:
    """Return the document with all valid overrides, and the mistakes of the others.

    Relative paths of overrides start at the working directory, those of the document at
    `base_dir`.
    """

    def seen_from_base(_key: KeyPath, text: str) -> str:
        # An empty path stays empty, so that the schema refuses it.
        if not text or os.path.isabs(text):
            return text
        return seen_from(base_dir, text)

    given, problems = _parsed(overrides)
    for key, place, value in given:
        try:
            policy = _policy_beside(document, key_path(key), base_dir)
            value = map_paths(Scenario, key_path(key), value, seen_from_base, policy)
            document = document.with_value(key_path(key), value, place, SHORTHANDS)
        except ScenarioError as error:
            problems += error.problems
            continue
        # A swept value would replace that of the override at every point.
        sweep = document.data.get("sweep")
        if isinstance(sweep, dict):
            for swept in [s for s in sweep if s == key or s.startswith(f"{key}.")]:
                del sweep[swept]
    return document, problems + _overwritten(document, given)


def _parsed(overrides: Sequence[str] | Mapping[str, Any]) -> tuple[list[_Override], list[str]]:
    """Return each override, and the mistakes of those that cannot be read."""
    given: list[_Override] = []
    problems: list[str] = []
    for read in _readers(overrides):
        try:
            given.append(read())
        except ScenarioError as error:
            problems += error.problems
    return given, problems


def _readers(
    overrides: Sequence[str] | Mapping[str, Any],
) -> list[Callable[[], _Override]]:
    """Return what reads each override. Raise UsageError for what is no mapping and no texts."""
    if isinstance(overrides, Mapping):
        return [partial(_of_value, key, value) for key, value in overrides.items()]
    texts = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(texts, Sequence) and all(isinstance(each, str) for each in texts):
        return [partial(_of_text, each) for each in texts]
    raise UsageError(
        "overrides must map dotted keys to values, like {'seed': 1}, or list texts, like "
        f"['seed=1'], not {shown(overrides)}"
    )


def _of_value(name: object, value: Any) -> _Override:
    key = str(name).strip()
    place = f"{OVERRIDE}{key}"
    if not all(key.split(".")):
        raise ScenarioError([f"{place}: write a dotted key and a value, as in {{'seed': 1}}"])
    return _Override(key, place, plain_document({key: value}, place).data[key])


def _of_text(text: str) -> _Override:
    name, equals, value = text.partition("=")
    key = name.strip()
    place = f"{COMMAND_LINE}{key}"
    if not equals or not all(key.split(".")):
        raise ScenarioError([f"{COMMAND_LINE}{text}: write a dotted key and a value, as in seed=1"])
    return _Override(key, place, parse_value(value, place))


def _policy_beside(document: Document, key: KeyPath, base_dir: Path) -> str | None:
    """Return the reference to the policy whose option a key is; None for a registered policy."""
    policy = document.at((*key[:1], "policy"))
    if key[1:2] != ("options",) or not isinstance(policy, str):
        return None
    file = referred_file(policy)
    return with_file(policy, file_under(base_dir, file)) if file else None


def _overwritten(document: Document, given: Sequence[_Override]) -> list[str]:
    """Return a message for each override inside a section that the sweep sets as a whole."""
    sweep = document.data.get("sweep")
    return [
        f"{place}: the sweep sets all of {swept} at every point; "
        f"change the values of sweep.{swept}, or set {swept} itself"
        for key, place in dict.fromkeys((key, place) for key, place, _ in given)
        for swept in (sweep if isinstance(sweep, dict) else ())
        if key.startswith(f"{swept}.")
    ]
