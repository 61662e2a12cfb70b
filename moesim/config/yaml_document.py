"""A YAML document: plain data, and the place in the file of each key and value.

Scenarios and hardware profiles are YAML. PyYAML parses the text into nodes; this module turns
nodes into data, for three reasons:

- A repeated key is an error. PyYAML silently keeps the last one.
- Scalars follow the core schema of YAML 1.2: `1e3` is a number, `on` and `12:30` are text.
- Each value keeps its `file:line:column`, for the messages of later checks.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from moesim.errors import ScenarioError, shown
from moesim.inputs import read_bytes

__all__ = ["Document", "KeyPath", "dotted", "dump_document", "load_document", "plain_document"]

KeyPath = tuple[str | int, ...]

# Limits that no real scenario reaches. Within them, any file is refused or read in seconds.
_MAX_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 100_000
_MAX_DEPTH: Final = 40
_MAX_PROBLEMS: Final = 100
_MAX_MESSAGE: Final = 300
_TAG: Final = "tag:yaml.org,2002:"
_TOO_LARGE: Final = (
    f"too large or nested too deeply (at most {_MAX_VALUES:,} keys and values, {_MAX_DEPTH} deep)"
)


class _Loader(yaml.SafeLoader):
    """A safe loader that reads the scalars of YAML 1.2's core schema and no others."""

    # Empty: the parent's table holds the scalars of YAML 1.1, such as `on` and `12:30`.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._num_nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node. Raise ComposerError where there are too many, or one is too deep.

        A check afterwards would be too late: a node takes 2 kB and 50 us.
        """
        self._num_nodes += 1
        self._depth += 1
        if self._num_nodes > _MAX_VALUES or self._depth > _MAX_DEPTH + 1:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_LARGE, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which YAML 1.1 or `_Loader` would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # an object that occurs twice is written twice, not as `*id001`


# Tag, pattern and first characters of each kind of scalar; all other plain scalars are text.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


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


def dotted(path: KeyPath) -> str:
    """Return a path as text: `("a", "b", 2)` is `a.b[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


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
        raise ScenarioError([f"{file}: not UTF-8 text (byte {error.start})"]) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScenarioError([f"{file}: cannot be read: {reason}"]) from error
    return parse_document(text, file)


def plain_document(data: Mapping[str, Any], name: str) -> Document:
    """Return a document that holds a copy of data from Python; `name` stands for its file.

    Raises:
        ScenarioError: a key is no text, YAML has no such value, or there are too many values.
    """
    return Document(name, _Copier(name).mapping(data, ()), has_lines=False)


def dump_document(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML; `parse_document` reads it as equal data."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=98)


def parse_document(text: str, file: str) -> Document:
    """Return the document in `text`; `file` names it in messages. Raise ScenarioError."""
    reader = _Reader(file)
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
    reader = _Reader(place, whole=False)
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
        if self.num_values > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise self.problem(path[:3], _TOO_LARGE)
        if isinstance(value, Mapping):
            return self.mapping(value, path)
        if isinstance(value, list):
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


class _Reader:
    """The plain data of YAML nodes, with the place of each and all mistakes in it.

    `whole`: the text is a file, so lines and columns in it make sense to the user.
    """

    def __init__(self, file: str, *, whole: bool = True) -> None:
        self.file = file
        self.whole = whole
        self.problems: list[str] = []
        self.places: dict[KeyPath, str] = {}
        self.key_places: dict[KeyPath, str] = {}
        self.num_values = 0

    def read(self, text: str) -> Any:
        """Return the data in `text`; afterwards `problems` lists its mistakes."""
        try:
            node = yaml.compose(text, _Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            about = " ".join(filter(None, (error.problem, error.context))) or "not YAML"
            too_large = about == _TOO_LARGE
            self.complain(mark, about if too_large else f"cannot be read as YAML: {about}")
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.problems.append(
                f"{self.file}:{line}:1: cannot be read as YAML: the character "
                f"#x{error.character:04x} is not allowed"
            )
        except RecursionError:
            self.problems.append(f"{self.file}:1:1: cannot be read as YAML: nested too deeply")
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # PyYAML raises ValueError for escapes beyond Unicode, like "\\UFFFFFFFF".
            self.problems.append(f"{self.file}:1:1: cannot be read as YAML: {error}")
        else:
            return None if node is None else self.value(node, ())
        return None

    def where(self, mark: yaml.Mark | None) -> str:
        """Return the place of a mark of PyYAML, which counts from 0."""
        if not self.whole:
            return self.file
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{self.file}:1:1"

    def complain(self, mark: yaml.Mark | None, message: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(f"{self.where(mark)}: {message[:_MAX_MESSAGE]}")

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = self.where(node.start_mark)
        self.num_values += 1
        if len(path) > _MAX_DEPTH or self.num_values > _MAX_VALUES:
            # The limit of `_Loader` is not enough: an alias stands for its nodes without composing
            # them again, and may even contain itself.
            if self.num_values <= _MAX_VALUES + 1:
                self.complain(node.start_mark, _TOO_LARGE)
            self.num_values = _MAX_VALUES + 2  # one complaint only
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node.start_mark, "a key must be text")
                continue
            key = str(key_node.value)  # a key is text, even one like `1` or `true`
            line = key_node.start_mark.line + 1
            if key == "<<":
                self.complain(
                    key_node.start_mark, "merge keys (<<) are not supported; repeat the keys"
                )
            elif key in mapping:
                at = dotted((*path, key))
                self.complain(
                    key_node.start_mark,
                    f"{at}: the key is given twice, on line {lines[key]} and on line {line}; "
                    "keep one",
                )
            else:
                lines[key] = line
                self.key_places[(*path, key)] = self.where(key_node.start_mark)
                mapping[key] = self.value(value_node, (*path, key))
        return mapping

    def scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG) if isinstance(node, yaml.ScalarNode) else ""
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                return int(text)
            if kind == "float":
                if text.lower().lstrip("+-") in (".inf", ".nan"):
                    text = text.replace(".", "")  # Python spells them without the point
                return float(text)
        except ValueError:
            self.complain(node.start_mark, f"{text[:40]!r} cannot be read as a number")
            return None
        self.complain(node.start_mark, f"the tag {node.tag!r} is not supported; leave it out")
        return None


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {repr(value)[:60]}"
