"""What the markers of a schema say of its keys: the shorthands, and which values are paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from moesim.config.markers import PathTo, Short, marked
from moesim.config.yaml_document import KeyPath
from moesim.policies.registry import path_options
from moesim.scenario.policies import OptionsOf

__all__ = ["key_path", "map_paths", "shorthands"]


def key_path(key: str) -> KeyPath:
    """Return `"cache.policy"` as a path; behind `sweep.` the rest is one key."""
    first, dot, rest = key.partition(".")
    if first == "sweep" and dot:
        return (first, rest)
    return tuple(key.split("."))


@cache
def shorthands(model: type[BaseModel]) -> Mapping[KeyPath, str]:
    """Return the key that a word stands for, by the section that may be written as one word."""
    return {path: short.key for path, short in marked(model, Short)}


@cache
def _paths(model: type[BaseModel]) -> Mapping[KeyPath, PathTo]:
    return dict(marked(model, PathTo))


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
    """Return the plain data `value` of `key` with `change(key, path)` for every path in it.

    The options of a policy hold a path where the policy types them `Path`. Where `policy` is not
    known, every policy of the family is asked.
    """
    if key[:1] == ("sweep",) and len(key) == 2:
        swept = value if isinstance(value, list) else []
        return [map_paths(model, key_path(str(key[1])), one, change) for one in swept] or value
    if isinstance(value, dict):
        policy = value.get("policy", policy)
        return {k: map_paths(model, (*key, k), v, change, policy) for k, v in value.items()}
    if not isinstance(value, str):
        return value
    if key in shorthands(model):
        key = (*key, shorthands(model)[key])
    marker, family = _paths(model).get(key), _families(model).get(key[:-1])
    of_policy = family is not None and key[-1] in path_options(family, policy)
    return change(key, value) if of_policy or (marker and marker.is_path(value)) else value
