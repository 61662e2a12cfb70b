"""A YAML document: plain data, and the place in the file of each key and value.

Scenarios and hardware profiles are such documents. Overrides and sweeps change copies of a
document, so that the messages of later checks can say where each value was set.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from moesim.config.other_files import instead_of
from moesim.config.yaml_nodes import (
    MAX_DEPTH,
    MAX_VALUES,
    TOO_LARGE,
    Dumper,
    KeyPath,
    Reader,
    dotted,
)
from moesim.errors import ScenarioError, shown
from moesim.inputs import read_bytes

__all__ = ["Document", "KeyPath", "dotted", "dump_document", "load_document", "plain_document"]

# A file of this size is read in seconds, and no real scenario is as large.
_MAX_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Document:
    """Plain data (`dict`, `list`, `str`, `int`, `float`, `bool`, None) and its places in the file.

    `places[path]` is the `file:line:column` of the value at `path`, `key_places[path]` that of
    its key. A value that an override set has `--set key` as its place.
    """

    file: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    key_places: dict[KeyPath, str] = field(default_factory=dict)
    has_lines: bool = True
    """False for data from Python, where `file` alone is the place."""

    def place(self, path: KeyPath, *, key: bool = False) -> str:
        """Return the place of the value or `key` at `path`, else of the nearest one around it."""
        if key and path in self.key_places:
            return self.key_places[path]
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.file}:1:1" if self.has_lines else self.file

    def at(self, path: KeyPath) -> Any:
        """Return the value at `path`; None where there is none."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (LookupError, TypeError):
                return None
        return value

    def with_value(
        self, path: KeyPath, value: Any, place: str, shorthands: Mapping[KeyPath, str]
    ) -> Document:
        """Return a copy with `value` at `path`, whose place is `place`.

        `shorthands` says which scalars stand for a mapping: with `{("hardware",): "profile"}`,
        setting `hardware.vram` on `hardware: t4` makes `hardware: {profile: t4, vram: ...}`.

        Raises:
            ScenarioError: a part of `path` before the last is a value, not a mapping.
        """
        changed = copy.deepcopy(self)
        here = changed.data
        for depth in range(1, len(path)):
            prefix = path[:depth]
            inner = here.get(str(path[depth - 1]))
            if not isinstance(inner, dict):
                if inner is None:
                    inner = {}
                elif prefix in shorthands and not isinstance(inner, list):
                    short = shorthands[prefix]
                    inner = {short: inner}
                    changed.places[(*prefix, short)] = changed.place(prefix)
                else:
                    raise ScenarioError(
                        [
                            f"{place}: {dotted(path)}: {dotted(prefix)} is {inner!r}, "
                            "which has no keys to set"
                        ]
                    )
                here[str(path[depth - 1])] = inner
                changed.places[prefix] = place
            here = inner
        here[str(path[-1])] = copy.deepcopy(value)
        # Places inside the old value would be wrong for the new one.
        for places in (changed.places, changed.key_places):
            for inside in [other for other in places if other[: len(path)] == path]:
                del places[inside]
        changed.places[path] = changed.key_places[path] = place
        return changed

    def without(self, path: KeyPath) -> Document:
        """Return a copy without the value at `path`, or without the nearest key around it.

        For an item of a list, the whole list is removed: otherwise later items would change their
        numbers, and with them their places.
        """
        while path and (self.at(path[:-1]) is None or not _is_in(path[-1], self.at(path[:-1]))):
            path = path[:-1]
        if path:
            copied = copy.deepcopy(self)
            del copied.at(path[:-1])[path[-1]]
            return copied
        return self


def _is_in(key: str | int, mapping: object) -> bool:
    return isinstance(mapping, dict) and key in mapping


def load_document(path: str | os.PathLike[str]) -> Document:
    """Return the document in a YAML file, whose root must be a mapping.

    Raises:
        ScenarioError: the file cannot be read, is empty, is no YAML or repeats a key.
    """
    file = os.fspath(path)
    try:
        raw = read_bytes(path, _MAX_BYTES)
        text = raw.decode("utf-8-sig")  # editors on Windows may put a byte order mark first
    except UnicodeDecodeError as error:
        remedy = "it is no text file, or needs to be saved as UTF-8"
        raise ScenarioError([f"{file}: not UTF-8 text (byte {error.start}); {remedy}"]) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = instead_of(file)
        raise ScenarioError([f"{file}: cannot be read: {reason}{hint}"]) from error
    return parse_document(text, file)


def plain_document(data: Mapping[str, Any], name: str) -> Document:
    """Return a document that holds a copy of data from Python; `name` stands for its file.

    Raises:
        ScenarioError: a key is no text, YAML has no such value, or there are too many values.
    """
    return Document(name, _Copier(name).mapping(data, ()), has_lines=False)


def dump_document(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML; `parse_document` reads it as equal data."""
    return yaml.dump(dict(data), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=98)


def parse_document(text: str, file: str) -> Document:
    """Return the document in `text`; `file` names it in messages. Raise ScenarioError."""
    reader = Reader(file)
    value = reader.read(text)
    if reader.problems:
        raise ScenarioError(reader.problems)
    if value is None:
        raise ScenarioError([f"{file}:1:1: the file is empty; it must hold keys and values"])
    if not isinstance(value, dict):
        raise ScenarioError(
            [f"{file}:1:1: must hold keys and values (`key: value`), not {_kind_of(value)}"]
        )
    return Document(file, value, reader.places, reader.key_places)


def parse_value(text: str, place: str) -> Any:
    """Return the value in a piece of YAML, like that of `--set a.b=`. Raise ScenarioError.

    `place` is the place of all mistakes in it.
    """
    reader = Reader(place, whole=False)
    value = reader.read(text)
    if reader.problems:
        raise ScenarioError(reader.problems)
    return value


class _Copier:
    """A copy of data from Python, within the same limits as a file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_values = 0

    def mapping(self, data: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        for key in data:
            if not isinstance(key, str):
                raise self.problem(path, f"the key {shown(key)} must be text")
        return {key: self.value(value, (*path, key)) for key, value in data.items()}

    def value(self, value: Any, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self.problem(path[:3], TOO_LARGE)
        if isinstance(value, Mapping):
            return self.mapping(value, path)
        if isinstance(value, list | tuple | range):
            return [self.value(item, (*path, place)) for place, item in enumerate(value)]
        if value is not None and not isinstance(value, str | int | float):
            raise self.problem(
                path, f"{shown(value)} must be text, a number, true, false, null, a list or a dict"
            )
        # Python refuses to print integers of more than some thousand digits.
        if isinstance(value, int) and value.bit_length() > 1000:
            raise self.problem(path, "the number is too large")
        return value

    def problem(self, path: KeyPath, message: str) -> ScenarioError:
        key = f"{dotted(path)}: " if path else ""
        return ScenarioError([f"{self.name}: {key}{message}"])


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {repr(value)[:60]}"
