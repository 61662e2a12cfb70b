"""Policy sources: one hash of all code that a policy of another package is made from.

A finished run is reused only if nothing it depends on has changed, and that includes the code of
its policies. Two kinds of modules count, each with its whole top-level package:

- the modules of the class and of its base classes, and the module that registers it, by the
  content of every file;
- the modules that these import anywhere in their text, by content as well. An installed library
  counts by the installer's record of it.

A module inside a zip archive counts as the whole archive. A class that is in no file, for example
one typed into a session, gets a hash of its own, so its runs are never reused.

Not covered: modules named only at run time (`importlib.import_module(name)`). Files that a policy
opens count if the policy names them (`Policy.inputs`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from uuid import uuid4

from moesim.errors import UsageError
from moesim.files import sha256

_OURS = __name__.partition(".")[0]
_loaded: dict[type, dict[Path, str]] = {}
"""The hash of each file at the time when it was loaded, for each registered class."""
_registered_in: dict[type, str] = {}
"""The module that registered a class, which may differ from the module that defines it."""


def note_loaded(policy: type, module: str | None = None) -> None:
    """Store the hashes of the files that are loaded now; `module` registers the class."""
    if module is not None:
        _registered_in[policy] = module
    own = {_top(name) for name in _module_names(policy)}
    noted = _loaded.setdefault(policy, {})
    for name, file in _loaded_modules():
        # A policy's own package counts by content even where an installer put it.
        if (_top(name) in own or not _in_library(file)) and file.is_file():
            noted.setdefault(file, sha256(file))


def source_hash(policy: type) -> str:
    """Return the SHA-256 of all code that a policy of another package is made from.

    Raise `UsageError` if a file has changed since the policy was loaded from it. The hash would
    then describe other code than the code that runs.
    """
    parts, counted = _parts(policy)
    if policy in _loaded:
        _check_unchanged(policy, counted)
    text = "\n".join(f"{name} {part}" for name, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_unchanged(policy: type, counted: Collection[Path]) -> None:
    """Raise `UsageError` if a loaded file of a registered class is not as it was.

    `counted` are the files that count by content.
    """
    noted, own = _loaded[policy], {_top(name) for name in _module_names(policy)}
    for name, file in _loaded_modules():
        if _top(name) not in own and file not in counted:
            continue
        now = sha256(file) if file.is_file() else None
        if now != noted.get(file, now):
            raise UsageError(
                f"policy {getattr(policy, 'name', policy.__name__)!r}: {file} has changed since it "
                "was loaded; start Python again"
            )
    # A function may import a file later. So its text is noted now, before it is loaded.
    noted.update({file: sha256(file) for file in counted if file.suffix == ".py"})


def _loaded_modules() -> list[tuple[str, Path]]:
    """Return the name and file of each loaded module that is neither moesim's nor Python's."""
    modules = [
        (name, module) for name, module in sys.modules.items() if not _is_settled(_top(name))
    ]
    # Not `getattr`, which makes a lazy module load itself.
    files = [(name, getattr(module, "__dict__", {}).get("__file__")) for name, module in modules]
    return [(name, Path(file)) for name, file in files if isinstance(file, str)]


def _in_library(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _module_names(policy: type) -> set[str]:
    """Return the modules of the class and its bases that are neither moesim's nor Python's.

    The module that registers the class is one of them.
    """
    names = {kind.__module__ for kind in policy.__mro__}
    names |= {_registered_in.get(policy, policy.__module__)}
    if "__main__" in names:
        # `python -m package.script` runs a module of a package under this name.
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        names |= {spec.name} if spec is not None else set()
    return {name for name in names if not _is_settled(_top(name))}


def _parts(policy: type) -> tuple[dict[str, str], set[Path]]:
    """Return the hash of each top-level module that counts, and the files counted by content."""
    own = {_top(name) for name in _module_names(policy)}
    # Modules of the same distribution count by content: an edited checkout keeps its old record.
    siblings = {dist for name in own for dist in _distributions(name)}
    parts: dict[str, str] = {}
    counted: set[Path] = set()
    todo = sorted(own)  # a work list, because imports can form cycles
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
            counted.update(files)
            todo += [other for file in files for other in _imports(file) if not _is_settled(other)]
    return parts, counted


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_settled(name: str) -> bool:
    """Return whether a top-level module is moesim's own or Python's.

    Neither belongs to a policy; a run's fingerprint has a hash of moesim's code of its own.
    """
    return name == _OURS or (name in sys.stdlib_module_names and name != "__main__")


def _distributions(name: str) -> Sequence[str]:
    return _all_distributions().get(name, ())


@cache
def _all_distributions() -> dict[str, list[str]]:
    return {name: list(owners) for name, owners in packages_distributions().items()}


def _files(name: str) -> list[Path]:
    """Return all files of a top-level module, or none if it is in no file."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is None:  # imported only inside a function that has not run yet
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
    # A file in an archive has a path below the archive's: take the first parent that is a file.
    yield from [path for path in (place, *place.parents) if path.is_file()][:1]


def _content(files: Sequence[Path]) -> str:
    if not files:
        return _NO_FILE
    root = os.path.commonpath([file.parent for file in files])
    return ",".join(f"{file.relative_to(root).as_posix()}={sha256(file)}" for file in files)


_NO_FILE = f"in no file, process {uuid4()}"


def _imports(file: Path) -> set[str]:
    """Return the top-level modules that a Python file imports, also inside functions."""
    if file.suffix != ".py":
        return set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a template, say, or a file for another Python version
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(_top(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(_top(node.module))
        elif isinstance(node, ast.Call):
            names.update(_imported_by_call(node))
    return names


def _imported_by_call(call: ast.Call) -> Iterator[str]:
    """Yield the module that `import_module("name")` or `__import__("name")` imports."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called in ("import_module", "__import__") and call.args:
        name = getattr(call.args[0], "value", None)
        if isinstance(name, str) and name and not name.startswith("."):
            yield _top(name)


def _installed(name: str, files: Sequence[Path]) -> str | None:
    """Return what an installed library counts by; None if no installer put it there."""
    owners = [distribution(owner) for owner in _distributions(name)]
    if not owners or not all(_is_inside(file, owners) for file in files[:1]):
        return None if files else "absent"
    return " ".join(sorted(f"{dist.name}=={dist.version} {_record(dist)}" for dist in owners))


def _is_inside(file: Path, owners: Sequence[Distribution]) -> bool:
    """Return whether a file lies where one of its owners is installed.

    False for an editable installation, whose record does not change with the code.
    """
    return any(file.is_relative_to(str(dist.locate_file(""))) for dist in owners)


def _record(dist: Distribution) -> str:
    """Return the hash of the installer's record, without what depends on the place or time."""
    lines = (dist.read_text("RECORD") or "").splitlines()
    kept = sorted(
        line
        for line in lines
        if not line.startswith("..") and ".dist-info/" not in line and ".pyc," not in line
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
