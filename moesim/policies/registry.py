"""Where policies are found by name: built-in ones, and those of installed packages.

A policy is a class with a family, a name and typed options:

    @register("eviction", "lru")
    class LRU(Eviction): ...

Packages add their own through the entry-point group `moesim.policies`: each entry point names a
module whose import registers its classes.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

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
        known = names(family)
        near = difflib.get_close_matches(key[1], known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
        raise UsageError(f"unknown {family} policy {name!r}{hint}")
    return _registry[key]


def parse_options(policy: type[Any], options: Mapping[str, Any]) -> Any:
    """Build a policy's `Options` from plain values.

    Raises `UsageError` naming option and rule, `PolicyViolation` for a class of options that makes
    no sense itself.
    """
    kind = getattr(policy, "Options", NoOptions)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise PolicyViolation(policy.name, "Options", f"is {kind!r:.60}, and no dataclass")
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = (
                f"; did you mean {near[0]}?" if near else f"; it has: {', '.join(known) or 'none'}"
            )
            raise UsageError(f"policy {policy.name!r} has no option {name!r}{hint}")
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import PydanticSerializationError, to_json

    try:
        # As JSON, since only then do strict types take a list for a tuple and text for a path.
        plain = to_json(dict(options), inf_nan_mode="constants")
        with blamed(policy, "Options"):
            adapter = TypeAdapter(kind)
        return _validated(policy, adapter, plain)
    except PydanticSerializationError as error:
        raise UsageError(f"policy {policy.name!r}, options: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"policy {policy.name!r}{f', option {where}' if where else ''}: {first['msg']} "
            f"(got {first['input']!r})"
        ) from None


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
