"""Rows spread over shards, read as one array without loading them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Rows:
    """A read-only array whose first axis (tokens) runs over several shards.

    Indexing with a number, a slice or an array of row numbers copies only those rows. A single
    shard (the usual case) is as fast as numpy itself. `np.asarray(rows)` loads everything.
    """

    __slots__ = ("_borders", "_shards", "_starts", "_stored", "dtype", "shape")

    def __init__(self, shards: Sequence[Array]) -> None:
        self._stored = list(shards)
        # Plain views: each use of numpy's own type of a mapped file calls Python code.
        self._shards = [np.asarray(shard) for shard in shards]
        sizes = [len(shard) for shard in shards]
        self._starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._borders: list[int] = self._starts.tolist()
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *shards[0].shape[1:])
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        if len(self._shards) == 1:
            return np.asarray(self._shards[0][index])
        if isinstance(index, slice):
            return self._take(np.arange(*index.indices(len(self))))
        if isinstance(index, tuple):
            first, *rest = index
            if not isinstance(first, (int, np.integer, slice)):
                raise TypeError("with further axes, rows are indexed by a number or a slice")
            across = [slice(None)] if isinstance(first, slice) else []
            return np.asarray(self[first][(*across, *rest)])
        rows = np.asarray(index)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        taken = self._take(rows.reshape(-1))
        return taken.reshape(*rows.shape, *self.shape[1:])

    def _take(self, rows: npt.NDArray[np.int64]) -> Array:
        if len(rows):
            # The rows of a request follow each other, so they are mostly in one shard.
            low, high = int(rows.min()), int(rows.max())
            number = bisect_right(self._borders, low) - 1
            if low >= 0 and number < len(self._shards) and high < self._borders[number + 1]:
                return np.asarray(self._shards[number][rows - self._borders[number]])
        rows = np.where(rows < 0, rows + len(self), rows)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        # Shard by shard, so that each is read in one indexing operation.
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            out[mine] = self._shards[number][rows[mine] - self._starts[number]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = np.concatenate(self._shards) if len(self._shards) > 1 else self._shards[0]
        return np.asarray(whole, dtype=dtype)

    def pieces(self) -> list[tuple[int, Array]]:
        """Return (first row, shard) pairs, for one pass over all rows in bounded memory."""
        return list(zip(self._starts[:-1].tolist(), self._stored, strict=True))
