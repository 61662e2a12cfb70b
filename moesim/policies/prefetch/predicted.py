"""Predicted prefetch: copy the experts that later gates choose when they are applied early.

At each layer the gates of the next layers are applied to the hidden state of this layer
(mixtral-offloading, arXiv 2312.17238; AdapMoE, arXiv 2408.10284). Traces record their choices.

Predictions may be wrong. The view shows those of a layer from its layer event on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from moesim.policies.prefetch.base import Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class PredictedOptions:
    """`depth`: number of later layers to prefetch for.

    `experts`: largest number of experts to fetch for each layer, in the order in which the trace
    names them; by default all.
    """

    depth: Annotated[int, Ge(1), Le(1000)] = 1  # more layers than any model has
    experts: Annotated[int, Ge(1)] | None = None


@register("prefetch", "predicted")
class Predicted(Prefetch):
    """Fetch the experts that the trace predicts for the next `depth` layers, nearest first."""

    needs_predictions = True
    Options = PredictedOptions

    def wanted(self, view: View) -> Sequence[Key]:
        depth, most = self.options.depth, self.options.experts
        if depth == 1 and most is None:  # the usual case, without a copy of the keys
            return view.predicted(1)
        return [key for ahead in range(1, depth + 1) for key in view.predicted(ahead)[:most]]
