"""Where policies are found by name: built-in ones, and those of installed packages.

A policy is a class with a family, a name and typed options:

    @register("eviction", "lru")
    class LRU(Eviction): ...

An option typed `Path` (or `Path | None`) holds a path. It starts at the scenario's folder and must
exist. A file, or the header of a trace folder, is part of a run's fingerprint.

Packages add their own through the entry-point group `moesim.policies`: each entry point names a
module whose import registers its classes.
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
from moesim.policies.sources import note_loaded

FAMILIES = ("eviction", "prefetch", "batching", "placement")
GROUP = "moesim.policies"

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a policy that has none."""


_registry: dict[tuple[str, str], type] = {}
_aliases: dict[tuple[str, str], str] = {}


def register(family: str, name: str, *aliases: str) -> Callable[[Class], Class]:
    """Class decorator: file the class under `family` and `name` (`-` and `_` are the same);
    returns the class itself."""
    _check_family(family)
    filed, *others = (spelling.replace("-", "_") for spelling in (name, *aliases))

    def file(policy: Class) -> Class:
        taken = {spelling for owner, spelling in (*_registry, *_aliases) if owner == family}
        for spelling in (filed, *others):
            if spelling in taken:
                raise UsageError(f"{family} policy {spelling!r} is registered twice")
            taken.add(spelling)
        _registry[family, filed] = policy
        _aliases.update({(family, other): filed for other in others})
        policy.name = filed  # type: ignore[attr-defined]
        if is_foreign(policy) and isinstance(policy, type):
            note_loaded(policy)
        return policy

    return file


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise UsageError(f"policy family {family!r} is none of {', '.join(FAMILIES)}")


@cache
def _load_all() -> None:
    from importlib.metadata import entry_points

    for family in FAMILIES:
        importlib.import_module(f"moesim.policies.{family}")
    for point in entry_points(group=GROUP):
        before = dict(_registry), dict(_aliases)
        try:
            with _no_bytecode_written():
                point.load()
        except CAUGHT as error:
            # Forget what it registered, so that the next try tells the same story.
            _restore(_registry, before[0])
            _restore(_aliases, before[1])
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"policy package {point.value!r} (entry point {point.name!r}) "
                f"cannot be loaded: {error!r}"
            ) from error


@contextmanager
def _no_bytecode_written() -> Iterator[None]:
    """Python takes cached bytecode for current if the source has the same size and the same second.
    A policy edited and run again by a script may well have both, so none is cached here."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _restore(table: dict[Any, Any], kept: dict[Any, Any]) -> None:
    table.clear()
    table.update(kept)


def names(family: str) -> list[str]:
    """The registered names of a family, sorted."""
    _load_all()
    return sorted(name for owner, name in _registry if owner == family)


def find(family: str, name: str) -> type[Any]:
    """The class filed under a name (`-` and `_` are the same). Raises `UsageError` with near
    matches for an unknown name."""
    _check_family(family)
    _load_all()
    key = (family, name.replace("-", "_"))
    key = (family, _aliases.get(key, key[1]))
    if key not in _registry:
        hint = suggest(name, names(family), rest="there are")
        hint += " (see `moesim list policies`)"
        raise UsageError(f"unknown {family} policy {name!r}{hint}")
    return _registry[key]


def parse_options(policy: type[Any], options: Mapping[str, Any]) -> Any:
    """Build a policy's `Options` from plain values.

    Raises:
        UsageError: with all wrong options.
        PolicyViolation: the class of options itself makes no sense.
    """
    parsed, mistakes = _parse(policy, options)
    if mistakes:
        raise UsageError("\n".join(message for _, message in mistakes))
    return parsed


def option_mistakes(
    policy: type[Any], options: Mapping[str, Any]
) -> list[tuple[tuple[str | int, ...], str]]:
    """Return every wrong option: its path inside `options`, and what is wrong with it."""
    return _parse(policy, options)[1]


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
        raise PolicyViolation(policy.name, "Options", f"is {kind!r:.60}, and no dataclass")
    return kind


def _parse(
    policy: type[Any], options: Mapping[str, Any]
) -> tuple[Any, list[tuple[tuple[str | int, ...], str]]]:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    kind = _options_of(policy)
    known = [field.name for field in fields(kind)]
    mistakes: list[tuple[tuple[str | int, ...], str]] = [
        (
            (name,),
            f"policy {policy.name!r} has no option {name!r}"
            f"{suggest(str(name), known, rest='it has:')}",
        )
        for name in options
        if name not in known
    ]
    try:
        # As JSON, since only then do strict types take a list for a tuple and text for a path.
        plain = to_json(
            {name: value for name, value in options.items() if name in known},
            inf_nan_mode="constants",
        )
        with blamed(policy, "Options"):
            adapter = TypeAdapter(kind)
        return _validated(policy, adapter, plain), mistakes
    except PydanticSerializationError as error:
        return None, [*mistakes, ((), f"policy {policy.name!r}, options: {error}")]
    except ValidationError as error:
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            about = f"policy {policy.name!r}{f', option {where}' if where else ''}"
            mistakes.append((item["loc"], f"{about}: {item['msg']} (got {item['input']!r})"))
        return None, mistakes


def _validated(policy: type[Any], adapter: Any, plain: bytes) -> Any:
    """Options of plain values; what `__post_init__` raises beside a `ValueError` is no answer."""
    from pydantic import ValidationError

    try:
        return adapter.validate_json(plain, strict=True)
    except ValidationError:
        raise
    except Exception:
        with blamed(policy, "Options"):
            raise
