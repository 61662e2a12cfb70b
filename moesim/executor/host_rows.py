"""Experts in host memory, as a machine with a disk holds them: some are there, the others on disk.

All experts are written to one temporary file. `HostMemory` says which are in host memory; here each
of these has a row of its own. A read from disk fills a new row. Work that was issued earlier keeps
the row that it was issued with, as a buffer of its layer event. So a row is never overwritten, and
its memory is free after the last use.

A use of an expert that has no row is an error, and so is a use before the read has filled the row.
The file was written a moment before, so the system reads it from its page cache. The time of a read
is therefore that of an emulated disk, or of the page cache.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from torch import Tensor

from moesim.errors import InvariantError, UsageError
from moesim.serving.experts.host_memory import HostMemory

__all__ = ["HostRows", "Reading", "Row"]


class Row:
    """One expert in host memory: `tensor [elements]`, which is whole once it has `landed`.

    `missing_bytes` of it have left host memory since.
    """

    __slots__ = ("key", "landed", "missing_bytes", "tensor")

    def __init__(self, key: int, tensor: Tensor, *, landed: bool = True) -> None:
        self.key = key
        self.tensor = tensor
        self.landed = landed
        self.missing_bytes = 0

    def check(self) -> None:
        """Raise `InvariantError` if the read that fills the row is not over."""
        if not self.landed:
            raise InvariantError(
                4, f"key {self.key} is used from host memory before it was read from disk"
            )


class HostRows:
    """The rows of the experts that `memory` holds, and the file that has all of them.

    `rows [distinct experts, elements]` are the experts; key k is row k modulo their number. One
    thread calls `use`, `read` and `settle`; that of the disk's lane runs what `read` prepares.
    """

    def __init__(self, rows: Tensor, memory: HostMemory) -> None:
        """Write the file. Raise `UsageError` if there is no room for it."""
        self._stored = rows
        self._memory = memory
        self._nbytes = rows.shape[1] * rows.element_size()
        self._file = _written(rows)
        self._lost: set[int] = set()
        memory.on_loss = self._lost.add
        # What is there at the start needs no copy: these rows are only read.
        self._rows: dict[int, Row] = {}
        for key in range(memory.num_experts):
            unread = memory.unread(key)
            if unread < self._nbytes:
                self._rows[key] = row = Row(key, rows[key % len(rows)])
                row.missing_bytes = unread

    def use(self, key: int) -> Row:
        """Return the row of an expert, for work that is issued now.

        Raise `InvariantError` if a part of it is on disk only, and no read is issued.
        """
        row = self._rows.get(key)
        if row is None or row.missing_bytes:
            missing = self._nbytes if row is None else row.missing_bytes
            raise InvariantError(
                4,
                f"key {key} is used from host memory, but {missing} of its {self._nbytes} bytes "
                "are on disk and no read is issued",
            )
        return row

    def read(self, key: int, nbytes: int) -> Reading:
        """Return the work that reads the first `nbytes` of an expert into a new row.

        The rest of it must be in host memory, else `InvariantError` is raised.
        """
        old = self._rows.get(key)
        needed = self._nbytes if old is None else old.missing_bytes
        if nbytes < needed:
            raise InvariantError(
                4, f"{nbytes} bytes of key {key} are read from disk, and {needed} are missing"
            )
        like = self._stored[0]
        tensor = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_pinned())
        self._rows[key] = new = Row(key, tensor, landed=False)
        offset = key % len(self._stored) * self._nbytes
        return Reading(self._file.fileno(), offset, nbytes, new, old)

    def settle(self) -> None:
        """Take out what has left host memory; all work decided so far must be issued."""
        while self._lost:
            key = self._lost.pop()
            unread = self._memory.unread(key)
            if unread >= self._nbytes:
                self._rows.pop(key, None)
            elif key in self._rows:
                self._rows[key].missing_bytes = unread

    def close(self) -> None:
        """Remove the file, and forget the memory."""
        self._memory.on_loss = None
        self._rows.clear()
        self._file.close()


class Reading:
    """A read from disk: call it to fill the row `new`.

    Its first `nbytes` come from the file at `offset`, the others from the row `old`.
    """

    def __init__(self, file: int, offset: int, nbytes: int, new: Row, old: Row | None) -> None:
        self._file = file
        self._offset = offset
        self._nbytes = nbytes
        self._new = new
        self._old = old

    def __call__(self) -> None:
        target, nbytes = _bytes_of(self._new.tensor), self._nbytes
        left, offset = memoryview(target)[:nbytes], self._offset
        while len(left):
            count = os.preadv(self._file, [left], offset)
            if not count:
                raise OSError(f"the file of experts ends at byte {offset}")
            left, offset = left[count:], offset + count
        if nbytes < len(target):
            assert self._old is not None
            self._old.check()
            target[nbytes:] = _bytes_of(self._old.tensor)[nbytes:]
        self._new.landed = True
        self._old = None


def _written(rows: Tensor) -> Any:
    """Return an open temporary file with all rows; it disappears when it is closed."""
    file = tempfile.TemporaryFile(prefix="moesim-experts-")  # noqa: SIM115 - it stays open
    try:
        for row in rows:
            file.write(memoryview(_bytes_of(row)))
        file.flush()
    except OSError as error:
        file.close()
        raise UsageError(
            f"the {rows.numel() * rows.element_size()} bytes of the experts cannot be written to "
            f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with more room"
        ) from None
    return file


def _bytes_of(row: Tensor) -> Any:
    """Return a row as an array of bytes in the same memory."""
    return row.view(torch.uint8).numpy()
