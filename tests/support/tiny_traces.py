"""Traces small enough to read, with functions that compare and damage them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moesim.trace import Trace, TraceWriter
from moesim.trace.meta import ROLES

EXPERTS = 5


def tiny_arrays(rows: int = 11, layers: int = 2, top_k: int = 2, depth: int = 1) -> dict[str, Any]:
    """Return random arrays that obey the format, with some unused places."""
    rng = np.random.default_rng(3)
    ids = rng.random((rows, layers, EXPERTS)).argsort(axis=-1)[..., :top_k]
    ids[::4, 0, -1] = -1
    weights = rng.random(ids.shape)
    weights[ids == -1] = 0
    guesses = rng.random((rows, layers, depth, EXPERTS)).argsort(axis=-1)[..., :top_k]
    guesses[:, -1] = -1
    probabilities = rng.dirichlet(np.ones(EXPERTS), (rows, layers))
    return {
        "expert_ids": ids,
        "gate_weights": weights,
        "predictions": guesses,
        "probabilities": probabilities,
    }


def tiny_trace(**changes: Any) -> Trace:
    """Return three requests of 5, 2 and 4 rows with all optional arrays, changed by `changes`."""
    arguments = {
        **tiny_arrays(),
        "seq_len": [5, 2, 4],
        "prompt_tokens": [3, 2, 1],
        "num_experts": EXPERTS,
        "domain": ["code", "prose", ""],
        "arrival_s": [0.0, 1.5, np.nan],
        "model": "tiny",
        "provenance": {"seed": 3, "note": "für Tests"},
    }
    return Trace.from_arrays(**{**arguments, **changes})


def save_sharded(trace: Trace, path: Path, shard_rows: int) -> Trace:
    """Save a trace with shards of about `shard_rows` rows (a shard ends with a request)."""
    with TraceWriter(path, trace.meta, shard_rows=shard_rows) as writer:
        for number in range(trace.num_requests):
            columns = {name: column[number] for name, column in trace.requests.items()}
            writer.add_request(
                **{
                    role: getattr(trace, role)[trace.slice(number)]
                    for role in ROLES
                    if getattr(trace, role) is not None
                },
                prompt_tokens=int(columns["prompt_tokens"]),
                output_tokens=int(columns["output_tokens"]),
                arrival_s=None if np.isnan(columns["arrival_s"]) else float(columns["arrival_s"]),
                domain=columns["domain"] or None,
            )
    return writer.trace


def assert_same(left: Trace, right: Trace) -> None:
    """Assert that two traces have the same header, requests and values, bit by bit."""
    assert left.meta == right.meta
    for name, column in left.requests.items():
        np.testing.assert_array_equal(column, right.requests[name], err_msg=name)
    for role in ROLES:
        mine, other = getattr(left, role), getattr(right, role)
        assert (mine is None) == (other is None), role
        if mine is not None:
            assert mine.dtype == other.dtype, role
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(other), err_msg=role)


def read_header(folder: Path) -> Any:
    return json.loads((folder / "trace.json").read_text(encoding="utf-8"))


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Write a header with the right hash of itself, so that only its content can be wrong."""
    header = {key: value for key, value in header.items() if key != "header_sha256"}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    header["header_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "trace.json").write_text(json.dumps(header), encoding="utf-8")


def edit_header(folder: Path, **changes: Any) -> None:
    """Change fields of the header; `...` removes one."""
    header = {**read_header(folder), **changes}
    write_header(folder, {key: value for key, value in header.items() if value is not ...})


def adopt(folder: Path, name: str) -> None:
    """Write the size and hash of a changed file into the header, so that hashes hide no damage."""
    header = read_header(folder)
    data = (folder / name).read_bytes()
    for entry in header["files"]:
        if entry["path"] == name:
            entry["bytes"] = len(data)
            entry["sha256"] = hashlib.sha256(data).hexdigest()
    write_header(folder, header)


def edit_shard(folder: Path, name: str, edit: Callable[[Any], Any]) -> None:
    """Change an array on disk (in place, or to what `edit` returns), and its header entry."""
    array = np.load(folder / name)
    changed = edit(array)
    array = array if changed is None else changed
    np.save(folder / name, array)
    header = read_header(folder)
    for entry in header["files"]:
        if entry["path"] == name:
            entry.update(shape=list(array.shape), dtype=str(array.dtype))
    write_header(folder, header)
    adopt(folder, name)
