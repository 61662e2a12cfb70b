"""The size of a part of a memory: what is left, a size, a share, or a number of slots."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import GetCoreSchemaHandler, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

from moesim.config.fields import Quantity, quantity_pattern
from moesim.config.units import BYTES, format_share, parse_bytes, parse_share
from moesim.errors import shown

__all__ = ["KvShare", "MemoryShare", "PinnedShare", "SlotsShare"]

Kind = Literal["auto", "rest", "all", "none", "bytes", "share", "count", "per_layer"]

_COUNT: Final = re.compile(r"[0-9]{1,9}")
_PER_LAYER: Final = re.compile(r"([0-9]{1,9})\s*/\s*layer")


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """An amount of memory or a number of expert slots; `kind` says what `value` means.

    `auto`, `rest`, `all` and `none` have no value. `bytes`, `count` (slots of all layers) and
    `per_layer` (slots of each layer) are integers. `share` is a float from 0 to 1.
    """

    kind: Kind
    value: int | float = 0

    def plain(self) -> int | str:
        """Return the value as YAML holds it; reading it gives an equal object, to the last bit."""
        match self.kind:
            case "bytes":
                return f"{self.value}B"
            case "share":
                return format_share(self.value)
            case "per_layer":
                return f"{self.value}/layer"
            case "count":
                return int(self.value)
        return self.kind


def _read_kv(value: object) -> MemoryShare:
    if isinstance(value, str) and value.strip() in ("auto", "rest"):
        return MemoryShare("auto" if value.strip() == "auto" else "rest")
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            return MemoryShare("share", parse_share(value))
        return MemoryShare("bytes", parse_bytes(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; KV memory is auto, rest, a size like 4GiB or a share like 30%"
        ) from None


def _read_pinned(value: object) -> MemoryShare:
    word = value.strip() if isinstance(value, str) else ""
    if word in ("auto", "all", "none"):
        return MemoryShare("auto" if word == "auto" else "all" if word == "all" else "none")
    try:
        if word.endswith("%"):
            return MemoryShare("share", parse_share(value))
        return MemoryShare("bytes", parse_bytes(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; page-locked memory is auto, all, none, a size like 4GiB or a share of all "
            "experts like 30%"
        ) from None


def _read_slots(value: object) -> MemoryShare:
    meant = ""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**9:
        return MemoryShare("count", value)
    if isinstance(value, float) and value.is_integer() and 0 <= value <= 10**9:
        return MemoryShare("count", int(value))
    if isinstance(value, str):
        text = value.strip()
        if text == "rest":
            return MemoryShare("rest")
        if _COUNT.fullmatch(text):
            return MemoryShare("count", int(text))
        if per_layer := _PER_LAYER.fullmatch(text):
            return MemoryShare("per_layer", int(per_layer[1]))
        try:
            if text.endswith("%"):
                return MemoryShare("share", parse_share(text))
            # A bare number would be bytes elsewhere; here it is a count, and must be whole.
            if not _is_bare_number(text):
                return MemoryShare("bytes", parse_bytes(text))
        except ValueError as error:
            # Beside the forms of a size, the message below names all others.
            wrong = re.search(r"did you mean (\S+)\?", str(error))
            meant = f"; did you mean {wrong[1]}?" if wrong else ""
    raise ValueError(
        f"{shown(value)} is not a number of expert slots; write rest, a total like 128, a size "
        "like 8GiB, a share of all experts like 50%, or a number for each layer like 4/layer"
        + meant
    )


def _is_bare_number(text: str) -> bool:
    return not re.search(r"[A-Za-z]$", text)


def _field(read: Callable[[object], MemoryShare]) -> GetPydanticSchema:
    """Return the schema of a field that holds a MemoryShare and parses text with `read`."""

    def parse(value: object) -> MemoryShare:
        return value if isinstance(value, MemoryShare) else read(value)

    def schema(_source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            parse,
            serialization=core_schema.plain_serializer_function_ser_schema(MemoryShare.plain),
        )

    return GetPydanticSchema(schema)


class _Size(Quantity):
    """Marker of a field that may be a size; its own schema reads and writes it."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return handler(source)


KvShare = Annotated[
    MemoryShare,
    _field(_read_kv),
    _Size(parse_bytes, "B"),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "rest"]},
                {"type": "string", "pattern": quantity_pattern([*BYTES, "%"])},
                {"type": "integer", "minimum": 0},
            ],
            "examples": ["auto", "rest", "4GiB", "30%"],
        }
    ),
]
PinnedShare = Annotated[
    MemoryShare,
    _field(_read_pinned),
    _Size(parse_bytes, "B"),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "all", "none"]},
                {"type": "string", "pattern": quantity_pattern([*BYTES, "%"])},
                {"type": "integer", "minimum": 0},
            ],
            "examples": ["auto", "all", "none", "4GiB", "30%"],
        }
    ),
]
SlotsShare = Annotated[
    MemoryShare,
    _field(_read_slots),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "rest"},
                {"type": "string", "pattern": quantity_pattern([*BYTES, "%", "/layer"])},
                {"type": "integer", "minimum": 0},
            ],
            "examples": ["rest", 128, "8GiB", "50%", "4/layer"],
        }
    ),
]
