"""Layer-ahead prefetch: copy the experts of the next layers while this layer is computed.

Pre-gated MoE (arXiv 2308.12066) and Read-ME (arXiv 2410.19123) know the next layer's experts
exactly, so every copy is needed. Near the end of a step, the next layers are the first ones of
the next step. The view shows them where tokens of that step are known already.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "layer_ahead")
class LayerAhead(Prefetch):
    """Fetch the experts that the router reveals of the next `depth` layers, nearest first.
    Needs a router that reveals routing early.
    """

    needs_routing = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        return [key for depth in range(1, self.options.depth + 1) for key in view.exact(depth)]
