"""From a YAML file and `--set` overrides to a scenario, or to all of its mistakes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.config.markers import BASE_DIR, seen_from
from moesim.config.validation import order, validate
from moesim.config.yaml_document import Document, KeyPath, load_document, parse_value
from moesim.errors import ScenarioError
from moesim.scenario.behind import mistakes_behind
from moesim.scenario.keys import key_path, map_paths
from moesim.scenario.scenario import SHORTHANDS, Scenario
from moesim.scenario.sweep import expand_sweep

__all__ = ["load_scenario"]


def load_scenario(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Scenario:
    """Read and check a scenario with every point of its sweep.

    `source` is a YAML file, or a mapping, whose paths start at the working directory. `overrides`
    are `"cache.policy=lru"`: a dotted key and a value in YAML; an overridden key is no longer
    swept.

    Raises:
        ScenarioError: with every mistake, each with its file:line:column or `--set` key.
    """
    if isinstance(source, Mapping):
        document = Document("scenario", dict(source), has_lines=False)
        base_dir = Path()
    else:
        document = load_document(source)
        base_dir = Path(source).parent
        if "name" not in document.data and Path(source).stem:
            document.data["name"] = Path(source).stem
    document, problems = _override(document, overrides, base_dir)
    try:
        scenario = build(document, base_dir)
        expand_sweep(scenario)
    except ScenarioError as error:
        mistakes = [*error.problems, *problems, *mistakes_behind(document, base_dir)]
        raise ScenarioError(sorted(dict.fromkeys(mistakes), key=order)) from None
    if problems:
        raise ScenarioError([*problems, *mistakes_behind(document, base_dir)])
    return scenario


def build(document: Document, base_dir: Path) -> Scenario:
    """The scenario that a document is, its sweep left unexpanded. Raises ScenarioError."""
    scenario = validate(document, Scenario, {BASE_DIR: base_dir})
    scenario._document = document
    scenario._base_dir = base_dir
    return scenario


def _override(
    document: Document, overrides: Sequence[str], base_dir: Path
) -> tuple[Document, list[str]]:
    """The document with all overrides that can be read, and what is wrong with the others.

    A path given here starts at the working directory; the document's start at `base_dir`.
    """

    def seen_from_base(_key: KeyPath, text: str) -> str:
        if not text or os.path.isabs(text):
            return text
        return seen_from(base_dir, text)

    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        place = f"--set {key}"
        if not equals or not all(key.split(".")):
            problems.append(f"--set {override}: write a dotted key and a value, as in seed=1")
            continue
        try:
            value = parse_value(text, place)
            value = map_paths(Scenario, key_path(key), value, seen_from_base)
            document = document.with_value(key_path(key), value, place, SHORTHANDS)
        except ScenarioError as error:
            problems += error.problems
            continue
        sweep = document.data.get("sweep")
        if isinstance(sweep, dict):
            for swept in [s for s in sweep if s == key or s.startswith(f"{key}.")]:
                del sweep[swept]
    return document, problems + _lost(document, overrides)


def _lost(document: Document, overrides: Sequence[str]) -> list[str]:
    """Overrides of which a sweep would leave nothing: it sets all of the section around them."""
    sweep = document.data.get("sweep")
    keys = [override.partition("=")[0].strip() for override in overrides]
    return [
        f"--set {key}: the sweep sets all of {swept} at every point; "
        f"give sweep.{swept} the values that are meant, or set {swept} itself"
        for key in dict.fromkeys(keys)
        for swept in (sweep if isinstance(sweep, dict) else ())
        if key.startswith(f"{swept}.")
    ]
