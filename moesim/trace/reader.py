"""Opening a trace folder: sizes and shapes are checked, values stay on disk until they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import TraceError
from moesim.files import as_path, sha256
from moesim.inputs import check_regular, read_table
from moesim.trace.health import check_prefixes, check_requests, check_shard, check_static
from moesim.trace.meta import (
    HEADER,
    PREFIX_BLOCKS,
    REQUESTS,
    ROLES,
    FileEntry,
    Header,
    Role,
    check_self_hash,
    read_header,
)
from moesim.trace.rows import Rows
from moesim.trace.trace import REQUEST_COLUMNS, Trace


def load_trace(path: str | Path) -> Trace:
    """Open a trace folder, memory-mapped, so that big traces open at once.

    Check the header, the size, shape and type of every shard, and the request table.
    `validate_trace` also checks values and hashes. Raise `TraceError` with file, place and reason.
    """
    folder = as_path(path)
    header = read_header(folder)
    # First, so that a device or a pipe is refused before anything reads it.
    for entry in header.files:
        _check_size(folder, entry)
    arrays = {
        role: Rows(shards) for role in ROLES if (shards := _open_shards(folder, header, role))
    }
    if "expert_ids" not in arrays:
        raise TraceError(folder / HEADER, "files", "lists no expert_ids shard")
    if not any(entry.path == REQUESTS for entry in header.files):
        raise TraceError(folder / HEADER, "files", f"does not list {REQUESTS}")
    for role, rows in arrays.items():
        if len(rows) != header.num_rows:
            raise TraceError(
                folder / HEADER, "num_rows", f"is {header.num_rows}, {role} has {len(rows)}"
            )
    requests = _read_requests(folder / REQUESTS)
    if len(requests["num_rows"]) != header.num_requests:
        raise TraceError(
            folder / REQUESTS,
            "",
            f"has {len(requests['num_rows'])} requests, the header says {header.num_requests}",
        )
    check_requests(header.meta, requests, header.num_rows, str(folder / REQUESTS))
    blocks = None
    if header.meta.prefix_block_tokens is not None:
        blocks = _read_blocks(folder / REQUESTS)
        check_prefixes(header.meta, requests, blocks, str(folder / REQUESTS))
    return Trace(header.meta, requests, arrays, folder, blocks)


def validate_trace(path: str | Path) -> Trace:
    """Open a trace and check everything: hashes of all files, then every value.

    Raise `TraceError` with file, place and reason.
    """
    folder = as_path(path)
    trace = load_trace(folder)
    # The header first: all other hashes are in it.
    check_self_hash(folder)
    header = read_header(folder)
    for entry in header.files:
        try:
            actual = sha256(folder / entry.path)
        except OSError as error:
            raise TraceError(folder / entry.path, "", f"cannot be read ({error})") from None
        if actual != entry.sha256:
            raise TraceError(
                folder / entry.path,
                f"bytes 0..{entry.bytes}",
                f"SHA-256 is {actual[:12]}…, the header says {entry.sha256[:12]}…: "
                "the file was changed, damaged or replaced",
            )
    for entry in header.files:
        if entry.role is not None:
            file = folder / entry.path
            array = _open_shard(file, header, entry)
            check_shard(
                header.meta, entry.role, array, file=str(file), first_row=entry.first_row or 0
            )
    check_static(trace)
    return trace


def _check_size(folder: Path, entry: FileEntry) -> None:
    file = folder / entry.path
    try:
        status = file.stat()
    except OSError as error:
        raise TraceError(file, "", f"cannot be read ({error.strerror})") from None
    try:
        check_regular(status)
    except OSError as error:
        raise TraceError(file, "", str(error.strerror)) from None
    size = status.st_size
    if size != entry.bytes:
        raise TraceError(
            file,
            f"byte {min(size, entry.bytes)}",
            f"the file has {size} bytes, the header says {entry.bytes}",
        )


def _open_shards(folder: Path, header: Header, role: Role) -> list[npt.NDArray[Any]]:
    entries = sorted(
        (entry for entry in header.files if entry.role == role),
        key=lambda entry: entry.first_row or 0,
    )
    shards = []
    next_row = 0
    for entry in entries:
        if entry.first_row != next_row:
            raise TraceError(
                folder / entry.path,
                f"row {entry.first_row}",
                f"shards leave a gap or overlap: expected row {next_row} next",
            )
        shards.append(_open_shard(folder / entry.path, header, entry))
        next_row += len(shards[-1])
    return shards


def _open_shard(file: Path, header: Header, entry: FileEntry) -> npt.NDArray[Any]:
    assert entry.role is not None
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # numpy's parser raises many kinds of error on a damaged array
        raise TraceError(file, "", f"is not a readable array: {error}") from None
    expected = header.meta.row_shape(entry.role)
    if array.shape[1:] != expected:
        raise TraceError(file, "shape", f"is {array.shape}, rows must be {expected}")
    actual = (array.dtype, str(array.dtype), array.shape)
    if actual != (header.meta.dtype(entry.role), entry.dtype, entry.shape):
        raise TraceError(
            file,
            "shape",
            f"is {array.dtype} {array.shape}, the header says {entry.dtype} {entry.shape}",
        )
    return array


def _counts(column: npt.NDArray[Any], file: Path, name: str) -> npt.NDArray[np.int64]:
    """A column of whole numbers as int64; a narrower type would wrap around when summed."""
    if not np.issubdtype(column.dtype, np.integer):
        raise TraceError(file, name, f"must hold whole numbers, not {column.dtype}")
    if column.dtype == np.uint64 and (large := column > np.iinfo(np.int64).max).any():
        row = int(np.argmax(large))
        raise TraceError(file, f"request {row}", f"{name} is {column[row]}, which is too large")
    return column.astype(np.int64)


def _read_blocks(file: Path) -> list[tuple[int, ...]]:
    """Return the identities of the blocks of each request's prompt. Raise `TraceError`."""
    try:
        lists = read_table(file, [PREFIX_BLOCKS]).column(PREFIX_BLOCKS).to_pylist()
        return [tuple(blocks) for blocks in lists]
    except KeyError as error:
        raise TraceError(file, "", f"has no column {error.args[0]!r}") from None
    except Exception as error:  # pyarrow raises many kinds of error too
        raise TraceError(file, PREFIX_BLOCKS, f"is not readable: {error}") from None


def _read_requests(file: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        table = read_table(file, REQUEST_COLUMNS)
        columns = {name: table.column(name).to_numpy() for name in REQUEST_COLUMNS}
    except KeyError as error:
        raise TraceError(file, "", f"has no column {error.args[0]!r}") from None
    except Exception as error:  # pyarrow raises many kinds of error too
        raise TraceError(file, "", f"is not a readable request table: {error}") from None
    for name in ("prompt_tokens", "output_tokens", "first_row", "num_rows"):
        columns[name] = _counts(columns[name], file, name)
    if not np.issubdtype(columns["arrival_s"].dtype, np.floating):
        raise TraceError(file, "arrival_s", "must hold numbers (seconds)")
    columns["arrival_s"] = columns["arrival_s"].astype(np.float64)
    if not all(isinstance(name, str) for name in columns["domain"]):
        raise TraceError(file, "domain", "must hold text, empty where unknown")
    return columns
