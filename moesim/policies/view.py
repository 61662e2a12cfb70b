"""The view: all that a policy may know at one layer event.

A *key* names one expert of one layer. It is the integer `layer * num_experts + expert`, with layers
counted as in the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

Key = int


class View:
    """One layer event as policies see it: read-only, and made of tuples.

    - `layer`: the trace layer whose routing was just decided; -1 at the start of a step.
    - `union`: the distinct keys wanted now, in order of first appearance in the batch.
    - `tokens`: number of rows that want each key, in the same order.
    - `requests`: numbers of the requests of the step; shown to prefetch policies, and to eviction
      policies that declare `sees_requests`.

    This class reveals no future. Subclasses add recorded predictions, and the routing that the
    model's router really reveals in advance.
    """

    __slots__ = ("_layer", "_tokens", "_union")

    def __init__(self, layer: int, union: Sequence[Key], tokens: Sequence[int] = ()) -> None:
        self._layer = layer
        self._union = tuple(union)
        self._tokens = tuple(tokens)

    if TYPE_CHECKING:

        @property
        def layer(self) -> int: ...

        @property
        def union(self) -> tuple[Key, ...]: ...

        @property
        def tokens(self) -> tuple[int, ...]: ...

    else:  # Read at every layer event: an attrgetter is twice as fast as a method in Python.
        layer = property(attrgetter("_layer"))
        union = property(attrgetter("_union"))
        tokens = property(attrgetter("_tokens"))

    @property
    def requests(self) -> Sequence[int]:
        """Numbers of the requests of the step; empty where the view shows none."""
        return ()

    def predicted(self, depth: int) -> Sequence[Key]:
        """Return the keys predicted at this layer for layer + `depth`; they may be wrong.

        Empty where the trace holds no prediction.
        """
        return ()

    def predicted_tokens(self, depth: int) -> Sequence[int]:
        """Return for how many rows each key of `predicted(depth)` is predicted, in its order."""
        return ()

    def resident(self, key: Key) -> bool:
        """Return whether a key is in GPU memory or on its way there.

        Shown to prefetch policies; False where the view shows it not. A key is resident from the
        decision to copy it on, so this tells of times only where copies are cancelled.
        """
        return False

    def exact(self, depth: int) -> Sequence[Key]:
        """Return the keys that layer + `depth` will want.

        Empty past the last layer known. Raise `PolicyViolation` where the router does not reveal
        that layer yet.
        """
        return ()

    def next_use(self, key: Key) -> int | None:
        """Return in how many layer events a key is wanted again, or None if that is not revealed.

        Queued tokens are assumed to run one a step in their order, since later steps are not
        formed yet. A policy with `recent_rows` also gets guesses; see `LookAheadOptions`.
        """
        return None

    def gate_weights(self) -> Sequence[float]:
        """Return the summed gate weight of each key of the union; empty if not recorded."""
        return ()

    def probabilities(self) -> Sequence[float]:
        """Return the router's probability of each expert of this layer, summed over the rows.

        The router computes them to choose the union, so they reveal no future. Empty if not
        recorded.
        """
        return ()
