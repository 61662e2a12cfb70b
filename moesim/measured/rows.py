"""Rows of measured throughput: one JSON object for each, in the words of its author.

The measured value is no field of a `Row`. A prediction gets a `Row`, so it cannot read the value.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from moesim.config.reasons import reason_of
from moesim.errors import UsageError
from moesim.files import as_path
from moesim.inputs import read_bytes

__all__ = ["Measured", "Row", "measured_rows", "read_measured", "read_rows"]

MOST_BYTES: Final = 256 << 20
"""Bytes of the largest file that is read; a row takes about 500."""
MOST_TEXT: Final = 2000
"""Characters of the longest text field."""
MOST_TOKENS: Final = 1 << 40
_MOST_SHOWN: Final = 20  # mistakes in one message


@dataclass(frozen=True, slots=True)
class Row:
    """What one row says about a measurement, without the measured value.

    Texts that are missing are "". `depth` counts tokens in the KV cache before the timed work,
    `prompt` tokens of the timed prompt, `allocated` tokens for which the cache has room. They are
    None where unknown; a missing `prompt` (or 0) of a prefill is that of a note like "pp512".
    `batch` counts sequences. `fit` permits `--fit two` to use the row.
    """

    index: int = 0
    source: str = ""
    model: str = ""
    quant: str = ""
    gpu: str = ""
    cpu: str = ""
    ram: str = ""
    pcie: str = ""
    engine: str = ""
    setting: str = ""
    metric: str = ""
    placement: str = ""
    grade: str = ""
    depth: int | None = None
    prompt: int | None = None
    allocated: int | None = None
    batch: int = 1
    fit: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A row, its measured tokens per second (None where there are none), and the author's note.

    A note may quote what was measured, so it is kept apart from the row too.
    """

    row: Row
    value: float | None
    note: str = ""


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a file without their values. Raise `UsageError` as `read_measured`."""
    return [measured.row for measured in read_measured(path)]


def read_measured(path: str | os.PathLike[str]) -> list[Measured]:
    """Return the rows of a JSON list of objects, with their values.

    A field may be missing, null or "". Other fields than those of `Row` are ignored.

    Raises:
        UsageError: the file cannot be read, is no such list, or a field has the wrong kind.
    """
    file = as_path(path)
    try:
        raw = from_json(read_bytes(file, MOST_BYTES).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{file}: is no JSON: {error}") from None
    return measured_rows(raw, str(file))


def measured_rows(raw: Any, name: str) -> list[Measured]:
    """Return the rows of a JSON list that was read from the file `name`.

    Raises:
        UsageError: it is no such list, or a field has the wrong kind.
    """
    if not isinstance(raw, list):
        raise UsageError(f"{name}: expected a JSON list of rows, found {type(raw).__name__}")
    try:
        checked = _ROWS.validate_python(raw)
    except ValidationError as error:
        raise UsageError("\n  ".join(_mistakes(name, error))) from None
    return [_measured(index, fields_) for index, fields_ in enumerate(checked)]


def _blank(value: Any) -> Any:
    """Return None for "", for blanks, and for NaN, which some programs write for "missing"."""
    if isinstance(value, str) and not value.strip():
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def _whole(value: Any) -> Any:
    """Return a whole number that is written as 512.0 as an integer."""
    value = _blank(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Text = Annotated[Annotated[str, Field(max_length=MOST_TEXT)] | None, BeforeValidator(_blank)]
_Count = Annotated[Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None, BeforeValidator(_whole)]


class _Fields(BaseModel):
    """The fields of a row as they may stand in a file."""

    model_config = ConfigDict(strict=True, extra="ignore")

    source: _Text = None
    model: _Text = None
    quant: _Text = None
    gpu: _Text = None
    cpu: _Text = None
    ram: _Text = None
    pcie: _Text = None
    engine: _Text = None
    setting: _Text = None
    metric: _Text = None
    note: _Text = None
    placement: _Text = None
    grade: _Text = None
    depth: _Count = None
    prompt: _Count = None
    allocated: _Count = None
    batch: Annotated[
        Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None, BeforeValidator(_whole)
    ] = None
    fit: Annotated[bool | None, BeforeValidator(_blank)] = None
    value: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_blank)
    ] = None


_ROWS: Final = TypeAdapter(list[_Fields])
_TEXTS: Final = frozenset(field.name for field in fields(Row) if field.type == "str")


def _measured(index: int, checked: _Fields) -> Measured:
    given = {name: value for name in _GIVEN if (value := getattr(checked, name)) is not None}
    texts = {name: value.strip() for name, value in given.items() if name in _TEXTS}
    row, note = Row(index=index, **{**given, **texts}), checked.note or ""
    timed = _PROMPT.search(note)
    if timed is not None and not row.prompt and row.metric.startswith("prefill"):
        row = replace(row, prompt=int(timed[1] or timed[2]))
    return Measured(row, checked.value, note.strip())


_PROMPT: Final = re.compile(r"^pp ?(\d{1,7})\b|\bubatch of (\d{1,7})\b", re.IGNORECASE)
_GIVEN: Final = tuple(field.name for field in fields(Row) if field.name != "index")


def _mistakes(file: str, error: ValidationError) -> list[str]:
    """Return a line for each mistake: the file, the index of the row, its field, what is wrong."""
    mistakes = error.errors(include_url=False, include_context=False)
    lines = []
    for mistake in mistakes[:_MOST_SHOWN]:
        index, *rest = mistake["loc"]
        # Other parts of the place are names of pydantic's validators.
        field = next((f", `{part}`" for part in rest if part in _Fields.model_fields), "")
        # Without a field, the row itself is wrong, and pydantic would name our class.
        wrong = reason_of(mistake) if field else "expected a JSON object"
        lines.append(f"{file}: row {index}{field}: {wrong}")
    left = len(mistakes) - len(lines)
    return lines + ([f"and {left} more mistakes"] if left > 0 else [])
