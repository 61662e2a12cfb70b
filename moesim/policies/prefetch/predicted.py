"""Predicted prefetch: copy the experts that later gates choose when they are applied early.

At each layer the gates of the next layers are applied to the hidden state of this layer
(mixtral-offloading, arXiv 2312.17238; AdapMoE, arXiv 2408.10284). Traces record their choices.

Predictions may be wrong. The view shows those of a layer from its layer event on.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "predicted")
class Predicted(Prefetch):
    """Fetch the experts that the trace predicts for the next `depth` layers, nearest first."""

    needs_predictions = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        if self.options.depth == 1:  # the usual case, without a copy of the keys
            return view.predicted(1)
        return [key for depth in range(1, self.options.depth + 1) for key in view.predicted(depth)]
