"""Health checks: rules that hold for every row and request of a trace.

Each check raises `TraceError` with the file, the offset (row, layer, place) and the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError
from moesim.trace.meta import Role, TraceMeta, read_header

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

Array = npt.NDArray[Any]
_CHUNK_ROWS = 16_384  # bounds the scratch memory of a check
MOST_TOKENS = 2**31
"""Tokens of the longest prompt or output that a trace may hold."""
_AXES: dict[Role, tuple[str, ...]] = {
    "expert_ids": ("row", "layer", "place"),
    "gate_weights": ("row", "layer", "place"),
    "predictions": ("row", "layer", "depth", "place"),
    "probabilities": ("row", "layer", "expert"),
}


def check_shard(
    meta: TraceMeta, role: Role, array: Array, *, file: str, first_row: int = 0
) -> None:
    """Check the values of one shard, `(rows, *meta.row_shape(role))`. Raise `TraceError`."""
    check = _check_ids if role in ("expert_ids", "predictions") else _check_numbers
    for start in range(0, len(array), _CHUNK_ROWS):
        check(meta, role, array[start : start + _CHUNK_ROWS], file, first_row + start)


def _check_ids(meta: TraceMeta, role: Role, ids: Array, file: str, first_row: int) -> None:
    wrong = (ids >= meta.num_experts) & (ids != meta.unused)
    if wrong.any():
        where = _first(wrong)
        raise TraceError(
            file,
            _place(role, where, first_row),
            f"expert id {int(ids[where])} is out of range for {meta.num_experts} experts",
        )
    # Sorted, equal ids are neighbours. Unused places may be equal.
    ordered = np.sort(ids, axis=-1)
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != meta.unused)
    if repeated.any():
        where = _first(repeated)
        raise TraceError(
            file,
            _place(role, where[:-1], first_row),
            f"expert id {int(ordered[..., 1:][where])} is repeated in a row",
        )


def _check_numbers(meta: TraceMeta, role: Role, values: Array, file: str, first_row: int) -> None:
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        where = _first(wrong)
        raise TraceError(
            file,
            _place(role, where, first_row),
            f"weight {float(values[where])} must be finite and not negative",
        )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _place(role: Role, where: tuple[int, ...], first_row: int) -> str:
    numbers = (where[0] + first_row, *where[1:])
    return ", ".join(f"{axis} {n}" for axis, n in zip(_AXES[role], numbers, strict=False))


def check_requests(meta: TraceMeta, requests: dict[str, Array], num_rows: int, file: str) -> None:
    """Check that the request table covers the rows exactly, in order, with the right lengths.

    Raise `TraceError` for the first request that does not.
    """
    prompt, output = requests["prompt_tokens"], requests["output_tokens"]
    rows, first = requests["num_rows"], requests["first_row"]
    recorded = meta.prompt_rows == "recorded"
    expected = output - 1 + (prompt if recorded else 0)
    too_long = f"must be at most {MOST_TOKENS:,}"
    rules = (
        ((prompt < 1), "prompt_tokens must be at least 1"),
        ((prompt > MOST_TOKENS), f"prompt_tokens {too_long}"),
        ((output < 1), "output_tokens must be at least 1"),
        ((output > MOST_TOKENS), f"output_tokens {too_long}"),
        ((rows < 0), "num_rows must not be negative"),
        (
            rows != expected,
            "num_rows must be prompt + output - 1" if recorded else "num_rows must be output - 1",
        ),
        (
            first != np.concatenate(([0], np.cumsum(rows)[:-1])),
            "first_row must follow the rows of the request before",
        ),
    )
    for wrong, rule in rules:
        if wrong.any():
            raise TraceError(file, f"request {int(np.argmax(wrong))}", rule)
    if int(rows.sum()) != num_rows:  # of counts this small, no sum wraps around
        raise TraceError(
            file, "num_rows", f"requests cover {int(rows.sum())} rows, the shards hold {num_rows}"
        )
    arrival = requests["arrival_s"]
    bad = ~np.isnan(arrival) & ((arrival < 0) | np.isinf(arrival))
    if bad.any():
        raise TraceError(file, f"request {int(np.argmax(bad))}", "arrival_s must be ≥ 0 and finite")


def check_prefixes(
    meta: TraceMeta,
    requests: dict[str, Array],
    prefix_blocks: Sequence[Sequence[int]] | None,
    file: str,
) -> None:
    """Check the identities of prompts' token blocks: one for each block, the last may be missing.

    Raise `TraceError` for the first request that breaks this.
    """
    size = meta.prefix_block_tokens
    if (prefix_blocks is None) != (size is None):
        has, lacks = "prefix_block_tokens", "prefix_blocks"
        if size is None:
            has, lacks = lacks, has
        raise TraceError(file, has, f"needs {lacks}, too")
    if prefix_blocks is None or size is None:
        return
    if len(prefix_blocks) != len(requests["num_rows"]):
        raise TraceError(file, "prefix_blocks", "must have one list of blocks a request")
    for number, blocks in enumerate(prefix_blocks):
        prompt = int(requests["prompt_tokens"][number])
        if len(blocks) not in (prompt // size, -(-prompt // size)):
            raise TraceError(
                file,
                f"request {number}",
                f"has {len(blocks)} prefix blocks of {size} tokens for {prompt} prompt tokens",
            )
        if any(type(block) is not int or not 0 <= block < 2**63 for block in blocks):
            raise TraceError(
                file, f"request {number}", "prefix blocks must be whole numbers below 2^63"
            )


def check_static(trace: Trace) -> None:
    """Check a trace whose router is static: all rows of a domain want the same experts per layer.

    Requests without a domain are one task. Other kinds of router are not checked. Raise
    `TraceError` for the first row that differs.
    """
    if trace.meta.router != "static":
        return
    # The first row of each domain is the reference for all its other rows.
    names, task_R = np.unique(trace.requests["domain"], return_inverse=True)
    task_B = np.repeat(task_R, trace.requests["num_rows"])
    present, first = np.unique(task_B, return_index=True)  # a request may have no rows
    first_T = np.zeros(len(names), np.int64)
    first_T[present] = first
    wanted_TLK = np.sort(trace.expert_ids[first_T], axis=-1)
    for start in range(0, trace.num_rows, _CHUNK_ROWS):
        tasks = task_B[start : start + _CHUNK_ROWS]
        ids_BLK = np.sort(trace.expert_ids[start : start + _CHUNK_ROWS], axis=-1)
        other_BL = (ids_BLK != wanted_TLK[tasks]).any(axis=-1)
        if other_BL.any():
            place, layer = _first(other_BL)
            row, task = start + place, int(tasks[place])
            own, expected = (
                [int(expert) for expert in ids if expert != trace.meta.unused]
                for ids in (ids_BLK[place, layer], wanted_TLK[task, layer])
            )
            raise TraceError(
                _file_of(trace, row),
                f"row {row}, domain {str(names[task])!r}, layer {layer}",
                f"wants experts {own}, but row {int(first_T[task])} of that domain {expected}; a "
                "static router sends all rows of a domain to the same",
            )


def _file_of(trace: Trace, row: int) -> str:
    """Return the shard that holds a row's ids; for a trace in memory, their role."""
    if trace.path is None:
        return "expert_ids"
    shards = (entry for entry in read_header(trace.path).files if entry.role == "expert_ids")
    starts = {entry.first_row or 0: entry.path for entry in shards}
    return str(trace.path / starts[max(start for start in starts if start <= row)])
