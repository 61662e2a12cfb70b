"""Uses of experts, one entry each as a log lists them, assembled into the arrays of a trace.

Every token must use the same number of experts at each of the same layers. A log that breaks this
is refused with its line, because a guess about the missing part would change the routing.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import SourceError

__all__ = ["Arrays", "Uses"]

_MOST_LAYER: Final = 9_999


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of an imported trace, and the model layer of each trace layer.

    `expert_ids` int64 (rows, layers, k); `gate_weights` float64 alike or None; `seq_len` int64
    (requests,); `names` of the requests in order.
    """

    expert_ids: npt.NDArray[np.int64]
    gate_weights: npt.NDArray[np.float64] | None
    seq_len: npt.NDArray[np.int64]
    layers: tuple[int, ...]
    names: list[str]

    @property
    def layer_map(self) -> tuple[int, ...] | None:
        """Return the model layers for a header: None where they count from 0 without a gap."""
        return None if self.layers == tuple(range(len(self.layers))) else self.layers


@dataclass(slots=True)
class Uses:
    """Uses of experts in the order of a file.

    `line` of each use says where it stands. Requests are named, and keep the order of their first
    use; tokens of a request are numbered without a gap.
    """

    path: Path
    most: int
    """The highest expert id that may occur."""
    weighted: bool = False
    unit: str = "line"
    _requests: dict[str, int] = field(default_factory=dict)
    _columns: dict[str, array[int]] = field(
        default_factory=lambda: {
            name: array("q") for name in ("request", "token", "layer", "expert", "line")
        }
    )
    _weights: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self._columns["line"])

    def add(
        self, line: int, request: str, token: int, layer: int, expert: int, weight: float = 0.0
    ) -> None:
        """Add one use. Raise `SourceError` where a number is out of range."""
        if not 0 <= layer <= _MOST_LAYER:
            raise self.error(line, f"layer {layer} is out of range: 0 to {_MOST_LAYER}")
        if not 0 <= expert <= self.most:
            raise self.error(
                line, f"expert id {expert} is out of range for {self.most + 1} experts"
            )
        number = self._requests.setdefault(request, len(self._requests))
        columns = self._columns
        columns["request"].append(number)
        columns["token"].append(token)
        columns["layer"].append(layer)
        columns["expert"].append(expert)
        columns["line"].append(line)
        self._weights.append(weight)

    def error(self, line: int, reason: str) -> SourceError:
        """Return the error about one line."""
        return SourceError(self.path, f"{self.unit} {line}", reason)

    def arrays(self, top_k: int | None = None) -> Arrays:
        """Return the arrays of all uses. Raise `SourceError` where a token lacks some."""
        if not len(self):
            raise SourceError(self.path, "", "lists no use of an expert")
        columns: dict[str, Any] = {
            name: np.frombuffer(column, np.int64) for name, column in self._columns.items()
        }
        order = np.lexsort((columns["layer"], columns["token"], columns["request"]))
        columns = {name: column[order] for name, column in columns.items()}
        layers = np.unique(columns["layer"])
        k = self._count(columns, top_k)
        tokens = self._tokens(columns, k, layers)
        shape = (tokens, len(layers), k)
        ids = columns["expert"].reshape(shape)
        self._check_repeats(ids, columns["line"].reshape(shape))
        weights = np.frombuffer(self._weights, np.float64)[order].reshape(shape)
        firsts = columns["request"].reshape(shape)[:, 0, 0]
        return Arrays(
            ids,
            weights if self.weighted else None,
            np.bincount(firsts),
            tuple(layers.tolist()),
            list(self._requests),
        )

    def _count(self, columns: dict[str, Any], top_k: int | None) -> int:
        """Return how many experts each token uses at each layer."""
        keys = (columns["request"], columns["token"], columns["layer"])
        starts = _starts(*keys)
        counts = np.diff(np.append(starts, len(keys[0])))
        k = top_k or int(np.bincount(counts).argmax())
        if (wrong := counts != k).any():
            # The first in the file, not in the sorted order, is where a reader looks first.
            group = np.flatnonzero(wrong)
            at = starts[group[columns["line"][starts[group]].argmin()]]
            got = int(counts[np.searchsorted(starts, at)])
            raise self.error(
                int(columns["line"][at]),
                f"token {columns['token'][at]} uses {got} experts at layer "
                f"{columns['layer'][at]}, and {k} were expected",
            )
        return k

    def _tokens(self, columns: dict[str, Any], k: int, layers: npt.NDArray[np.int64]) -> int:
        """Return the number of tokens; each has all layers and follows the one before it."""
        request, token = columns["request"][::k], columns["token"][::k]
        layer, line = columns["layer"][::k], columns["line"][::k]
        starts = _starts(request, token)
        counts = np.diff(np.append(starts, len(token)))
        if (wrong := counts != len(layers)).any():
            first = int(starts[wrong.argmax()])
            present = layer[first : first + counts[wrong.argmax()]]
            absent = np.setdiff1d(layers, present)[0]
            raise self.error(
                int(line[first]),
                f"token {token[first]} has no experts at layer {absent}, which other tokens have",
            )
        request, token, line = request[starts], token[starts], line[starts]
        gap = (np.diff(request) == 0) & (np.diff(token) != 1)
        if gap.any():
            at = int(gap.argmax())
            raise self.error(
                int(line[at + 1]),
                f"token {token[at + 1]} follows token {token[at]}: those between are missing",
            )
        return len(starts)

    def _check_repeats(self, ids: npt.NDArray[np.int64], lines: npt.NDArray[np.int64]) -> None:
        ordered = np.sort(ids, axis=-1)
        repeated = ordered[..., 1:] == ordered[..., :-1]
        if repeated.any():
            row, layer, place = (int(i) for i in np.argwhere(repeated)[0])
            raise self.error(
                int(lines[row, layer].max()),
                f"expert id {ordered[row, layer, place]} is repeated for one token and layer",
            )


def _starts(*keys: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return where each group of equal keys starts in sorted columns."""
    change = np.zeros(len(keys[0]), bool)
    change[:1] = True
    for key in keys:
        change[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(change)
