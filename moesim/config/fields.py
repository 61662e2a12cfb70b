"""Field types of pydantic models for the quantities of `moesim.config.units`.

A field accepts what its parser accepts and holds an integer in the base unit. Its JSON Schema has
a pattern and examples for editors. As JSON, the integer is written with its unit: `20ns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from moesim.config.units import (
    BANDWIDTHS,
    BYTES,
    DURATIONS_NS,
    FLOPS,
    parse_bandwidth,
    parse_bytes,
    parse_duration_ns,
    parse_flops,
    parse_share,
)

__all__ = [
    "Bandwidth",
    "Bits",
    "Bytes",
    "Count",
    "Duration",
    "Flops",
    "PositiveCount",
    "PositiveNumber",
    "PositiveShare",
    "Quantity",
    "quantity_pattern",
]

# For editors alone; the parsers of `units` decide what is valid.
_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def quantity_pattern(units: Iterable[str]) -> str:
    """Return the regular expression of a number with one of `units`, for the JSON Schema."""
    return rf"^\s*{_NUMBER}\s*({'|'.join(units)})\s*$"


@dataclass(frozen=True, slots=True)
class Quantity:
    """Marker of a field whose text `parse` reads as an integer in the base `unit`."""

    parse: Callable[[object], int]
    unit: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = core_schema.no_info_before_validator_function(self.parse, handler(source))
        schema["serialization"] = core_schema.plain_serializer_function_ser_schema(
            self.plain, when_used="json"
        )
        return schema

    def read_as(self, number: object) -> str:
        """Return what a message says of a number without a unit."""
        return f"is {number} without a unit: read as {self.parse(number)} {self.unit}"

    def plain(self, amount: int) -> str:
        """Return an amount as YAML holds it; `parse` reads it as exactly this amount."""
        return f"{amount}{self.unit}"


def _positive(parse: Callable[[object], int]) -> Callable[[object], int]:
    def parse_positive(value: object) -> int:
        number = parse(value)
        if number == 0:
            raise ValueError(f"{value!r} must be greater than zero")
        return number

    return parse_positive


def _schema(units: Iterable[str], examples: list[Any], minimum: int) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": quantity_pattern(units)},
                {"type": "number", "minimum": minimum},
            ],
            "examples": examples,
        }
    )


def _whole(value: object) -> object:
    """Return whole floats as integers: YAML reads `1e3` as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} must be a finite number")
    return value


def _share(value: object) -> float:
    share = parse_share(value)
    if share == 0:
        raise ValueError(f"{value!r} must be greater than zero")
    return share


Bytes = Annotated[
    int, Quantity(_positive(parse_bytes), "B"), _schema(BYTES, ["24GiB", "16.5MB"], 1)
]
Duration = Annotated[
    int, Quantity(parse_duration_ns, "ns"), _schema(DURATIONS_NS, ["25us", "4ms"], 0)
]
Bandwidth = Annotated[
    int, Quantity(_positive(parse_bandwidth), "B/s"), _schema(BANDWIDTHS, ["25GB/s"], 1)
]
Flops = Annotated[int, Quantity(_positive(parse_flops), "FLOPS"), _schema(FLOPS, ["312TFLOPS"], 1)]
PositiveShare = Annotated[
    float,
    BeforeValidator(_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": quantity_pattern(["%"])},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            ],
            "examples": ["50%", 0.5],
        }
    ),
]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**62)]
PositiveCount = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=2**62)]
PositiveNumber = Annotated[float, BeforeValidator(_finite), Field(gt=0, lt=1e18)]
Bits = Annotated[
    float,
    BeforeValidator(_finite),
    Field(gt=0, le=64),
    PlainSerializer(lambda bits: int(bits) if float(bits).is_integer() else bits),  # 4, not 4.0
]
