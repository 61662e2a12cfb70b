"""Writing a trace: requests are appended, full shards go to disk, the header is written last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError
from moesim.files import as_path, output_errors, sha256, whole_folder, write_json, write_parquet
from moesim.trace.health import check_prefixes, check_requests, check_shard
from moesim.trace.meta import (
    HEADER,
    PREFIX_BLOCKS,
    REQUESTS,
    ROLES,
    FileEntry,
    Header,
    Role,
    TraceMeta,
)
from moesim.trace.trace import REQUEST_COLUMNS, Trace, as_blocks, as_stored


class TraceWriter:
    """Appends requests to a trace folder, which gets its name only when it is complete.

    Use as a context manager, or call `close()`. An exception inside the block, or `abort()`,
    removes everything. Raises `TraceError` for a request that breaks the format, and `OutputError`
    if the disk fails.
    """

    def __init__(
        self,
        path: str | Path,
        meta: TraceMeta,
        *,
        shard_rows: int = 65_536,
        force: bool = False,
    ) -> None:
        if problem := meta.problem():
            raise TraceError(path, "", problem)
        self.path = as_path(path)
        self.meta = meta
        self._shard_rows = shard_rows
        self._pending: dict[Role, list[npt.NDArray[Any]]] = {}
        self._pending_rows = 0
        self._num_rows = 0
        self._num_shards = 0
        self._requests: dict[str, list[Any]] = {name: [] for name in REQUEST_COLUMNS}
        self._prefix_blocks: list[tuple[int, ...]] = []
        self._files: list[FileEntry] = []
        self._trace: Trace | None = None
        self._folder: AbstractContextManager[Path] | None = whole_folder(
            self.path, force=force, ours=(HEADER,)
        )
        self._partial = self._folder.__enter__()

    def add_request(
        self,
        *,
        expert_ids: npt.ArrayLike,
        gate_weights: npt.ArrayLike | None = None,
        predictions: npt.ArrayLike | None = None,
        probabilities: npt.ArrayLike | None = None,
        prompt_tokens: int,
        output_tokens: int,
        arrival_s: float | None = None,
        domain: str | None = None,
        prefix_blocks: Sequence[int] | None = None,
    ) -> None:
        """Append one request; arrays as in `Trace`, -1 for unused places, prompt rows first.

        `prefix_blocks` are the identities of the prompt's blocks, if the header has
        `prefix_block_tokens`.

        Raise `TraceError` for arrays or lengths that break the format.
        """
        sources = {
            "expert_ids": expert_ids,
            "gate_weights": gate_weights,
            "predictions": predictions,
            "probabilities": probabilities,
        }
        number = len(self._requests["num_rows"])
        if problem := _request_problem(prompt_tokens, output_tokens, arrival_s):
            raise TraceError(self.path, f"request {number}", problem)
        stored = {
            role: as_stored(self.meta, role, np.asarray(sources[role]))
            for role in ROLES
            if sources[role] is not None
        }
        self._check_request(number, stored, prompt_tokens, output_tokens)
        blocks = None if prefix_blocks is None else as_blocks([prefix_blocks])
        one = {"num_rows": np.zeros(1), "prompt_tokens": np.array([prompt_tokens])}
        check_prefixes(self.meta, one, blocks, f"{self.path}, request {number}")
        rows = len(stored["expert_ids"])
        # Only now, so that a request that is refused leaves nothing behind.
        for role, array in stored.items():
            self._pending.setdefault(role, []).append(array)
        values = (
            prompt_tokens,
            output_tokens,
            float("nan") if arrival_s is None else arrival_s,
            domain or "",
            self._num_rows,
            rows,
        )
        for name, value in zip(REQUEST_COLUMNS, values, strict=True):
            self._requests[name].append(value)
        if blocks is not None:
            self._prefix_blocks += blocks
        self._num_rows += rows
        self._pending_rows += rows
        if self._pending_rows >= self._shard_rows:
            self._flush()

    def _check_request(
        self,
        number: int,
        arrays: Mapping[Role, npt.NDArray[Any]],
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        """Raise `TraceError` if the arrays of a request do not fit its lengths or the header."""
        if number and arrays.keys() != self._pending.keys():
            raise TraceError(
                self.path, f"request {number}", "has other arrays than the requests before it"
            )
        expected = output_tokens - 1
        expected += prompt_tokens if self.meta.prompt_rows == "recorded" else 0
        for role, array in arrays.items():
            if len(array) != expected:
                raise TraceError(
                    self.path,
                    f"request {number}, {role}",
                    f"{prompt_tokens} prompt and {output_tokens} output tokens need {expected} "
                    f"rows, not {len(array)}",
                )
            check_shard(self.meta, role, array, file=role, first_row=self._num_rows)

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        first_row = self._num_rows - self._pending_rows
        for role, arrays in self._pending.items():
            array = np.concatenate(arrays)
            name = f"{role}-{self._num_shards:05d}.npy"
            self._add_file(
                name,
                partial(_write_array, array=array),
                role=role,
                first_row=first_row,
                shape=array.shape,
                dtype=str(array.dtype),
            )
            arrays.clear()
        self._num_shards += 1
        self._pending_rows = 0

    def _add_file(self, name: str, write: Callable[[Path], object], **shard: Any) -> None:
        path = self._partial / name
        with output_errors(self.path):
            write(path)
            entry = FileEntry(name, path.stat().st_size, sha256(path), **shard)
        self._files.append(entry)

    def close(self) -> Trace:
        """Write the remaining rows, then the header; give the folder its name; return the trace."""
        from moesim.trace.reader import load_trace

        if self._folder is None:
            return self.trace
        try:
            if not self._num_rows:
                raise TraceError(self.path, "", "a trace needs at least one row")
            self._flush()
            columns = {name: np.asarray(self._requests[name]) for name in REQUEST_COLUMNS}
            check_requests(self.meta, columns, self._num_rows, REQUESTS)
            table = dict(self._requests)
            if self.meta.prefix_block_tokens is not None:
                table[PREFIX_BLOCKS] = self._prefix_blocks
            self._add_file(REQUESTS, lambda path: _write_requests(path, table))
            # Last, because a folder with a header counts as complete.
            header = Header(
                self.meta.version,
                self.meta,
                self._num_rows,
                len(columns["num_rows"]),
                tuple(self._files),
            )
            with output_errors(self.path):
                write_json(self._partial / HEADER, header.as_dict())
        except BaseException:  # also Ctrl-C: nothing half-written must stay behind
            self.abort()
            raise
        folder, self._folder = self._folder, None
        folder.__exit__(None, None, None)
        self._trace = load_trace(self.path)
        return self._trace

    def abort(self) -> None:
        """Remove everything written so far."""
        if self._folder is not None:
            folder, self._folder = self._folder, None
            # The folder removes itself on an error, and raises that error again.
            stop = RuntimeError("trace abandoned")
            try:
                folder.__exit__(RuntimeError, stop, None)
            except RuntimeError as error:
                if error is not stop:
                    raise

    @property
    def trace(self) -> Trace:
        """Return the finished trace. Raise `TraceError` before `close()`."""
        if self._trace is None:
            raise TraceError(self.path, "", "the trace is not finished yet")
        return self._trace

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _request_problem(prompt_tokens: int, output_tokens: int, arrival_s: float | None) -> str | None:
    for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if value < 1:
            return f"{name} must be at least 1, not {value}"
    if arrival_s is not None and not (np.isnan(arrival_s) or 0 <= arrival_s < float("inf")):
        return f"arrival_s must be ≥ 0 and finite, not {arrival_s}"
    return None


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    # On failure `np.save` reports how much it wrote; a plain write reports why (a full disk).
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


def _write_requests(path: Path, requests: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    types = {
        "arrival_s": pa.float64(),
        "domain": pa.string(),
        PREFIX_BLOCKS: pa.list_(pa.int64()),
    }
    columns = {
        name: pa.array(values, type=types.get(name, pa.int64()))
        for name, values in requests.items()
    }
    write_parquet(path, columns)
