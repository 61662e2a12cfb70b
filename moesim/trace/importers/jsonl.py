"""JSON lines of your own: one object for each request, or for each token and layer.

A request is `{"expert_ids": [[[3, 7], [0, 1]], ...]}`, tokens of layers of ids, with the optional
keys `gate_weights` (alike), `prompt_tokens`, `domain` and `arrival_s`. A token at a layer is
`{"token": 0, "layer": 1, "experts": [3, 7]}` with the optional keys `request`, `weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.errors import SourceError, shown
from moesim.trace.importers.base import Format, Imported, Options, small_number
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.json_text import integers, numbers
from moesim.trace.importers.routed import Ids, nested
from moesim.trace.importers.source import Glimpse, read_document
from moesim.trace.importers.uses import Arrays, Uses

__all__ = ["FORMAT"]

_REQUEST: Final = frozenset(("expert_ids", "gate_weights", "prompt_tokens", "domain", "arrival_s"))
_USE: Final = frozenset(("request", "token", "layer", "experts", "weights"))


def _sniff(glimpse: Glimpse) -> bool:
    keys = set(glimpse.first_object)
    return "expert_ids" in keys or {"token", "layer", "experts"} <= keys


def _read(path: Path, options: Options) -> Imported:
    records = read_document(path)
    if not records:
        raise SourceError(path, "", "holds no record")
    first = records[0][1]
    by_use = isinstance(first, dict) and "expert_ids" not in first
    known, needed = (_USE, {"token", "layer", "experts"}) if by_use else (_REQUEST, {"expert_ids"})
    for where, record in records:
        if not isinstance(record, dict) or not needed <= set(record):
            raise SourceError(
                path, where, f"must be an object with {', '.join(sorted(needed))}: {shown(record)}"
            )
        if odd := sorted(set(record) - known):
            raise SourceError(
                path, where, f"has the unknown key {odd[0]!r}; known are {', '.join(sorted(known))}"
            )
        if set(record) != set(first):
            raise SourceError(path, where, "has other keys than the first record")
    return (_read_uses if by_use else _read_requests)(path, options, records)


def _read_uses(path: Path, options: Options, records: list[tuple[str, Any]]) -> Imported:
    uses = Uses(path, most_id(path, options), weighted="weights" in records[0][1], unit="record")
    for number, (where, record) in enumerate(records, start=1):
        ids = integers(record["experts"], path, where, "experts", uses.most)
        weights = [0.0] * len(ids)
        if uses.weighted:
            weights = numbers(record["weights"], path, where, "weights")
        if len(weights) != len(ids) or not ids:
            raise SourceError(path, where, f"has {len(ids)} experts and {len(weights)} weights")
        request = record.get("request", "")
        if type(request) not in (int, str):
            raise SourceError(
                path, where, f"request must be a name or number, not {shown(request)}"
            )
        token = small_number(record["token"], path, where, "token")
        layer = small_number(record["layer"], path, where, "layer")
        for expert, weight in zip(ids, weights, strict=True):
            uses.add(number, str(request), token, layer, expert, weight)
    return built(path, FORMAT.name, uses.arrays(options.top_k), options)


def _read_requests(path: Path, options: Options, records: list[tuple[str, Any]]) -> Imported:
    ids: list[Ids] = []
    weights = []
    extra: dict[str, Any] = {
        name: [] for name in ("prompt_tokens", "domain", "arrival_s") if name in records[0][1]
    }
    most = most_id(path, options)
    for where, record in records:
        block = nested(record["expert_ids"], path, where)
        if ids and block.shape[1:] != ids[0].shape[1:]:
            raise SourceError(
                path, where, f"has {block.shape[1:]} layers and experts, not {ids[0].shape[1:]}"
            )
        _check_ids(path, where, block, most)
        ids.append(block)
        if "gate_weights" in record:
            weights.append(_weights(path, where, record["gate_weights"], block))
        for name, column in extra.items():
            column.append(_field(path, where, name, record[name]))
    arrays = Arrays(
        np.concatenate(ids),
        np.concatenate(weights) if weights else None,
        np.array([len(block) for block in ids]),
        tuple(range(ids[0].shape[1])),
        [where for where, _ in records],
    )
    return built(path, FORMAT.name, arrays, options, **extra)


def _check_ids(path: Path, where: str, ids: Ids, most: int) -> None:
    if ids.max() > most:
        raise SourceError(
            path, where, f"expert id {ids.max()} is out of range for {most + 1} experts"
        )
    ordered = np.sort(ids, axis=-1)
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != -1)
    if repeated.any():
        token, layer, place = np.argwhere(repeated)[0]
        raise SourceError(
            path,
            where,
            f"token {token}, layer {layer}: expert id {ordered[token, layer, place]} is repeated",
        )


def _weights(path: Path, where: str, value: Any, ids: Ids) -> Any:
    flat = value if isinstance(value, list) else [value]
    rows = [
        [numbers(one, path, where, "gate_weights") for one in row]
        if isinstance(row, list)
        else [numbers(row, path, where, "gate_weights")]
        for row in flat
    ]
    shapes = {(len(row), len(one)) for row in rows for one in row}
    if shapes != {ids.shape[1:]} or len(rows) != len(ids):
        raise SourceError(path, where, f"gate_weights must have the shape {ids.shape} of the ids")
    return np.array(rows)


def _field(path: Path, where: str, name: str, value: Any) -> Any:
    if name == "prompt_tokens":
        return small_number(value, path, where, name)
    if name == "domain":
        if not isinstance(value, str):
            raise SourceError(path, where, f"domain must be a text, not {shown(value)}")
        return value
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise SourceError(path, where, f"arrival_s must be seconds, not {shown(value)}")
    return float(value)


FORMAT = Format(
    "jsonl",
    "JSON lines with expert_ids for each request, or with token, layer and experts",
    _sniff,
    _read,
)
