"""Dumps of SGLang's expert distribution recorder (srt/eplb/expert_distribution.py).

`per_token` holds each token's *physical* expert ids, which `last_physical_to_logical_map` turns
into logical ones; requests are found from positions, because the dump has no request ids.
`per_pass` holds counts of each forward pass, and `stat` counts of logical experts. Both become
synthetic traces that are fitted to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError, shown
from moesim.trace.importers.base import MOST_EXPERTS, Format, Imported, Options
from moesim.trace.importers.build import built, most_id
from moesim.trace.importers.fitted import fitted_to_counts
from moesim.trace.importers.sequences import Pass, joined
from moesim.trace.importers.source import Glimpse, read_document
from moesim.trace.importers.torch_file import load_torch
from moesim.trace.importers.uses import Arrays

__all__ = ["FORMAT"]

Array = npt.NDArray[Any]
_PRIMARY: Final = "primary"
_EXTEND, _DECODE = 1, 2  # forward modes; 3 mixes them, and larger ones are for speculation


def _sniff(glimpse: Glimpse) -> bool:
    return glimpse.is_torch or "logical_count" in glimpse.first_object


def _read(path: Path, options: Options) -> Imported:
    if Glimpse(path).head.startswith(b"PK"):
        dump = load_torch(path)
    else:
        ((_, dump),) = read_document(path)[:1] or [("", None)]
    if not isinstance(dump, dict):
        raise SourceError(path, "", f"holds {_kind(dump)}; expected {FORMAT.expects}")
    if "logical_count" in dump:
        return _read_stat(path, dump["logical_count"], options)
    if not {"records", "last_physical_to_logical_map"} <= set(dump):
        raise SourceError(
            path, "", f"has the keys {shown(sorted(map(str, dump)))}; expected {FORMAT.expects}"
        )
    return _read_records(path, dump, options)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _read_stat(path: Path, value: Any, options: Options) -> Imported:
    """Return the trace fitted to `logical_count` (steps, layers, experts), summed over steps."""
    counts = _integers(path, "logical_count", value)
    if counts.ndim == 3:
        counts = counts.sum(axis=0)
    if counts.ndim != 2:
        raise SourceError(
            path, "logical_count", f"must be (steps, layers, experts), not {counts.shape}"
        )
    return fitted_to_counts(path, FORMAT.name, counts, options, provenance={"mode": "stat"})


def _read_records(path: Path, dump: dict[str, Any], options: Options) -> Imported:
    records = dump["records"]
    logical_LP = _map(path, dump["last_physical_to_logical_map"])
    if not isinstance(records, list) or not records:
        raise SourceError(path, "records", f"must be a list of passes, not {_kind(records)}")
    for number, record in enumerate(records):
        _check_record(path, number, record, records[0])
    if "topk_ids_of_layer" not in records[0]:
        return _read_passes(path, records, logical_LP, options)
    return _read_tokens(path, records, logical_LP, options)


def _check_record(path: Path, number: int, record: Any, first: Any) -> None:
    where = f"record {number}"
    needed = {"global_physical_count", "topk_ids_of_layer"}
    if not isinstance(record, dict) or not needed & set(record):
        raise SourceError(
            path, where, "must be a dict with topk_ids_of_layer or global_physical_count"
        )
    if set(record) != set(first):
        raise SourceError(path, where, "has other keys than the first record")
    if record.get("gatherer_key", _PRIMARY) != _PRIMARY:
        raise SourceError(
            path, where, f"is of gatherer {shown(record['gatherer_key'])}, not {_PRIMARY!r}"
        )
    if record.get("rank") != first.get("rank"):
        raise SourceError(path, where, "is of another rank than the first record")


def _map(path: Path, value: Any) -> Array:
    name = "last_physical_to_logical_map"
    logical_LP = _integers(path, name, value)
    if logical_LP.ndim != 2 or not logical_LP.size:
        raise SourceError(path, name, f"must be (layers, physical experts), not {logical_LP.shape}")
    if logical_LP.min() < 0 or logical_LP.max() >= MOST_EXPERTS:
        raise SourceError(path, name, "holds an expert id out of range")
    experts = int(logical_LP.max()) + 1
    for layer, logical_P in enumerate(logical_LP):
        if len(np.unique(logical_P)) != experts:
            absent = np.setdiff1d(np.arange(experts), logical_P)[0]
            raise SourceError(
                path, name, f"layer {layer} has no physical expert for expert {absent}"
            )
    return logical_LP


def _physical_counts(path: Path, where: str, record: dict[str, Any], logical_LP: Array) -> Array:
    """Return the counts of physical experts of a pass, (layers, physical experts)."""
    counts_LP = _integers(path, f"{where}, global_physical_count", record["global_physical_count"])
    if counts_LP.shape != logical_LP.shape or counts_LP.min() < 0:
        raise SourceError(
            path,
            where,
            f"global_physical_count must hold counts of shape {logical_LP.shape}, not "
            f"{counts_LP.shape}",
        )
    return counts_LP


def _read_passes(path: Path, records: list[Any], logical_LP: Array, options: Options) -> Imported:
    total_LP = np.zeros(logical_LP.shape, np.int64)
    for number, record in enumerate(records):
        total_LP += _physical_counts(path, f"record {number}", record, logical_LP)
    counts_LE = np.zeros((len(logical_LP), int(logical_LP.max()) + 1), np.int64)
    np.add.at(counts_LE, (np.arange(len(logical_LP))[:, None], logical_LP), total_LP)
    return fitted_to_counts(path, FORMAT.name, counts_LE, options, provenance={"mode": "per_pass"})


def _read_tokens(path: Path, records: list[Any], logical_LP: Array, options: Options) -> Imported:
    blocks, passes = [], []
    for number, record in enumerate(records):
        where = f"record {number}"
        ids = _physical(path, where, record, logical_LP)
        passes.append(_pass(path, where, record, ids.shape[1]))
        blocks.append(ids)
    used_L = np.array([any((ids[layer] != -1).any() for ids in blocks)
                       for layer in range(len(logical_LP))])  # fmt: skip
    if not used_L.any():
        raise SourceError(path, "", "no token uses an expert at any layer")
    k = max(int((ids != -1).sum(axis=2).max(initial=0)) for ids in blocks)
    if options.top_k not in (None, k):
        raise SourceError(path, "", f"has {k} experts a token, and --top-k says {options.top_k}")
    layers = np.flatnonzero(used_L)
    rows = []
    for number, ids in enumerate(blocks):
        rows.append(_logical(path, f"record {number}", ids[layers], k, logical_LP[layers], layers))
    sequences, guesses = joined(path, passes, guess=options.guess_requests)
    order = np.concatenate([np.array(sequence.rows) for sequence in sequences])
    notes = [f"{len(sequences)} requests, found from the positions of tokens"]
    if guesses:
        notes.append(
            f"GUESSED: in {guesses} passes two requests stood at one position and one of them "
            "ended; the first continues, so these may have swapped their later tokens"
        )
    if len(layers) < len(logical_LP):
        left = ", ".join(map(str, np.flatnonzero(~used_L)))
        notes.append(f"layers without routing are left out: {left}")
    arrays = Arrays(
        np.concatenate(rows)[order],
        None,
        np.array([len(sequence.rows) for sequence in sequences]),
        tuple(layers.tolist()),
        [],
    )
    experts = int(logical_LP.max()) + 1
    most_id(path, options, experts)
    return built(
        path, FORMAT.name, arrays, options, stated_experts=experts, notes=notes,
        prompt_tokens=[sequence.prompt_tokens for sequence in sequences],
        provenance={"mode": "per_token"},
    )  # fmt: skip


def _physical(path: Path, where: str, record: dict[str, Any], logical_LP: Array) -> Array:
    """Return physical ids (layers, tokens, places) of one pass, checked against its counts."""
    ids = _integers(path, f"{where}, topk_ids_of_layer", record["topk_ids_of_layer"])
    layers, physical = logical_LP.shape
    if ids.ndim != 3 or len(ids) != layers:
        raise SourceError(
            path,
            where,
            f"topk_ids_of_layer must be (layers, tokens, places) of {layers} layers, not "
            f"{ids.shape}",
        )
    wrong = (ids < -1) | (ids >= physical)
    if wrong.any():
        layer, token, place = np.argwhere(wrong)[0]
        raise SourceError(
            path,
            where,
            f"layer {layer}, token {token}: physical expert {ids[layer, token, place]} is out of "
            f"range for {physical}",
        )
    if "global_physical_count" not in record:
        return ids
    counts = _physical_counts(path, where, record, logical_LP)
    for layer in range(layers):
        own = ids[layer][ids[layer] != -1]
        if (np.bincount(own, minlength=physical) != counts[layer]).any():
            raise SourceError(
                path, where, f"layer {layer}: topk_ids_of_layer disagrees with the pass's counts"
            )
    return ids


def _logical(path: Path, where: str, ids: Array, k: int, logical_LP: Array, layers: Array) -> Array:
    """Return logical ids (tokens, layers, k). Every token uses k experts at every layer."""
    short = (ids != -1).sum(axis=2) != k
    if short.any():
        layer, token = np.argwhere(short)[0]
        raise SourceError(
            path,
            where,
            f"token {token} uses {int((ids[layer, token] != -1).sum())} experts at layer "
            f"{layers[layer]}, and others use {k}",
        )
    tokens = ids.shape[1]
    physical = ids[ids != -1].reshape(len(layers), tokens, k)
    logical = np.stack([logical_P[rows] for logical_P, rows in zip(logical_LP, physical,
                                                                   strict=True)])  # fmt: skip
    ordered = np.sort(logical, axis=-1)
    repeated = ordered[..., 1:] == ordered[..., :-1]
    if repeated.any():
        layer, token, place = np.argwhere(repeated)[0]
        raise SourceError(
            path,
            where,
            f"layer {layers[layer]}, token {token}: expert {ordered[layer, token, place]} is "
            "repeated; the map from physical experts may have changed while recording",
        )
    return logical.transpose(1, 0, 2)


def _pass(path: Path, where: str, record: dict[str, Any], tokens: int) -> Pass:
    """Return positions and new tokens of each request in a pass."""
    positions = _list(path, where, record, "positions")
    if len(positions) != tokens or len(_list(path, where, record, "input_ids")) != tokens:
        raise SourceError(
            path, where, f"has {len(positions)} positions and routing of {tokens} tokens"
        )
    if not tokens:
        return Pass(where, [], None)
    lengths = record.get("extend_seq_lens")
    expected = _DECODE if lengths is None else _EXTEND
    mode = record.get("forward_mode", expected)
    if type(mode) is not int or mode != expected:
        raise SourceError(
            path,
            where,
            f"has forward mode {shown(mode)}: only passes of prompts or of one new token each are "
            "read; record without mixed chunks and speculative decoding",
        )
    if lengths is None:
        return Pass(where, positions, None)
    lengths = _list(path, where, record, "extend_seq_lens")
    if sum(lengths) != tokens or min(lengths, default=0) < 1:
        raise SourceError(
            path, where, f"extend_seq_lens adds up to {sum(lengths)} tokens, not {tokens}"
        )
    return Pass(where, positions, lengths)


def _list(path: Path, where: str, record: dict[str, Any], name: str) -> list[int]:
    value = record.get(name)
    if not isinstance(value, list) or not all(
        type(item) is int and 0 <= item < 2**31 for item in value
    ):
        raise SourceError(path, where, f"{name} must be a list of whole numbers")
    return value


def _integers(path: Path, where: str, value: Any) -> Array:
    """Return a tensor or nested list of integers as an array. Raise `SourceError` for others."""
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except Exception as error:  # ragged lists, or a tensor that is not dense
        raise SourceError(path, where, f"must be an array of integers: {error}") from None
    if array.dtype.kind not in "iu":
        raise SourceError(path, where, f"must hold integers, not {array.dtype}")
    return array.astype(np.int64)


FORMAT = Format(
    "sglang",
    "a dump of SGLang's expert distribution recorder: a .pt with records and "
    "last_physical_to_logical_map, or logical_count (.pt or .json)",
    _sniff,
    _read,
)
