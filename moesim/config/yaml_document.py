"""A YAML file as plain data, with the place of everything in it.

Scenarios and hardware profiles are YAML. PyYAML parses; what is made of its nodes is ours, for
three reasons: duplicate keys are refused (PyYAML keeps the last one silently), scalars follow
YAML 1.2's core schema (`1e3` is a number, `on` and `12:30` are text), and every value keeps its
`file:line:column`, so that each later complaint can point at the line it is about.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from moesim.errors import ScenarioError

__all__ = ["Document", "KeyPath", "dotted", "dump_document", "load_document"]

KeyPath = tuple[str | int, ...]

_MAX_VALUES: Final = 100_000
_MAX_DEPTH: Final = 40
_TAG: Final = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """A safe loader that knows the scalars of YAML 1.2's core schema and no others."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes text that our loader, or any other, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


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
    """Plain data (`dict`, `list`, `str`, `int`, `float`, `bool`, None) and where it was written.

    `places[path]` is the `file:line:column` of the value at `path`, `key_places[path]` that of
    its key. Paths that an override or a sweep set have that as their place instead.
    """

    file: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    key_places: dict[KeyPath, str] = field(default_factory=dict)
    has_lines: bool = True
    """False for data that came from Python: then `file` alone is the place."""

    def place(self, path: KeyPath, *, key: bool = False) -> str:
        """Where `path` was written, or else the nearest thing around it."""
        if key and path in self.key_places:
            return self.key_places[path]
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return f"{self.file}:1:1" if self.has_lines else self.file

    def at(self, path: KeyPath) -> Any:
        """The value at `path`; None where there is none."""
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
        """A copy with `value` at `path`.

        `shorthands` says which scalars stand for a mapping: with `{("hardware",): "profile"}`,
        setting `hardware.vram` on `hardware: t4` makes `hardware: {profile: t4, vram: ...}`.

        Raises:
            ScenarioError: something on the way is a value, not a mapping.
        """
        made = copy.deepcopy(self)
        here = made.data
        for depth in range(1, len(path)):
            prefix = path[:depth]
            inner = here.get(str(path[depth - 1]))
            if not isinstance(inner, dict):
                if inner is None:
                    inner = {}
                elif prefix in shorthands and not isinstance(inner, list):
                    short = shorthands[prefix]
                    inner = {short: inner}
                    made.places[(*prefix, short)] = made.place(prefix)
                else:
                    raise ScenarioError(
                        [
                            f"{place}: {dotted(path)}: {dotted(prefix)} is {inner!r}, "
                            "which has no keys to set"
                        ]
                    )
                here[str(path[depth - 1])] = inner
                made.places[prefix] = place
            here = inner
        here[str(path[-1])] = copy.deepcopy(value)
        for places in (made.places, made.key_places):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]
        made.places[path] = made.key_places[path] = place
        return made

    def without(self, path: KeyPath) -> Document:
        """Return a copy without the value at `path`, or without the nearest thing around it.

        An item of a list takes the list with it, so that no other item changes its number.
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
    """`("a", "b", 2)` as people write it: `a.b[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def load_document(path: str | os.PathLike[str]) -> Document:
    """Read a YAML file whose root is a mapping.

    Raises:
        ScenarioError: the file cannot be read, is empty, is no YAML or repeats a key.
    """
    file = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScenarioError([f"{file}: not UTF-8 text (byte {error.start})"]) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScenarioError([f"{file}: cannot be read: {reason}"]) from error
    return parse_document(text, file)


def dump_document(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `parse_document` reads back as the very same."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=98)


def parse_document(text: str, file: str) -> Document:
    """The document that `text` is; `file` names it in messages. Raises ScenarioError."""
    reader = _Reader(file)
    value = reader.read(text)
    if value is None and not reader.problems:
        raise ScenarioError([f"{file}:1:1: the file is empty; it must hold keys and values"])
    if not isinstance(value, dict):
        reader.problems.append(
            f"{file}:1:1: must hold keys and values (`key: value`), not {_kind_of(value)}"
        )
    if reader.problems:
        raise ScenarioError(reader.problems)
    return Document(file, value, reader.places, reader.key_places)


def parse_value(text: str, place: str) -> Any:
    """The plain value that a bit of YAML is, as after `--set a.b=`. Raises ScenarioError."""
    reader = _Reader(place, whole=False)
    value = reader.read(text)
    if reader.problems:
        raise ScenarioError(reader.problems)
    return value


class _Reader:
    """Turns YAML nodes into plain data and notes the place of each."""

    def __init__(self, file: str, *, whole: bool = True) -> None:
        self.file = file
        self.whole = whole
        self.problems: list[str] = []
        self.places: dict[KeyPath, str] = {}
        self.key_places: dict[KeyPath, str] = {}
        self.num_values = 0

    def read(self, text: str) -> Any:
        try:
            node = yaml.compose(text, _Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            about = " ".join(filter(None, (error.problem, error.context))) or "not YAML"
            self.complain(mark, f"cannot be read as YAML: {about}")
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.problems.append(
                f"{self.file}:{line}:1: cannot be read as YAML: the character "
                f"#x{error.character:04x} is not allowed"
            )
        except RecursionError:
            self.problems.append(f"{self.file}:1:1: cannot be read as YAML: nested too deeply")
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # PyYAML itself trips over escapes beyond Unicode, like "\\UFFFFFFFF".
            self.problems.append(f"{self.file}:1:1: cannot be read as YAML: {error}")
        else:
            return None if node is None else self.value(node, ())
        return None

    def where(self, mark: yaml.Mark | None) -> str:
        if not self.whole:
            return self.file
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{self.file}:1:1"

    def complain(self, mark: yaml.Mark | None, message: str) -> None:
        self.problems.append(f"{self.where(mark)}: {message}")

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = self.where(node.start_mark)
        self.num_values += 1
        if len(path) > _MAX_DEPTH or self.num_values > _MAX_VALUES:
            # An alias may contain itself, or multiply without end.
            if self.num_values <= _MAX_VALUES + 1:
                self.complain(node.start_mark, "too large or nested too deeply")
            self.num_values = _MAX_VALUES + 2
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        made: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node.start_mark, "a key must be text")
                continue
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key == "<<":
                self.complain(key_node.start_mark, "merge keys (<<) are not read; repeat the keys")
            elif key in made:
                at = dotted((*path, key))
                self.complain(
                    key_node.start_mark,
                    f"{at}: the key is given twice, on line {lines[key]} and on line {line}; "
                    "keep one",
                )
            else:
                lines[key] = line
                self.key_places[(*path, key)] = self.where(key_node.start_mark)
                made[key] = self.value(value_node, (*path, key))
        return made

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
                special = text.lower().lstrip("+-")
                if special in (".inf", ".nan"):
                    text = text.replace(".", "")
                return float(text)
        except ValueError:
            self.complain(node.start_mark, f"{text[:40]!r} cannot be read as a number")
            return None
        self.complain(node.start_mark, f"the tag {node.tag!r} is not read here")
        return None


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r}"
