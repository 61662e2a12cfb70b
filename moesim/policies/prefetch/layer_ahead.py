"""Layer-ahead prefetch: what the router has revealed of the next layers, fetched while this one
is computed.

Pre-gated MoE (arXiv 2308.12066) and Read-ME (arXiv 2410.19123) know the next layer's experts
exactly, so nothing is fetched in vain. Where tokens of the next step are known beforehand, its
first layers are fetched under the last of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "layer_ahead")
class LayerAhead(Prefetch):
    """Asks for the revealed experts of the next `depth` layers, nearest layer first."""

    needs_routing = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        return [key for depth in range(1, self.options.depth + 1) for key in view.exact(depth)]
