"""Unions as columns: the distinct experts of a step in each layer, and the rows that want each.

The *union* of a layer is in order of first appearance: by row of the batch, then by place.

Shapes: B rows, L trace layers, K experts per row (top-k), E experts, N keys of all unions.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moesim.policies.view import Key

__all__ = ["UnionMemo", "Unions", "unions_of"]

Ints = npt.NDArray[np.int64]
_PREFIX_ROWS: Final = 32  # most experts of a layer appear in the first rows of a large batch


class Unions(NamedTuple):
    """The unions of all layers, one after another.

    `keys` and `tokens`, both [N], are the distinct keys and the number of rows that want each.
    `sizes`, [L], is the number of keys of each layer. Small numbers take two bytes each.
    """

    keys: npt.NDArray[Any]
    tokens: npt.NDArray[Any]
    sizes: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return self.keys.nbytes + self.tokens.nbytes + self.sizes.nbytes

    def by_layer(self) -> tuple[list[tuple[Key, ...]], list[tuple[int, ...]]]:
        """Return the keys of each layer, and their tokens."""
        keys, tokens = tuple(self.keys.tolist()), tuple(self.tokens.tolist())
        borders = list(pairwise(accumulate(self.sizes.tolist(), initial=0)))
        return [keys[a:b] for a, b in borders], [tokens[a:b] for a, b in borders]


def unions_of(keys_BLK: Ints, num_experts: int) -> Unions:
    """Return the unions of some rows, given by their keys, `layer * num_experts + expert`.

    Unused places hold -1.
    """
    layers = keys_BLK.shape[1]
    total = layers * num_experts
    flat = keys_BLK.reshape(-1)
    if flat.size and int(flat.min()) < 0:
        flat = np.where(flat < 0, total, flat)  # a last bin for unused places
    counts = np.bincount(flat, minlength=total + 1)
    first = _first_places(flat, counts, _PREFIX_ROWS * layers * keys_BLK.shape[2])
    order_LE = np.argsort(first[:total].reshape(layers, num_experts), axis=1)
    sizes_L = np.count_nonzero(counts[:total].reshape(layers, num_experts), axis=1)
    order_LE += np.arange(0, total, num_experts)[:, None]
    # Keys without rows have the last place of all, so they are behind the others.
    keys = order_LE[np.arange(num_experts) < sizes_L[:, None]]
    small = max(total, keys_BLK.shape[0] * keys_BLK.shape[2]) <= np.iinfo(np.uint16).max
    kind = np.uint16 if small else np.int32
    return Unions(keys.astype(kind), counts[keys].astype(kind), sizes_L.astype(kind))


def _first_places(flat: Ints, counts: Ints, prefix: int) -> Ints:
    """Return where each key first appears in `flat`; its length for keys that do not appear."""
    first = np.full(len(counts), len(flat), np.int64)
    head = flat[:prefix]
    first[head[::-1]] = np.arange(len(head) - 1, -1, -1)  # the last write wins
    late = (counts > 0) & (first == len(flat))
    if late.any():
        places = np.flatnonzero(late[flat[prefix:]])[::-1] + prefix
        first[flat[places]] = places
    return first


class UnionMemo:
    """Unions of steps, kept for further runs that compute the same rows.

    The bounds of a run repeat most of its steps. `most` is the number of bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._known: dict[bytes, Unions] = {}

    @staticmethod
    def name_of(rows: Ints) -> bytes:
        """Return the name under which the unions of `rows` are kept."""
        # A digest, because the rows of a step take more memory than its unions.
        return blake2b(rows.tobytes(), digest_size=16).digest()

    def get(self, name: bytes) -> Unions | None:
        """Return the unions of a name; None where they are not kept."""
        return self._known.get(name)

    def keep(self, name: bytes, unions: Unions) -> None:
        """Keep the unions of a name, if there is memory left."""
        self._left -= unions.nbytes
        if self._left >= 0:
            self._known[name] = unions
