"""The key `system` of a scenario: the settings of a preset, merged below the scenario's own keys.

    system: fiddler
    cache: {scope: per_layer}      # this key of the preset is overridden, its other keys count

A key that the scenario sets counts more than the preset's value for it. Options belong to their
policy: where the scenario names another policy, the preset's options of the section are left out.
A setting may belong to further keys (`Setting.beside`), like the part of a trace that is served to
the policy that learns from the other part.
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
        if path[1] == "options" and not _as_preset(data, preset, f"{path[0]}.policy", shorthands):
            continue
        if all(_as_preset(data, preset, other, shorthands) for other in setting.beside):
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


def _as_preset(
    data: Mapping[str, Any], preset: Preset, key: str, shorthands: Mapping[KeyPath, str]
) -> bool:
    """Return whether the scenario leaves a key as the preset has it: unset, or of equal value."""
    section, *path = key.split(".")
    here: Any = _section(data, section, shorthands)
    for part in path:
        if not isinstance(here, Mapping) or part not in here:
            return True
        here = here[part]
    if key not in preset.sets:
        return here is None
    ours = preset.sets[key].value
    if path == ["policy"]:  # `-` and `_` are the same in names
        return here is None or str(here).replace("-", "_") == ours
    return bool(here == ours)
