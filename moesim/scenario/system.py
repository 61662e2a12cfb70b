"""The key `system` of a scenario: the settings of a preset, merged below the scenario's own keys.

    system: fiddler
    cache: {scope: per_layer}      # this key of the preset is overridden, its other keys count

A key that the scenario sets counts more than the preset's value for it. Options belong to their
policy: where the scenario names another policy, the preset's options of the section are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moesim.config.yaml_document import Document, KeyPath
from moesim.errors import UsageError
from moesim.systems.preset import Preset, load_preset

__all__ = ["SYSTEM", "with_system"]

SYSTEM = ("system",)


def with_system(document: Document, shorthands: Mapping[KeyPath, str]) -> Document:
    """Return the document with the settings of its system; itself where nothing is added.

    The place of a setting is that of the key `system`. A system that does not exist adds nothing.
    """
    name = document.data.get("system")
    if not isinstance(name, str):
        return document
    try:
        preset = load_preset(name)
    except UsageError:
        return document  # the field's own check reports it
    place = document.place(SYSTEM)
    for path, value in list(_missing(document.data, preset, shorthands)):
        document = document.with_value(path, value, place, shorthands)
    return document


def _missing(
    data: Mapping[str, Any], preset: Preset, shorthands: Mapping[KeyPath, str]
) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the path and the value of each setting that is to be added to a scenario's data."""
    for key, setting in preset.sets.items():
        path = tuple(key.split("."))
        section = _section(data, path[0], shorthands)
        if section is None or _is_set(section, path[1:]):
            continue
        if path[1] == "options" and not _same_policy(section, preset, path[0]):
            continue
        yield path, setting.value


def _section(
    data: Mapping[str, Any], name: str, shorthands: Mapping[KeyPath, str]
) -> Mapping[str, Any] | None:
    """Return a section as a mapping; None where it holds something else, which is refused later."""
    section = data.get(name)
    if section is None:
        # An explicit null is a mistake, which must stay visible.
        return None if name in data else {}
    if isinstance(section, str) and (name,) in shorthands:
        return {shorthands[(name,)]: section}
    return section if isinstance(section, Mapping) else None


def _is_set(section: Mapping[str, Any], path: KeyPath) -> bool:
    """Return whether a section has the key at `path`, or something else where a mapping must be."""
    here: Any = section
    for part in path:
        if not isinstance(here, Mapping):
            return True
        if part not in here:
            return False
        here = here[part]
    return True


def _same_policy(section: Mapping[str, Any], preset: Preset, name: str) -> bool:
    """Return whether the scenario leaves the policy of a section as the preset has it."""
    given = section.get("policy")
    ours = preset.sets[f"{name}.policy"].value
    return given is None or str(given).replace("-", "_") == ours
