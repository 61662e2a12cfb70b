"""The layer plan: the order of a model's layers, with and without routed experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The layers of a model in the order in which a step computes them.

    A trace counts only layers with routed experts. `model_layers[l]` is the model layer of trace
    layer l. `dense_before[l]` are the model layers without routed experts right before it; the last
    entry holds those after all trace layers.
    """

    model_layers: tuple[int, ...]
    dense_before: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model_layers: Sequence[int], num_layers: int) -> LayerPlan:
        """Return the plan of a model of `num_layers`; `model_layers` have routed experts."""
        bounds = [-1, *model_layers, num_layers]
        gaps = [tuple(range(low + 1, high)) for low, high in pairwise(bounds)]
        return cls(tuple(model_layers), tuple(gaps))
