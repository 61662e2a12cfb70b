"""Prefetch of all experts: stream every expert of the next layers in order, whatever is wanted.

Systems for large batches do this, because such a batch wants nearly every expert: MoE-Lightning
(arXiv 2411.11217) streams all weights of a layer while the layer before is computed. Nothing needs
to be predicted. The layer after the last one is the first layer of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch, PrefetchContext
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "all", "stream")
class AllExperts(Prefetch):
    """Fetch every expert of the next `depth` layers, nearest layer first."""

    Options = DepthOptions

    def prepare(self, context: PrefetchContext) -> None:
        layers, experts = context.num_layers, context.num_experts
        by_layer = [range(layer * experts, (layer + 1) * experts) for layer in range(layers)]
        depth = min(self.options.depth, max(1, layers - 1))
        self._keys = [
            [key for ahead in range(depth) for key in by_layer[(first + ahead) % layers]]
            for first in range(layers)
        ]

    def wanted(self, view: View) -> Sequence[Key]:
        return self._keys[(view.layer + 1) % len(self._keys)]
