"""The header of a trace, `trace.json`.

The header is written last. It lists every other file of the folder with its size and SHA-256
(shards also with their role, first row, shape and dtype), and has a hash of itself. A folder
without a header is not a trace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from moesim.config.reasons import reason_of
from moesim.errors import MissingTrace, TraceError, shown
from moesim.inputs import read_json

FORMAT = "moesim-trace"
VERSION = "1.0"
VERSION_WITH_PREFIXES = "1.1"
"""The version of traces with `prefix_block_tokens`; others are as before, so they keep theirs."""
HEADER = "trace.json"
SELF_HASH = "header_sha256"
REQUESTS = "requests.parquet"
PREFIX_BLOCKS = "prefix_blocks"
"""The column of the request table with the identities of prompts' token blocks."""
MOST_LAYERS = 10_000
MOST_REQUESTS = 10_000_000

Role = Literal["expert_ids", "gate_weights", "predictions", "probabilities"]
ROLES: tuple[Role, ...] = ("expert_ids", "gate_weights", "predictions", "probabilities")
Parsed = TypeVar("Parsed")
ROUTERS = ("layerwise", "pregated", "decoupled", "static")


@dataclass(frozen=True, slots=True)
class TraceMeta:
    """Shape and provenance of a trace.

    `num_layers` counts MoE layers; `layer_map[l]` is the model layer of trace layer l (None: the
    same). `router` says what routing is known ahead (see `docs/design.md`). `prompt_rows` is
    `absent` if only decoded tokens were recorded. `normalised`: the gate weights of a row sum
    to one. `model_config` is the Hugging Face `config.json`, from which real sizes are costed.
    `prefix_block_tokens` are the tokens of a block whose identity the request table holds.
    """

    num_layers: int
    num_experts: int
    top_k: int
    model: str = "unknown"
    revision: str | None = None
    config_hash: str | None = None
    router: str = "layerwise"
    normalised: bool = False
    num_shared_experts: int = 0
    expert_bytes: int | None = None
    layer_map: tuple[int, ...] | None = None
    prompt_rows: str = "recorded"
    prediction_depth: int = 0
    synthetic: bool = False
    model_config: dict[str, Any] | None = None
    prefix_block_tokens: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> str | None:
        """Return the first rule that this header breaks, in words, or None."""
        for entry in fields(self):  # one by one, so that the message can name the field
            try:
                json.dumps(getattr(self, entry.name), allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                return f"{entry.name} must be plain JSON: {error}"
        # The parser of the reader, so that whatever is written can be read.
        try:
            _parse(TraceMeta, asdict(self))
        except _WrongTypeError as error:
            return str(error)
        for name in ("num_layers", "num_experts", "top_k"):
            if getattr(self, name) < 1:
                return f"{name} must be at least 1, not {getattr(self, name)}"
        if self.num_layers > MOST_LAYERS:
            return f"num_layers ({self.num_layers}) exceeds {MOST_LAYERS}"
        if self.top_k > self.num_experts:
            return f"top_k ({self.top_k}) exceeds num_experts ({self.num_experts})"
        if self.num_experts > 65_535:  # ids have 16 bits, and one value marks an unused place
            return f"num_experts ({self.num_experts}) exceeds 65535"
        if self.router not in ROUTERS:
            return f"router {shown(self.router)} is none of {', '.join(ROUTERS)}"
        if self.prompt_rows not in ("recorded", "absent"):
            return f"prompt_rows must be 'recorded' or 'absent', not {shown(self.prompt_rows)}"
        for name in ("prediction_depth", "num_shared_experts"):
            if not 0 <= getattr(self, name) <= 65_535:
                return f"{name} must lie between 0 and 65535, not {getattr(self, name)}"
        if self.expert_bytes is not None and not 1 <= self.expert_bytes <= 2**62:
            return f"expert_bytes must lie between 1 and 2**62, not {self.expert_bytes}"
        if self.prefix_block_tokens is not None and not 1 <= self.prefix_block_tokens <= 2**31:
            return (
                f"prefix_block_tokens must lie between 1 and 2**31, not {self.prefix_block_tokens}"
            )
        if self.layer_map is not None and (
            len(self.layer_map) != self.num_layers
            or self.layer_map[0] < 0
            or self.layer_map[-1] >= MOST_LAYERS
            or any(b <= a for a, b in zip(self.layer_map, self.layer_map[1:], strict=False))
        ):
            return (
                f"layer_map must list {self.num_layers} model layers below {MOST_LAYERS} in "
                "rising order"
            )
        return None

    @property
    def version(self) -> str:
        """Return the version of the format that this header needs."""
        return VERSION if self.prefix_block_tokens is None else VERSION_WITH_PREFIXES

    @property
    def id_dtype(self) -> npt.DTypeLike:
        """Return the smallest unsigned type whose maximum is at least `num_experts`."""
        return np.uint8 if self.num_experts <= 255 else np.uint16

    @property
    def unused(self) -> int:
        """Return the id of a place that the router left unused: the id type's maximum."""
        return int(np.iinfo(self.id_dtype).max)

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Return the model layer of each trace layer."""
        return self.layer_map or tuple(range(self.num_layers))

    def row_shape(self, role: Role) -> tuple[int, ...]:
        """Return the shape of one row (one token) of a routing array."""
        layers, k = self.num_layers, self.top_k
        return {
            "expert_ids": (layers, k),
            "gate_weights": (layers, k),
            "predictions": (layers, self.prediction_depth, k),
            "probabilities": (layers, self.num_experts),
        }[role]

    def dtype(self, role: Role) -> npt.DTypeLike:
        """Return the stored type of a routing array."""
        return self.id_dtype if role in ("expert_ids", "predictions") else np.float16


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a trace folder, as its header lists it; `role` only for routing shards."""

    path: str
    bytes: int
    sha256: str
    role: Role | None = None
    first_row: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The parsed `trace.json`."""

    version: str
    meta: TraceMeta
    num_rows: int
    num_requests: int
    files: tuple[FileEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        files = [
            {key: value for key, value in asdict(entry).items() if value is not None}
            for entry in self.files
        ]
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": self.version,
            "num_rows": self.num_rows,
            "num_requests": self.num_requests,
            **asdict(self.meta),
            "files": files,
        }
        if self.meta.prefix_block_tokens is None:  # as in version 1.0
            del header["prefix_block_tokens"]
        header = json.loads(json.dumps(header))  # as a reader sees it, with string keys: hash that
        return {**header, SELF_HASH: _self_hash(header)}


def read_header(folder: Path) -> Header:
    """Parse and check `trace.json`. Raise `TraceError` with the file, the field and the rule."""
    path = folder / HEADER
    raw = _read_json(folder)
    if raw.get("format") != FORMAT:
        raise TraceError(path, "format", f"must be {FORMAT!r}")
    version = str(raw.get("version", ""))
    if version.split(".")[0] != VERSION.split(".")[0]:
        raise TraceError(
            path, "version", f"{version!r} is unknown; this moesim reads {VERSION.split('.')[0]}.x"
        )
    try:
        meta = _parse(TraceMeta, raw)
        counts = _parse(_Counts, raw)
        files = tuple(_file_entry(entry) for entry in counts.files)
    except _WrongTypeError as error:
        raise TraceError(path, error.where, error.reason) from None
    if problem := meta.problem():
        raise TraceError(path, "", problem)
    if counts.num_rows < 1 or counts.num_requests < 1:
        raise TraceError(path, "num_rows", "a trace needs at least one row and one request")
    if counts.num_requests > MOST_REQUESTS:
        raise TraceError(
            path, "num_requests", f"is {counts.num_requests}; at most {MOST_REQUESTS:,} are read"
        )
    return Header(version, meta, counts.num_rows, counts.num_requests, files)


def check_self_hash(folder: Path) -> None:
    """Raise `TraceError` if `trace.json` is not as it was written.

    The header has the hashes of the other files, but only this hash protects the header.
    """
    raw = _read_json(folder)
    stored = raw.pop(SELF_HASH, None)
    if stored != _self_hash(raw):
        raise TraceError(
            folder / HEADER, SELF_HASH, "does not match: the header was changed or damaged"
        )


def _self_hash(header: dict[str, Any]) -> str:
    """Return SHA-256 of the header's other fields, as JSON without spaces and with sorted keys."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


_MOST_NAMED: Final = 10  # traces inside a folder that a message names
_NO_FOLDER = (
    "no such trace folder; make one with `moesim record`, `moesim trace convert` or "
    "`moesim trace synth`"
)
_FOLDER = "a trace is a folder; `moesim trace convert` makes one of another program's recording"


def _not_a_trace(folder: Path) -> str:
    """Return the message for a folder without a header, with the traces inside it, if any."""
    inside = sorted(header.parent.name for header in folder.glob(f"*/{HEADER}"))
    if inside:
        more = f" and {len(inside) - _MOST_NAMED} more" if len(inside) > _MOST_NAMED else ""
        return f"the folder holds traces; name one of them: {', '.join(inside[:_MOST_NAMED])}{more}"
    return "the folder is not a trace, or its recording never finished; repeat it"


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not os.path.isdir(folder):  # unlike `Path.is_dir`, False where the name is too long
        is_file = os.path.lexists(folder)
        raise MissingTrace(folder, "", f"is a file, and {_FOLDER}" if is_file else _NO_FOLDER)
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise MissingTrace(path, "", f"missing: {_not_a_trace(folder)}") from None
    except OSError as error:
        raise TraceError(path, "", f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TraceError(path, _json_place(error), f"is not readable JSON ({error})") from None
    if not isinstance(raw, dict):
        raise TraceError(path, "", "must hold a JSON object")
    return raw


@dataclass(frozen=True, slots=True)
class _Counts:
    num_rows: int
    num_requests: int
    files: tuple[dict[str, Any], ...]


def _file_entry(raw: dict[str, Any]) -> FileEntry:
    entry = _parse(FileEntry, raw)
    # A name with a folder in it could point outside of the trace.
    if Path(entry.path).name != entry.path or entry.path == ".." or not entry.path.isprintable():
        raise _WrongTypeError(
            "files", f"file name {entry.path!r} must be a plain name inside the folder"
        )
    return entry


class _WrongTypeError(ValueError):
    """A field (`where`) is missing or of the wrong type (`reason`)."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


def _parse(kind: type[Parsed], raw: dict[str, Any]) -> Parsed:
    """Return the dataclass `kind` from plain JSON: types are strict, unknown fields left out."""
    from pydantic import ValidationError

    try:
        # As JSON text, because strict validation accepts a list for a tuple only in JSON.
        parsed: Parsed = _adapter(cast(Any, kind)).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] == "missing" else f", not {shown(first['input'], 80)}"
        raise _WrongTypeError(where, reason_of(first).lower() + got) from None
    return parsed


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _json_place(error: Exception) -> str:
    place = re.search(r" at line (\d+) column (\d+)$", str(error))
    return f"line {place[1]}, column {place[2]}" if place else ""
