"""How well later layers can be told ahead: by a table learned on half of the requests.

The table holds how often each expert of a layer was used together with each expert of a later one
(as previous-layer predictors learn). It predicts the k experts with the largest mean share among
the experts that the token uses. Popularity alone, the k most popular experts, is the chance level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.trace.findings.sample import Sample

__all__ = ["Foresight", "foresight"]

Floats = npt.NDArray[np.float32]

_MOST_ROWS: Final = 1024  # of each half
_MOST_LAYERS: Final = 8  # pairs of layers at each depth
_PRIOR: Final = 4.0  # tokens that the popularity counts for in the table
DEPTHS: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Foresight:
    """The share of used experts that a predictor names, `depth` layers ahead.

    `table` learned on one half of the requests and tested on the other; `popularity` alike.
    """

    depth: int
    table: float
    popularity: float


def foresight(sample: Sample) -> list[Foresight]:
    """Return the recall of a learned table at each depth; none with one layer or two rows."""
    train, test = _halves(sample)
    if not len(train) or not len(test):
        return []
    found = []
    for depth in (depth for depth in DEPTHS if depth < sample.layers):
        layers = np.unique(
            np.linspace(0, sample.layers - 1 - depth, _MOST_LAYERS).round().astype(int)
        )
        scores = [_recall(sample, int(layer), int(layer) + depth, train, test) for layer in layers]
        table, popularity, uses = np.array(scores).sum(axis=0)
        if uses:
            found.append(Foresight(depth, float(table / uses), float(popularity / uses)))
    return found


def _halves(sample: Sample) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows to learn from and those to test on: requests in turn, or halves of one."""
    # One request has no other to be tested on, so its second half is.
    one = len(sample.lengths) == 1
    odd_T = np.arange(sample.rows) >= sample.rows // 2 if one else sample.request % 2 == 1
    return _thinned(np.flatnonzero(~odd_T)), _thinned(np.flatnonzero(odd_T))


def _thinned(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(rows) <= _MOST_ROWS:
        return rows
    return np.asarray(rows[np.linspace(0, len(rows) - 1, _MOST_ROWS).astype(int)])


def _recall(
    sample: Sample,
    layer: int,
    later: int,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> tuple[int, int, int]:
    """Return the uses that the table and popularity name, and all uses, of one pair of layers."""
    now_TE, then_TE = sample.uses(layer), sample.uses(later)
    past, future = now_TE[train].astype(np.float32), then_TE[train].astype(np.float32)
    popularity_E = future.mean(axis=0)
    together_EE = past.T @ future
    share_EE = (together_EE + _PRIOR * popularity_E) / (past.sum(axis=0)[:, None] + _PRIOR)
    truth = then_TE[test]
    by_table = _named(now_TE[test].astype(np.float32) @ share_EE, sample.top_k)
    by_rank = _named(np.broadcast_to(popularity_E, truth.shape), sample.top_k)
    return int((truth & by_table).sum()), int((truth & by_rank).sum()), int(truth.sum())


def _named(score_TE: Floats, k: int) -> npt.NDArray[np.bool_]:
    best = np.argsort(-score_TE, axis=1, kind="stable")[:, :k]
    named = np.zeros(score_TE.shape, bool)
    np.put_along_axis(named, best, True, axis=1)
    return named
