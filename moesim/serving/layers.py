"""The order in which a server walks through a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The model as the server walks it: `dense_before[l]` are the model layers without routed
    experts before trace layer l (the last entry: after all), `model_layers[l]` is its own."""

    model_layers: tuple[int, ...]
    dense_before: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model_layers: Sequence[int], num_layers: int) -> LayerPlan:
        bounds = [-1, *model_layers, num_layers]
        gaps = [tuple(range(low + 1, high)) for low, high in pairwise(bounds)]
        return cls(tuple(model_layers), tuple(gaps))
