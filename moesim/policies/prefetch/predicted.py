"""Predicted prefetch: what later gates say when applied early.

The trace records, at each layer, what the gates of the next layers chose when applied to that
layer's hidden state (mixtral-offloading, arXiv 2312.17238; AdapMoE, arXiv 2408.10284). They may
be wrong, and are visible no earlier than that layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "predicted")
class Predicted(Prefetch):
    """Asks for the recorded predictions of the next `depth` layers, nearest layer first."""

    needs_predictions = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        return [key for depth in range(1, self.options.depth + 1) for key in view.predicted(depth)]
