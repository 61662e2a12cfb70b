"""The view: all that a policy may know at one layer event. There is no other way to the future.

Keys are integers, `layer * num_experts + expert`, with layers counted as in the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

Key = int


class View:
    """One layer event, as policies see it: read-only, and all it holds are tuples.

    `layer`: the layer whose routing was just decided (-1 at the start of a step, before any is);
    `union`: the distinct keys wanted now, in order of first appearance in the batch; `tokens`:
    how many rows want each, in the same order. Subclasses open windows on recorded predictions
    and on whatever future the model's router really reveals.
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

    def predicted(self, depth: int) -> Sequence[Key]:
        """Keys that predictions recorded at this layer name for layer + `depth` (may be wrong);
        empty where nothing was recorded."""
        return ()

    def exact(self, depth: int) -> Sequence[Key]:
        """Keys that layer + `depth` of this step will want, where the router reveals them.

        Raises `PolicyViolation` beyond what it reveals; empty past the last layer.
        """
        return ()

    def next_use(self, key: Key) -> int | None:
        """In how many layer events a key is wanted again, as far as the router has revealed it;
        None: not within that. Steps yet to be formed are guessed at in order of arrival."""
        return None

    def gate_weights(self) -> Sequence[float]:
        """Summed gate weight of each key of the union; empty where none was recorded."""
        return ()
