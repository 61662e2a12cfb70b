"""What a policy of another package was made from, as one hash.

A run that is there already is used again only if it was made from the same things, and the source
of a policy is one of them. Two kinds of modules count, each with the whole top-level package that
it lives in:

- those of the class and of its bases: every file, by content;
- those that these import, anywhere in their text: by content as well, but a library that an
  installer put there counts by the installer's own record of it.

A module inside a zip archive counts as the whole archive. A policy in no file at all (typed into a
session) equals no other: a run with it is never used again. Modules that are named only at run time
(`importlib.import_module(name)`) and files that a policy opens are not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from uuid import uuid4

from moesim.errors import UsageError
from moesim.files import sha256

_OURS = __name__.partition(".")[0]
_loaded: dict[type, dict[Path, str]] = {}


def note_loaded(policy: type) -> None:
    """Remember the files that a class and its bases have just been loaded from."""
    modules = {name: sys.modules.get(name) for name in _module_names(policy)}
    files = [Path(file) for m in modules.values() if (file := getattr(m, "__file__", None))]
    _loaded[policy] = {file: sha256(file) for file in files if file.is_file()}


def source_hash(policy: type) -> str:
    """SHA-256 of all that a policy of another package was made from.

    Raises `UsageError` if a file has changed since the policy was loaded from it: what would run
    is then no longer what is there.
    """
    for file, before in _loaded.get(policy, {}).items():
        if not file.is_file() or sha256(file) != before:
            name = getattr(policy, "name", policy.__name__)
            raise UsageError(
                f"policy {name!r}: {file} has changed since it was loaded; start Python again"
            )
    text = "\n".join(f"{name} {part}" for name, part in sorted(_parts(policy).items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _module_names(policy: type) -> set[str]:
    """Modules of the class and its bases that are neither moesim's nor Python's."""
    return {m for kind in policy.__mro__ if not _is_settled(_top(m := kind.__module__))}


def _parts(policy: type) -> dict[str, str]:
    """Top-level modules that count, each with its hash."""
    own = {_top(name) for name in _module_names(policy)}
    siblings = {dist for name in own for dist in _distributions(name)}
    parts: dict[str, str] = {}
    todo = sorted(own)
    while todo:
        name = todo.pop()
        if name in parts:
            continue
        files = _files(name)
        library = None
        if name not in own and siblings.isdisjoint(_distributions(name)):
            library = _installed(name, files)
        parts[name] = library or _content(files)
        if library is None:
            todo += [other for file in files for other in _imports(file) if not _is_settled(other)]
    return parts


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_settled(name: str) -> bool:
    """Whether a top-level module is moesim's own or Python's."""
    return name == _OURS or (name in sys.stdlib_module_names and name != "__main__")


def _distributions(name: str) -> Sequence[str]:
    return _all_distributions().get(name, ())


@cache
def _all_distributions() -> dict[str, list[str]]:
    return {name: list(owners) for name, owners in packages_distributions().items()}


def _files(name: str) -> list[Path]:
    """All files of a top-level module; empty where it is in no file."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is None:
        spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
    else:
        origin = getattr(module, "__file__", None) or (spec and spec.origin)
        places = [Path(origin)] if origin else []
    return [file for place in places for file in _files_at(place)]


def _files_at(place: Path) -> Iterator[Path]:
    if place.is_dir():
        for folder, folders, files in os.walk(place):
            folders[:] = sorted(f for f in folders if f != "__pycache__" and not f.startswith("."))
            yield from (Path(folder, name) for name in sorted(files) if not name.endswith(".pyc"))
        return
    # What is inside an archive has a path that goes on after the archive's.
    yield from [path for path in (place, *place.parents) if path.is_file()][:1]


def _content(files: Sequence[Path]) -> str:
    if not files:
        return _NO_FILE
    root = os.path.commonpath([file.parent for file in files])
    return ",".join(f"{file.relative_to(root).as_posix()}={sha256(file)}" for file in files)


_NO_FILE = f"in no file, process {uuid4()}"


def _imports(file: Path) -> set[str]:
    """Top-level modules that a Python file imports, whether at once or later."""
    if file.suffix != ".py":
        return set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(_top(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(_top(node.module))
    return names


def _installed(name: str, files: Sequence[Path]) -> str | None:
    """How an installed library counts; None for what no installer put where it is."""
    owners = [distribution(owner) for owner in _distributions(name)]
    if not owners or not all(_is_inside(file, owners) for file in files[:1]):
        return None if files else "absent"
    return " ".join(sorted(f"{dist.name}=={dist.version} {_record(dist)}" for dist in owners))


def _is_inside(file: Path, owners: Sequence[Distribution]) -> bool:
    """Whether a file lies where an owner was installed, and not in a folder that it links to."""
    return any(file.is_relative_to(str(dist.locate_file(""))) for dist in owners)


def _record(dist: Distribution) -> str:
    """Hash of the installer's record, less what differs between two places of installation."""
    lines = (dist.read_text("RECORD") or "").splitlines()
    kept = sorted(
        line
        for line in lines
        if not line.startswith("..") and ".dist-info/" not in line and ".pyc," not in line
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
