"""The registry: policies by family and name, from moesim and from installed packages.

A policy is a class with a family, a name and typed options:

    @register("eviction", "lru")
    class LRU(Eviction): ...

An option typed `Path` (or `Path | None`) holds a path. A relative path starts at the scenario's
folder, and the path must exist. The file, or the header of a trace folder, is part of a run's
fingerprint. A policy that learns from other files as well, or from a trace, says so in
`Policy.inputs`.

A name with a colon says where a class is (`moesim.policies.references`): such a class needs no
registration.

Other packages add policies through the entry-point group `moesim.policies`. Each entry point names
a module that registers its classes when it is imported. A package that cannot be imported is left
out, and named where a policy is not found.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from moesim.config.suggest import suggest
from moesim.errors import PolicyViolation, UsageError
from moesim.policies.blame import CAUGHT, blamed, is_foreign
from moesim.policies.option_mistakes import Where, mistakes_in
from moesim.policies.references import is_reference, load_reference
from moesim.policies.sources import note_loaded

FAMILIES = ("eviction", "prefetch", "batching", "placement")
GROUP = "moesim.policies"

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a policy that has none."""


class _NameTaken(UsageError):
    """Two policies of one family have the same name."""

    def __init__(self, family: str, name: str) -> None:
        self.family = family
        self.taken = name
        super().__init__(family, name)

    def __str__(self) -> str:
        return f"{self.family} policy {self.taken!r} is registered twice; rename one of the two"


_broken: dict[str, str] = {}
"""Why a package cannot be loaded, by entry point. Its policies are missing; others work."""
_ambiguous: dict[tuple[str, str], str] = {}
"""Why a name cannot be used: a package wanted to register it again."""
_registry: dict[tuple[str, str], type] = {}
_aliases: dict[tuple[str, str], str] = {}


def register(family: str, name: str, *aliases: str) -> Callable[[Class], Class]:
    """Return a class decorator that registers a class and returns it unchanged.

    `-` and `_` are the same in names. The decorator sets the class attribute `name`. It raises
    `UsageError` if a name or alias is taken.
    """
    _check_family(family)
    caller: str | None = sys._getframe(1).f_globals.get("__name__")
    main, *others = (spelling.replace("-", "_") for spelling in (name, *aliases))

    def add(policy: Class) -> Class:
        taken = {spelling for owner, spelling in (*_registry, *_aliases) if owner == family}
        for spelling in (main, *others):
            if spelling in taken:
                raise _NameTaken(family, spelling)
            taken.add(spelling)
        _registry[family, main] = policy
        _aliases.update({(family, other): main for other in others})
        policy.name = main  # type: ignore[attr-defined]
        if is_foreign(policy) and isinstance(policy, type):
            note_loaded(policy, caller)
        return policy

    return add


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise UsageError(f"policy family {family!r} is none of {', '.join(FAMILIES)}")


@cache
def _load_all() -> None:
    """Import every module that registers policies, once per process."""
    from importlib.metadata import entry_points  # slow to import, and not needed by all commands

    for family in FAMILIES:
        importlib.import_module(f"moesim.policies.{family}")
    for point in entry_points(group=GROUP):
        before = dict(_registry), dict(_aliases)
        try:
            with _no_bytecode_written():
                point.load()
        except CAUGHT as error:
            # Policies that were registered before the error are not used: they may be incomplete.
            _restore(_registry, before[0])
            _restore(_aliases, before[1])
            reason = str(error) if isinstance(error, UsageError) else repr(error)
            where = f"policy package {point.value!r} (entry point {point.name!r})"
            _broken[point.name] = f"{where} cannot be loaded: {reason}"
            if isinstance(error, _NameTaken):
                _ambiguous[error.family, error.taken] = _broken[point.name]


