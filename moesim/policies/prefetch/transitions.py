"""Transitions: a learned table of which experts are wanted after which others.

Two rules combine what the experts of one event say of the next:

- `sum`: P(expert after | expert before), summed over the rows of the event. It is the expected
  number of rows of each expert.
- `bayes`: naive Bayes for one row, P(expert after) times each P(expert before | expert after). It
  is better for a single row. For several rows at once it is applied to their mean, and is worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moesim.policies.prefetch.learned import LearnedOptions, Scores

_UNSEEN = 0.5  # added to each count, so that no pair is impossible
Rule = Literal["sum", "bayes"]


@dataclass(frozen=True, slots=True)
class TableOptions(LearnedOptions):
    """`profile`: trace folder to learn from; by default the replayed trace.

    `train`: the share of its requests to learn from; see `LearnedOptions`.
    `depth`: number of later layers to prefetch for, or `all`. `experts`: number of experts to
    fetch for each layer; by default as many as the last layer event wanted.
    `combine`: `sum` over the rows of an event, or `bayes`, which is better for one row at a time.
    """

    combine: Rule = "sum"


class Transitions:
    """Counts of pairs (expert before, expert after), each of one row; shapes [E, E] and [E].

    `before_BK` and `after_BK` hold the experts of rows that belong together; -1 is no expert.
    """

    def __init__(
        self,
        before_BK: npt.NDArray[np.int64],
        after_BK: npt.NDArray[np.int64],
        num_experts: int,
        rule: Rule,
    ) -> None:
        pairs = np.zeros(num_experts**2)
        for before_B in before_BK.T:
            for after_B in after_BK.T:
                both = (before_B >= 0) & (after_B >= 0)
                pair_B = before_B[both] * num_experts + after_B[both]
                pairs += np.bincount(pair_B, minlength=num_experts**2)
        pairs_EE = pairs.reshape(num_experts, num_experts)
        before_E, after_E = (
            np.bincount(ids[ids >= 0], minlength=num_experts) for ids in (before_BK, after_BK)
        )
        self._top_k = before_BK.shape[1]
        self._prior_E = np.log(after_E + _UNSEEN) if rule == "bayes" else None
        if rule == "bayes":
            self._table_EE = np.log((pairs_EE + _UNSEEN) / (after_E + 2 * _UNSEEN))
        else:
            self._table_EE = pairs_EE / np.maximum(before_E, 1)[:, None]

    def scores(self, rows_E: Scores) -> Scores:
        """Return a score of each expert after an event; zeros after an event without any row."""
        if self._prior_E is None or not rows_E.any():
            return np.asarray(rows_E @ self._table_EE)
        rows = max(1.0, rows_E.sum() / self._top_k)
        log_E = self._prior_E + rows_E / rows @ self._table_EE
        return np.asarray(np.exp(log_E - log_E.max()))
