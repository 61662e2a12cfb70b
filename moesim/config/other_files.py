"""What to try where a path names no readable YAML file: the files that were probably meant."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from moesim.config.suggest import near_names

__all__ = ["instead_of"]

_ENDINGS: Final = (".yaml", ".yml")
_MOST_READ: Final = 10_000  # names of one folder
_MOST_NAMED: Final = 5
_ALIKE: Final = 0.6  # the least similarity of a name that is suggested
_SCENARIOS: Final = "scenarios"  # where a clone of moesim keeps its own
_KNOWN: Final = {
    "trace.json": "it holds a trace, which a scenario names with `trace:`",
    "manifest.json": "it holds a run, which `moesim report` reads; its scenario.yaml can be run",
}


def instead_of(file: str) -> str:
    """Return the end of a message about `file`, which cannot be read: what to try instead."""
    if os.path.isdir(file):
        return _in_folder(file)
    if os.path.lexists(file):
        return ""
    folder, name = os.path.split(file)
    here = _yaml_in(folder or os.curdir)
    # Without endings, which would make all names alike.
    stems = {os.path.splitext(each)[0]: each for each in here}
    near = near_names(os.path.splitext(name)[0], stems, 1, _ALIKE)
    if near:
        return f"; did you mean {os.path.join(folder, stems[near[0]])}?"
    others = _listed(folder, here) or _listed(_SCENARIOS, _yaml_in(_SCENARIOS))
    if others:
        return f"; there are {others}"
    return f"; the working directory is {os.getcwd()}; `moesim init` writes a first scenario"


def _in_folder(folder: str) -> str:
    for name, meaning in _KNOWN.items():
        if os.path.exists(os.path.join(folder, name)):
            return f"; {meaning}"
    inside = _listed(folder, _yaml_in(folder))
    return f"; name a file in it: {inside}" if inside else "; it holds no .yaml file"


def _yaml_in(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)[:_MOST_READ]
    except OSError:  # no such folder, or no right to read it
        return []
    return sorted(name for name in names if name.endswith(_ENDINGS))


def _listed(folder: str, names: Iterable[str]) -> str:
    paths = [os.path.join(folder, name) for name in names]
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(paths[:_MOST_NAMED]) + more
