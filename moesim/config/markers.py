"""Markers: annotations of a scenario's fields that add rules to their types.

    hardware: Annotated[HardwareChoice, Short("profile")]

A marker validates its field and adds to the field's JSON Schema. The loader finds all fields with
a marker: `marked(Scenario, Short)` yields every section that may be written as one word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moesim.config.suggest import suggest
from moesim.config.yaml_document import KeyPath

__all__ = [
    "BASE_DIR",
    "NO_PATH",
    "NoneAs",
    "PathTo",
    "Short",
    "file_under",
    "marked",
    "models_in",
    "seen_from",
]

BASE_DIR: Final = "base_dir"
"""Key of the validation context: the folder from which relative paths start. Without it, paths are
not checked."""

NO_PATH: Final = "no_such_path"
"""Type of the error for a path that does not exist."""

_MOST_NAMES: Final = 1000  # files of a folder that are compared with a misspelt name

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Short:
    """The section may be written as one word, its `key`: `hardware: t4` is `{profile: t4}`.

    `names` returns the words that editors offer; other words are allowed too. For a tagged union,
    the word is one of its tags.
    """

    key: str
    names: Callable[[], Sequence[str]] | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def as_mapping(value: Any) -> Any:
            return {self.key: value} if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(as_mapping, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner = handler(schema)
        # `discriminator` is no keyword of JSON Schema; its mapping lists the tags.
        if tags := inner.pop("discriminator", None):
            return {"anyOf": [{"enum": sorted(tags["mapping"])}, inner]}
        offered = [{"enum": list(self.names())}] if self.names else []
        return {"anyOf": [*offered, {"type": "string"}, inner]}


@dataclass(frozen=True, slots=True)
class NoneAs:
    """The field's None is written as `word`; `otherwise` names the other values for messages.

    Null itself is refused, because an empty value in YAML is usually a value left out by mistake.
    """

    word: str
    otherwise: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = core_schema.no_info_wrap_validator_function(self._read, handler(source))
        schema["serialization"] = core_schema.wrap_serializer_function_ser_schema(self._write)
        return schema

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        # Null is refused, so editors must not offer it.
        kinds = [kind for kind in handler(schema)["anyOf"] if kind != {"type": "null"}]
        return {"anyOf": [{"const": self.word}, *kinds]}

    def _read(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if value == self.word:
            return None
        try:
            if value is not None:
                return handler(value)
        except ValidationError as error:
            # Text that a parser refused has a message already; other text gets the one below.
            if not isinstance(value, str) or error.errors()[0]["type"] == "value_error":
                raise
        hint = suggest(value, [self.word]) if value else ""
        raise ValueError(f"{value!r} is neither {self.word} nor {self.otherwise}{hint}")

    def _write(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return self.word if value is None else handler(value)


@dataclass(frozen=True, slots=True)
class PathTo:
    """The text is the path of an existing `what`; `remedy` tells the user how to make one.

    With `endings`, only text with one of these endings is a path; other text is a name.
    """

    what: str
    exists: Callable[[str], bool]
    endings: tuple[str, ...] = ()
    remedy: str = ""

    def is_path(self, text: object) -> bool:
        """Return whether a value of the field is a path, not a name."""
        return isinstance(text, str) and (not self.endings or text.endswith(self.endings))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self.check, handler(source))

    def check(self, value: str, info: ValidationInfo) -> str:
        """Return the path. Raise `NO_PATH` where it does not exist."""
        base = info.context.get(BASE_DIR) if info.context else None
        if self.is_path(value) and (not value or base is not None):
            at = file_under(base or "", value)
            if not value or not self.exists(at):
                # The message depends on where the value came from, which the document tells later.
                details = {"value": value, "base": str(base or ""), "marker": self}
                raise PydanticCustomError(NO_PATH, "there is no such path", details)
        return value

    def missing(self, value: str, base: str, *, typed: bool) -> str:
        """Return the message for a path that does not exist.

        `typed`: the path came from the command line, and was made relative to `base` afterwards.
        """
        at = file_under(base, value)
        # A path from the command line is shown as it was typed, from the working directory.
        shown = (
            os.path.relpath(os.path.realpath(at), os.path.realpath("."))
            if typed and value
            else value
        )
        if not value or os.path.isabs(value):
            rule = ""
        elif typed:
            rule = f"; a path of --set starts at the working directory, {Path.cwd()}"
        else:
            rule = f"; a path in a scenario starts at its folder, {os.path.abspath(base)}"
        if os.path.lexists(at):
            rule = f"; it is a {'folder' if os.path.isdir(at) else 'file'}"
        near = suggest(os.path.basename(at), self._beside(at)) if value else ""
        remedy = f"; {self.remedy}" if self.remedy and not near else ""
        return f"there is no {self.what} {shown!r}{rule}{remedy}{near}"

    def _beside(self, at: str) -> list[str]:
        """Return the names in the folder of a path that are valid for this field."""
        folder = os.path.dirname(at) or "."
        try:
            names = os.listdir(folder)[:_MOST_NAMES]
        except (OSError, ValueError):  # no such folder, or a NUL in its name
            return []
        return [n for n in names if self.is_path(n) and self.exists(os.path.join(folder, n))]


def file_under(folder: str | os.PathLike[str], path: str) -> str:
    """Return a path as seen from the working directory; a relative one starts at `folder`."""
    return os.path.join(folder, os.path.expanduser(path))


def seen_from(folder: str | os.PathLike[str] | None, path: str | os.PathLike[str]) -> str:
    """Return a path that starts at the working directory as one that starts at `folder`.

    Without a folder, the path is absolute. Links are resolved first, because `..` after a link
    leads to the parent of its target. The last name is not resolved, because its ending may say
    what the file is.
    """
    outside, name = os.path.split(os.fspath(path))
    real = os.path.join(os.path.realpath(outside), name)
    if folder is None:
        return Path(real).as_posix()
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()


def marked(model: type[BaseModel], kind: type[M]) -> Iterator[tuple[KeyPath, M]]:
    """Yield key path and marker of each field of `model`, at any depth, with a marker of `kind`."""
    for name, field in model.model_fields.items():
        for marker in (*field.metadata, *_inside(field.annotation)):
            if isinstance(marker, kind):
                yield (name,), marker
        for inner in models_in(field.annotation):
            for path, marker in marked(inner, kind):
                yield (name, *path), marker


def _inside(annotation: Any) -> Iterator[Any]:
    """Yield the markers of the branches of a union, like those of `Bytes | None`."""
    for branch in get_args(annotation):
        yield from getattr(branch, "__metadata__", ())


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every model that a field of this type may hold, such as the branches of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)
