"""What a step of the real machine computes: rows of several sequences, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "Span", "positions_of"]


class Span(NamedTuple):
    """What one sequence computes in a step."""

    sequence: int
    """Request index."""
    position: int
    """Rows of it that are in the KV store already."""
    tokens: int
    capacity: int
    """Most rows it will ever have there."""
    samples: bool
    """Whether its last row's logits are needed."""


class Batch(NamedTuple):
    """What a step computes; T rows are those of its spans, one after another."""

    spans: tuple[Span, ...]
    token_ids: Sequence[int] | None = None
    """T of them; None: arbitrary ones."""
    expert_ids: npt.NDArray[np.int64] | None = None
    """`[T, L, k]`, -1 where unused: where rows go, instead of where the model's routers say."""
    gate_weights: npt.NDArray[np.floating[Any]] | None = None
    """`[T, L, k]`, with `expert_ids`; None: 1/k each."""


def positions_of(spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """Where in its sequence each row of a step stands, `[T]`."""
    parts = [np.arange(span.position, span.position + span.tokens) for span in spans]
    return np.concatenate([np.zeros(0, np.int64), *parts])
