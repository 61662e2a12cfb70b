"""What a trace says about itself: the header, `trace.json`.

The header is written last and lists every other file of the folder with its size and SHA-256
(shards also with their role, first row, shape and dtype), and carries a hash of itself. A folder
without one is not a trace.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError

FORMAT = "moesim-trace"
VERSION = "1.0"
HEADER = "trace.json"
SELF_HASH = "header_sha256"
REQUESTS = "requests.parquet"

Role = Literal["expert_ids", "gate_weights", "predictions", "probabilities"]
ROLES: tuple[Role, ...] = ("expert_ids", "gate_weights", "predictions", "probabilities")
Parsed = TypeVar("Parsed")
ROUTERS = ("layerwise", "pregated", "decoupled", "static")


@dataclass(frozen=True, slots=True)
class TraceMeta:
    """Shape and provenance of a trace.

    `num_layers` counts MoE layers; `layer_map[l]` is the model layer of trace layer l (None: the
    same). `router` says what routing is known ahead (see `docs/design.md`). `prompt_rows` is
    `absent` where only decoded tokens were recorded. `normalised`: the gate weights of a row sum
    to one. `model_config` is the Hugging Face `config.json`, from which real sizes are costed.
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
    provenance: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> str | None:
        """The first rule this header breaks, in words, or None."""
        for entry in fields(self):
            try:
                json.dumps(getattr(self, entry.name), allow_nan=False)
            except (TypeError, ValueError) as error:
                return f"{entry.name} must be plain JSON: {error}"
        try:
            _parse(TraceMeta, asdict(self))
        except _WrongTypeError as error:
            return str(error)
        for name in ("num_layers", "num_experts", "top_k"):
            if getattr(self, name) < 1:
                return f"{name} must be at least 1, not {getattr(self, name)}"
        if self.top_k > self.num_experts:
            return f"top_k ({self.top_k}) exceeds num_experts ({self.num_experts})"
        if self.num_experts > 65_535:
            return f"num_experts ({self.num_experts}) exceeds 65535"
        if self.router not in ROUTERS:
            return f"router {self.router!r} is none of {', '.join(ROUTERS)}"
        if self.prompt_rows not in ("recorded", "absent"):
            return f"prompt_rows must be 'recorded' or 'absent', not {self.prompt_rows!r}"
        for name in ("prediction_depth", "num_shared_experts"):
            if getattr(self, name) < 0:
                return f"{name} must not be negative, not {getattr(self, name)}"
        if self.expert_bytes is not None and self.expert_bytes < 1:
            return f"expert_bytes must be at least 1, not {self.expert_bytes}"
        if self.layer_map is not None and (
            len(self.layer_map) != self.num_layers
            or self.layer_map[0] < 0
            or any(b <= a for a, b in zip(self.layer_map, self.layer_map[1:], strict=False))
        ):
            return f"layer_map must list {self.num_layers} model layers in rising order"
        return None

    @property
    def id_dtype(self) -> npt.DTypeLike:
        """The smallest unsigned type whose maximum is at least `num_experts`."""
        return np.uint8 if self.num_experts <= 255 else np.uint16

    @property
    def unused(self) -> int:
        """The id that marks a place a router left unused: the id type's maximum."""
        return int(np.iinfo(self.id_dtype).max)

    @property
    def model_layers(self) -> tuple[int, ...]:
        """The model layer of each trace layer."""
        return self.layer_map or tuple(range(self.num_layers))

    def row_shape(self, role: Role) -> tuple[int, ...]:
        """Shape of one row (one token) of a routing array."""
        layers, k = self.num_layers, self.top_k
        return {
            "expert_ids": (layers, k),
            "gate_weights": (layers, k),
            "predictions": (layers, self.prediction_depth, k),
            "probabilities": (layers, self.num_experts),
        }[role]

    def dtype(self, role: Role) -> npt.DTypeLike:
        """Stored type of a routing array."""
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
        header = json.loads(json.dumps(header))  # what a reader will see: keys are strings
        return {**header, SELF_HASH: _self_hash(header)}


def read_header(folder: Path) -> Header:
    """Parse and check `trace.json`. Raises `TraceError` naming the file, the field and the rule."""
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
    return Header(version, meta, counts.num_rows, counts.num_requests, files)


def check_self_hash(folder: Path) -> None:
    """Check that `trace.json` is as it was written: damage to it would go unseen otherwise."""
    raw = _read_json(folder)
    found = raw.pop(SELF_HASH, None)
    if found != _self_hash(raw):
        raise TraceError(
            folder / HEADER, SELF_HASH, "does not match: the header was changed or damaged"
        )


def _self_hash(header: dict[str, Any]) -> str:
    """SHA-256 of the header's other fields, as JSON without spaces and with sorted keys."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


_NO_FOLDER = (
    "no such trace folder; make one with `moesim record`, `moesim trace convert` or "
    "`moesim trace synth`"
)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not folder.is_dir():
        raise TraceError(folder, "", _NO_FOLDER)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraceError(
            path,
            "",
            "missing: the folder is not a trace, or its recording never finished; repeat it",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
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
    """The dataclass `kind` from plain JSON, types checked strictly, unknown fields left out."""
    from pydantic import ValidationError

    try:
        parsed: Parsed = _adapter(cast(Any, kind)).validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] == "missing" else f", not {repr(first['input'])[:80]}"
        raise _WrongTypeError(where, first["msg"].lower() + got) from None
    return parsed


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _json_place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}"
    return ""
