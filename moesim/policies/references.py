"""References: policies that a scenario names by where their class is, not by a registered name.

    cache: {policy: policies/mine.py:Mine}      # a file; its path starts at the scenario's folder
    cache: {policy: package.module:Mine}        # a module that Python can import

The class is an ordinary policy, and passes the same checks as a registered one. Its source counts
in the fingerprint of a run (`moesim.policies.sources`). Naming a file runs it, as an import does. A
file may import installed packages. It cannot import files beside it: code of several files is a
package, whose policies are named by module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from moesim.config.suggest import suggest
from moesim.errors import MoesimError, UsageError
from moesim.files import sha256
from moesim.inputs import copy_of
from moesim.policies.blame import CAUGHT, is_foreign, one_line
from moesim.policies.sources import note_loaded

__all__ = ["is_reference", "load_reference", "referred_class", "referred_file", "with_file"]

_ENDING: Final = ".py"
_loaded: dict[str, type[Any]] = {}
"""Each loaded class, by its reference with an absolute path."""
_hashes: dict[str, str] = {}
"""The hash of each loaded file, by the absolute path that it was read at."""


def is_reference(name: str) -> bool:
    """Return whether a policy's name says where its class is."""
    return ":" in name or name.endswith(_ENDING)


def referred_file(name: str) -> str | None:
    """Return the path in a reference; None for a registered name or a module's."""
    place = _split(name)[0]
    return place if place.endswith(_ENDING) else None


def referred_class(name: str) -> str:
    """Return the name of the class in a reference; empty where there is none."""
    return _split(name)[1]


def with_file(name: str, file: str) -> str:
    """Return a reference with another path."""
    named = referred_class(name)
    return f"{file}:{named}" if named else file


def _split(name: str) -> tuple[str, str]:
    if name.endswith(_ENDING):  # also `C:\\mine.py`, whose colon is not ours
        return name, ""
    place, _, named = name.rpartition(":")
    return place, named.strip()


def load_reference(name: str) -> type[Any]:
    """Return the class that a reference names. A relative path starts at the working directory.

    The class gets the attribute `name`, its own name, if it was not registered under another.

    Raises:
        UsageError: there is no such file, module or class, or its code raises an error.
    """
    file = referred_file(name)
    if file is not None:
        file = os.path.abspath(os.path.expanduser(file))
        name = with_file(name, file)
        _check_unchanged(copy_of(file))
    if name not in _loaded:
        place, named = _split(name)
        module = (
            _module_named(place, name) if file is None else _module_of_file(Path(copy_of(file)))
        )
        policy = _class_in(module, named, place)
        if is_foreign(policy) and issubclass(policy, _base()):
            _prepare(policy, named, module)
        _loaded[name] = policy
    return _loaded[name]


def _base() -> type[Any]:
    from moesim.policies.base import Policy  # which imports the registry

    return Policy


def _prepare(policy: type[Any], named: str, module: ModuleType) -> None:
    """Do for a class what registering it would do. Raise UsageError for an abstract class."""
    if lacking := sorted(getattr(policy, "__abstractmethods__", ())):
        raise UsageError(f"class {named!r} lacks the method {' and '.join(lacking)}")
    if "name" not in vars(policy):  # a subclass must not answer to the name of its base
        policy.name = named
    note_loaded(policy, module.__name__)


def _check_unchanged(file: str) -> None:
    """Raise UsageError if a loaded file is not as it was: its code is not the code that runs."""
    if file in _hashes and os.path.isfile(file) and sha256(Path(file)) != _hashes[file]:
        raise UsageError(f"{file} has changed since it was loaded; start Python again")


def _class_in(module: ModuleType, named: str, place: str) -> type[Any]:
    """Return a class of a module. Raise UsageError where it has none of this name."""
    shown = os.path.basename(place)
    classes = sorted(
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    )
    if not named:
        example = classes[0] if classes else "MyPolicy"
        raise UsageError(f"{shown} needs the name of a class; write {shown}:{example}")
    found = getattr(module, named, None)
    if found is None:
        hint = suggest(named, classes, rest="its classes are") if classes else ""
        raise UsageError(f"{shown} has no class {named!r}{hint}")
    if not isinstance(found, type):
        raise UsageError(f"{named!r} of {shown} is {found!r:.60}, not a class")
    if not is_foreign(found) and "name" not in vars(found):
        raise UsageError(f"{named!r} of {shown} is a base class of moesim, not a policy")
    return found


class _Uncached(SourceFileLoader):
    """A loader that compiles the source each time.

    Bytecode in a cache counts as current if size and time to the second agree. A script that edits
    a policy and runs it again can produce both.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _module_of_file(file: Path) -> ModuleType:
    """Return a new module with the code of a file. Raise UsageError where it cannot be loaded."""
    if not file.is_file():
        raise UsageError(f"there is no file {str(file)!r}")
    # By content, not by path: a fingerprint must not depend on the folder. The stem alone could be
    # the name of another module.
    stem = re.sub(r"\W", "_", file.stem)
    try:
        digest = sha256(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    name = f"{stem}_{digest[:16]}"
    _hashes[str(file)] = digest
    if name in sys.modules:
        return sys.modules[name]
    loader = _Uncached(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None  # there is a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module here
    try:
        loader.exec_module(module)
    except CAUGHT as error:
        del sys.modules[name]
        raise UsageError(f"{file.name} cannot be loaded: {_reason(error)}") from None
    return module


def _module_named(place: str, name: str) -> ModuleType:
    """Return an importable module. Raise UsageError where it cannot be imported."""
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(
            f"{name!r} is no place of a policy; write path/to/file.py:MyPolicy, or "
            "package.module:MyPolicy"
        )
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise UsageError(f"{place} cannot be loaded: {_reason(error)}") from None
        raise UsageError(
            f"there is no module {place!r} that Python can import; install its package, or name "
            "a file, like path/to/file.py:MyPolicy"
        ) from None
    except CAUGHT as error:
        raise UsageError(f"{place} cannot be loaded: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return what was raised and where, in one line."""
    if isinstance(error, MoesimError):
        return str(error)
    if isinstance(error, SyntaxError):  # its own line is not among the frames
        where = f" ({os.path.basename(error.filename or '')}:{error.lineno})"
        return f"{type(error).__name__}: {error.msg}{where}"
    return one_line(error)