@contextmanager
def _no_bytecode_written() -> Iterator[None]:
    """Stop Python from caching the bytecode of modules that the block imports.

    Python uses cached bytecode again if the source has the same size and time to the second. A
    script that edits a policy and runs it again can produce both.
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _restore(table: dict[Any, Any], before: dict[Any, Any]) -> None:
    table.clear()
    table.update(before)


def broken_packages() -> list[str]:
    """Return a message for each installed package whose policies cannot be loaded."""
    _load_all()
    return list(_broken.values())


def names(family: str) -> list[str]:
    """Return the registered names of a family, sorted, without aliases."""
    _load_all()
    return sorted(name for owner, name in _registry if owner == family)


def find(family: str, name: str) -> type[Any]:
    """Return the class registered under a name or alias (`-` and `_` are the same).

    A reference, like `file.py:Class`, gives the class at that place.

    Raise `UsageError` with similar names if there is none, or with the packages that cannot be
    loaded, which may be where the policy is.
    """
    _check_family(family)
    _load_all()
    if is_reference(name):
        return _referred(family, name)
    key = (family, name.replace("-", "_"))
    key = (family, _aliases.get(key, key[1]))
    if key in _ambiguous:
        raise UsageError(_ambiguous[key])
    if key not in _registry:
        if _broken:  # the name is probably one of theirs
            raise UsageError("; ".join([f"unknown {family} policy {name!r}", *_broken.values()]))
        hint = suggest(name, names(family), rest="there are")
        hint += " (see `moesim list policies`)"
        raise UsageError(f"unknown {family} policy {name!r}{hint}")
    return _registry[key]


def _referred(family: str, name: str) -> type[Any]:
    """Return the class that a reference names. Names that its code registers are dropped again.

    Raise `UsageError` where another policy has its name, by which results would show it.
    """
    before = dict(_registry), dict(_aliases)
    try:
        with _no_bytecode_written():
            policy = load_reference(name)
    finally:
        _restore(_registry, before[0])
        _restore(_aliases, before[1])
    if _registry.get((family, getattr(policy, "name", "")), policy) is not policy:
        raise UsageError(
            f"{policy.__name__!r} is the name of a registered policy; rename the class"
        )
    return policy


def parse_options(policy: type[Any], options: Mapping[str, Any]) -> Any:
    """Build a policy's `Options` from plain values.

    Raises:
        UsageError: options are wrong; the message names all of them.
        PolicyViolation: the `Options` class itself is no dataclass or cannot be used.
    """
    parsed, mistakes = _parse(policy, options)
    texts = [text for _, text in _unknown(policy, options)]
    texts += [_about(policy, where) + text for where, text in mistakes]
    if texts:
        raise UsageError("\n".join(texts))
    return parsed


def option_mistakes(policy: type[Any], options: Mapping[str, Any]) -> list[tuple[Where, str]]:
    """Return every wrong option: its path inside `options`, and what is wrong with it."""
    mistakes = _parse(policy, options)[1]
    # Where there is a path, the caller names the option.
    texts = [(where, text if where else _about(policy) + text) for where, text in mistakes]
    return [*_unknown(policy, options), *texts]


def _about(policy: type[Any], where: Where = ()) -> str:
    """Return the start of a message about an option, or about all options of a policy."""
    option = f", option {'.'.join(map(str, where))}" if where else ""
    return f"policy {policy.name!r}{option}: "


def path_options(family: str, policy: str | None = None) -> frozenset[str]:
    """Return the names of the options that hold a path, which are typed `Path` or `Path | None`.

    Without a `policy`, return those of all policies of the family.
    """
    try:
        policies = [find(family, name) for name in ([policy] if policy else names(family))]
    except UsageError:
        return frozenset()
    return frozenset().union(*map(_paths_in, policies))


def _paths_in(policy: type[Any]) -> frozenset[str]:
    with blamed(policy, "Options"):
        hints = get_type_hints(_options_of(policy))
    return frozenset(name for name, hint in hints.items() if hint is Path or Path in get_args(hint))


def _options_of(policy: type[Any]) -> type[Any]:
    """Return the dataclass of a policy's options. Raise PolicyViolation where it is none."""
    kind = getattr(policy, "Options", NoOptions)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise PolicyViolation(policy.name, "Options", f"is {kind!r:.60}; it must be a dataclass")
    return kind


def _unknown(policy: type[Any], options: Mapping[str, Any]) -> list[tuple[Where, str]]:
    """Return the path and message of each option that the policy does not have."""
    known = [field.name for field in fields(_options_of(policy))]
    return [
        (
            (name,),
            f"policy {policy.name!r} has no option {name!r}"
            f"{suggest(str(name), known, rest='it has:')}",
        )
        for name in options
        if name not in known
    ]


def _parse(policy: type[Any], options: Mapping[str, Any]) -> tuple[Any, list[tuple[Where, str]]]:
    """Return the parsed options without unknown ones, and every mistake as path and message."""
    from pydantic import ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    kind = _options_of(policy)
    option_names = [field.name for field in fields(kind)]
    try:
        # Only from JSON do strict types accept a list as a tuple and a string as a path.
        plain = to_json(
            {name: value for name, value in options.items() if name in option_names},
            inf_nan_mode="constants",
        )
        with blamed(policy, "Options"):
            adapter = _adapter_of(kind)  # type: ignore[arg-type]  # classes are hashable
        return _validated(policy, adapter, plain), []
    except PydanticSerializationError as error:
        return None, [((), f"options: {error}")]
    except ValidationError as error:
        return None, list(mistakes_in(options, error.errors()))


@cache
def _adapter_of(kind: type[Any]) -> Any:
    """Return what parses a dataclass of options; building it takes longer than its use."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _validated(policy: type[Any], adapter: Any, plain: bytes) -> Any:
    """Return options parsed from JSON.

    Pydantic reports a `ValueError` of `__post_init__` as a wrong value. Other errors are faults of
    the policy.
    """
    from pydantic import ValidationError

    try:
        return adapter.validate_json(plain, strict=True)
    except ValidationError:
        raise
    except Exception:
        with blamed(policy, "Options"):
            raise
