"""What a field of a scenario is beside its type, said once, as an annotation.

    hardware: Annotated[HardwareChoice, Short("profile")]

A marker is the validator of its field, the field's JSON Schema, and an entry of the tables that
the loader reads: `marked(Scenario, Short)` finds every section that one word may stand for.
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

__all__ = ["BASE_DIR", "NO_PATH", "NoneAs", "PathTo", "Short", "marked", "models_in", "seen_from"]

BASE_DIR: Final = "base_dir"
"""Key of the validation context: where relative paths start. Without it no path is checked."""

NO_PATH: Final = "no_such_path"
"""Type of the error for a path that leads nowhere."""

_MOST_NAMES: Final = 1000

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Short:
    """The section may be written as one word, its `key`: `hardware: t4` is `{profile: t4}`.

    `names` are the words that editors offer; other words are allowed. The word for a tagged union
    is one of its tags.
    """

    key: str
    names: Callable[[], Sequence[str]] | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def unfold(value: Any) -> Any:
            return {self.key: value} if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(unfold, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner = handler(schema)
        if tags := inner.pop("discriminator", None):
            return {"anyOf": [{"enum": sorted(tags["mapping"])}, inner]}
        offered = [{"enum": list(self.names())}] if self.names else []
        return {"anyOf": [*offered, {"type": "string"}, inner]}


@dataclass(frozen=True, slots=True)
class NoneAs:
    """None is written as `word`; `otherwise` says what else the field may hold.

    Null itself is refused: an empty value in YAML is more often forgotten than meant.
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
        kinds = [kind for kind in handler(schema)["anyOf"] if kind != {"type": "null"}]
        return {"anyOf": [{"const": self.word}, *kinds]}

    def _read(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if value == self.word:
            return None
        try:
            if value is not None:
                return handler(value)
        except ValidationError as error:
            if not isinstance(value, str) or error.errors()[0]["type"] == "value_error":
                raise
        hint = suggest(value, [self.word]) if value else ""
        raise ValueError(f"{value!r} is neither {self.word} nor {self.otherwise}{hint}")

    def _write(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return self.word if value is None else handler(value)


@dataclass(frozen=True, slots=True)
class PathTo:
    """The text is a path to a `what`, which must exist; `remedy` says how to get one.

    With `endings`, only a text that ends like one of them is a path, and any other is a name.
    """

    what: str
    exists: Callable[[str], bool]
    endings: tuple[str, ...] = ()
    remedy: str = ""

    def is_path(self, text: object) -> bool:
        """Whether a value of the field is a path, not a name."""
        return isinstance(text, str) and (not self.endings or text.endswith(self.endings))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str, info: ValidationInfo) -> str:
        base = info.context.get(BASE_DIR) if info.context else None
        if self.is_path(value) and (not value or base is not None):
            at = os.path.join(base or "", value)
            if not value or not self.exists(at):
                details = {"value": value, "base": str(base or ""), "marker": self}
                raise PydanticCustomError(NO_PATH, "there is no such path", details)
        return value

    def missing(self, value: str, base: str, *, typed: bool) -> str:
        """Return the message for a path that leads nowhere.

        `typed`: it was given on the command line, and made relative to `base` afterwards.
        """
        at = os.path.join(base, value)
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
        near = suggest(os.path.basename(at), self._beside(at)) if value else ""
        remedy = f"; {self.remedy}" if self.remedy and not near else ""
        return f"there is no {self.what} {shown!r}{rule}{remedy}{near}"

    def _beside(self, at: str) -> list[str]:
        """The names in the folder of a path that the field might hold."""
        folder = os.path.dirname(at) or "."
        try:
            names = os.listdir(folder)[:_MOST_NAMES]
        except (OSError, ValueError):
            return []
        return [n for n in names if self.is_path(n) and self.exists(os.path.join(folder, n))]


def seen_from(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Return `path`, seen from the working directory, as seen from `folder`.

    `..` behind a link leads elsewhere than it reads, so links are followed first. The last name
    stays, because its ending may say what it is.
    """
    outside, name = os.path.split(os.fspath(path))
    real = os.path.join(os.path.realpath(outside), name)
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()


def marked(model: type[BaseModel], kind: type[M]) -> Iterator[tuple[KeyPath, M]]:
    """Yield the key path and the marker of every field inside `model` that has one of `kind`."""
    for name, field in model.model_fields.items():
        for marker in field.metadata:
            if isinstance(marker, kind):
                yield (name,), marker
        for inner in models_in(field.annotation):
            for path, marker in marked(inner, kind):
                yield (name, *path), marker


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every model that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)
