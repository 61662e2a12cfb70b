"""The batch of a step on the real machine: rows of several sequences, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "Span", "positions_of"]


class Span(NamedTuple):
    """The rows that one sequence computes in a step."""

    sequence: int
    """Request index."""
    position: int
    """Rows of the sequence that are already in the KV store."""
    tokens: int
    capacity: int
    """The most rows that the sequence will ever have in the KV store."""
    samples: bool
    """Whether its last row's logits are needed."""


class Batch(NamedTuple):
    """The rows that a step computes: T rows, those of its spans one after another."""

    spans: tuple[Span, ...]
    token_ids: Sequence[int] | None = None
    """T ids; None: arbitrary ids."""
    expert_ids: npt.NDArray[np.int64] | None = None
    """`[T, L, k]`, -1 where unused: the rows' experts, which replace the model's own choices."""
    gate_weights: npt.NDArray[np.floating[Any]] | None = None
    """`[T, L, k]`, with `expert_ids`; None: 1/k each."""


def positions_of(spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """Return the position of each row of a step in its sequence, `[T]`."""
    parts = [np.arange(span.position, span.position + span.tokens) for span in spans]
    return np.concatenate([np.zeros(0, np.int64), *parts])
