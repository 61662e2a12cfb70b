"""YAML text as plain data: the scalars that are read, the place of each value, and all mistakes.

PyYAML parses text into nodes. `Reader` turns nodes into data itself, for three reasons:

- A repeated key is an error. PyYAML silently keeps the last one.
- Scalars follow the core schema of YAML 1.2: `1e3` is a number, `on` and `12:30` are text.
- Each value keeps its `file:line:column`, for the messages of later checks.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

__all__ = ["MAX_DEPTH", "MAX_VALUES", "TOO_LARGE", "Dumper", "KeyPath", "Reader", "dotted"]

KeyPath = tuple[str | int, ...]

# Limits that no real scenario reaches. Within them, any file is refused or read in seconds.
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 40
_MAX_PROBLEMS: Final = 100
_MAX_MESSAGE: Final = 300
_TAG: Final = "tag:yaml.org,2002:"
_REMEDIES: Final = (
    (r"'\\t'", "indent with spaces; a tab is not allowed in YAML"),
    (r"'`'", "take the lines with ``` out; they are Markdown"),
    ("mapping values are not allowed", "write a space after each colon, and align keys of a level"),
    ("<stream end>", "a bracket or a quotation mark before this is not closed"),
    ("expected <block end>", "keys of one level start in one column"),
    ("scanning an alias|'%'|'@'", "put the value in quotation marks"),
)
TOO_LARGE: Final = (
    f"too large or nested too deeply (at most {MAX_VALUES:,} keys and values, {MAX_DEPTH} deep)"
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
        if self._num_nodes > MAX_VALUES or self._depth > MAX_DEPTH + 1:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, TOO_LARGE, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Dumper(yaml.SafeDumper):
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
    Dumper.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


def dotted(path: KeyPath) -> str:
    """Return a path as text: `("a", "b", 2)` is `a.b[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Reader:
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
            too_large = about == TOO_LARGE
            said = about if too_large else f"cannot be read as YAML: {about}{_remedy(about)}"
            self.complain(mark, said)
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
        if len(path) > MAX_DEPTH or self.num_values > MAX_VALUES:
            # The limit of `_Loader` is not enough: an alias stands for its nodes without composing
            # them again, and may even contain itself.
            if self.num_values <= MAX_VALUES + 1:
                self.complain(node.start_mark, TOO_LARGE)
            self.num_values = MAX_VALUES + 2  # one complaint only
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


def _remedy(about: str) -> str:
    """Return the end of a message of PyYAML: what the mistake usually is."""
    return next((f"; {said}" for form, said in _REMEDIES if re.search(form, about)), "")
