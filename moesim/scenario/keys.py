"""The keys of a scenario: their paths, their shorthands, and which of them hold file paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from moesim.config.fields import Quantity
from moesim.config.markers import PathTo, Short, marked
from moesim.config.yaml_document import KeyPath
from moesim.policies.references import referred_file, with_file
from moesim.policies.registry import path_options
from moesim.scenario.policies import OptionsOf, PolicyOf

__all__ = ["key_path", "map_paths", "quantities", "shorthands"]


def key_path(key: str) -> KeyPath:
    """Return a dotted key as a path: `"cache.policy"` is `("cache", "policy")`.

    `sweep.cache.policy` has two parts only, because the keys of `sweep` are dotted themselves.
    """
    first, dot, rest = key.partition(".")
    if first == "sweep" and dot:
        return (first, rest)
    return tuple(key.split("."))


@cache  # markers never change, and every point of a sweep needs them
def shorthands(model: type[BaseModel]) -> Mapping[KeyPath, str]:
    """Return the key that one word stands for, for each section that may be one word."""
    return {path: short.key for path, short in marked(model, Short)}


@cache
def quantities(model: type[BaseModel]) -> Mapping[KeyPath, Quantity]:
    """Return the marker of each field that holds a size, a duration or a rate."""
    return dict(marked(model, Quantity))


@cache
def _paths(model: type[BaseModel]) -> Mapping[KeyPath, PathTo]:
    return dict(marked(model, PathTo))


@cache
def _policies(model: type[BaseModel]) -> frozenset[KeyPath]:
    return frozenset(path for path, _ in marked(model, PolicyOf))


@cache
def _families(model: type[BaseModel]) -> Mapping[KeyPath, str]:
    return {path: options.family for path, options in marked(model, OptionsOf)}


def map_paths(
    model: type[BaseModel],
    key: KeyPath,
    value: Any,
    change: Callable[[KeyPath, str], str],
    policy: str | None = None,
) -> Any:
    """Return the plain data `value` of `key` with every path in it replaced.

    `change(key, path)` returns the replacement. Of a reference to a policy, the file is a path. An
    option of a policy is a path where the policy types it `Path`. Without `policy`, an option is a
    path if any policy of the family says so.
    """
    if key[:1] == ("sweep",) and len(key) == 2:
        # A value that is no list is a mistake, which the schema reports later.
        swept = value if isinstance(value, list) else []
        return [map_paths(model, key_path(str(key[1])), item, change) for item in swept] or value
    if isinstance(value, dict):
        policy = value.get("policy", policy)
        return {k: map_paths(model, (*key, k), v, change, policy) for k, v in value.items()}
    if not isinstance(value, str):
        return value
    if key in shorthands(model):  # the text is the value of the section's main key
        key = (*key, shorthands(model)[key])
    if key in _policies(model):  # of a reference, only the file is a path
        file = referred_file(value)
        return value if file is None else with_file(value, change(key, file))
    marker, family = _paths(model).get(key), _families(model).get(key[:-1])
    # The schema types no option; the policy's own class does.
    of_policy = family is not None and key[-1] in path_options(family, policy)
    return change(key, value) if of_policy or (marker and marker.is_path(value)) else value
