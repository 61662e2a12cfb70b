"""Reading files from outside moesim: regular files only, and only up to a size.

A device or a named pipe has no end. A file of gigabytes fills the memory before any check of
its content can run. Errors of the file are `OSError`, errors of its content `ValueError`; each
reader turns them into its own message. Arrow never gets a name to interpret, because
it reads a name like `s3:run` as an address.

A worker of a sweep may lack the paths that a scenario names. It then reads copies (`read_copies`).
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

__all__ = [
    "MOST_TEXT",
    "check_regular",
    "copy_of",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_copies",
    "read_json",
    "read_table",
]

MOST_TEXT: Final = 16 << 20
"""Bytes of the largest text file that is read: JSON of this size takes about a second."""

MOST_TABLE: Final = 2 << 30
"""Bytes of the largest table that is read, as stored and as unpacked."""

_KINDS: Final = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a named pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)

_copies: dict[str, str] = {}


@contextmanager
def read_copies(copies: Mapping[str, str]) -> Iterator[None]:
    """Read each of these paths of a scenario at another place while the block runs."""
    before = dict(_copies)
    _copies.update(copies)
    try:
        yield
    finally:
        _copies.clear()
        _copies.update(before)


def copy_of(path: str) -> str:
    """Return the place at which a path of a scenario is read: its copy, or the path itself."""
    return _copies.get(path, path)


def check_regular(status: os.stat_result) -> None:
    """Raise `OSError` where a file is a folder, a device or a pipe."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "is something else")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading. Raise `OSError` for anything else."""
    # Without O_NONBLOCK, opening a pipe would wait for a process that writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        check_regular(os.fstat(descriptor))  # of the open file: the path may change meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str], most: int = MOST_TEXT) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raise `OSError` otherwise."""
    with open_regular(path) as file:
        data = file.read(most + 1)  # a size from `stat` could be out of date
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most:,} bytes, the most that is read")
    return data


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the JSON value in a file, nested at most 200 deep.

    Raise `OSError` where the file cannot be read and `ValueError` where it holds no such JSON.
    """
    return parse_json(read_bytes(path))


def parse_json(text: bytes) -> Any:
    """Return the JSON value in a text, nested at most 200 deep. Raise `ValueError` otherwise."""
    from pydantic_core import from_json

    # The json module of Python fails on deep nesting with a RecursionError.
    return from_json(text)


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Any:
    """Return a Parquet file, or some of its columns, as an Arrow table.

    `columns` limits the table to these, in this order; None reads all.

    Raises:
        OSError: the file cannot be read.
        KeyError: the file lacks a column; the first such is the argument.
        ValueError: the content is not Parquet, is too large, or has a column twice.
    """
    import pyarrow
    import pyarrow.parquet

    # Arrow reads in its own threads. A thread that holds a Python object while Python ends aborts
    # the process. So Arrow opens the file itself, after the check that it is a regular file.
    with open_regular(path) as file:
        try:
            source = pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path)))
            _check_size(source.metadata, os.fstat(file.fileno()).st_size)
            names = source.schema_arrow.names
            wanted = list(names if columns is None else columns)
            if missing := [name for name in wanted if name not in names]:
                raise KeyError(missing[0])
            if repeated := [name for name in wanted if names.count(name) > 1]:
                raise ValueError(f"has several columns called {repeated[0]!r}")
            return source.read(columns=wanted, use_threads=False)
        except (OSError, pyarrow.ArrowException, OverflowError, MemoryError) as error:
            raise ValueError(f"cannot be read as Parquet: {_first_line(error)}") from None


def _check_size(metadata: Any, stored: int) -> None:
    """Raise ValueError where a table is too large, before any of it is unpacked."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    rows = sum(group.num_rows for group in groups)
    # Rows count too: a column of one repeated value takes few bytes for billions of rows.
    if max(stored, unpacked, rows) > MOST_TABLE:
        raise ValueError(
            f"holds {max(stored, unpacked):,} bytes and {rows:,} rows; at most {MOST_TABLE:,} of "
            "either are read"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
