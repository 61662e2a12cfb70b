"""Oracle prefetch: copy the true experts of the next layers, whatever the router reveals.

No real system can do this with a layer-wise router. The policy is a bound on what any predictor
of the same depth can achieve.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "oracle")
class Oracle(Prefetch):
    """Fetch the true experts of the next `depth` layers, nearest first: a bound."""

    clairvoyant = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        if self.options.depth == 1:  # the usual case, without a copy of the keys
            return view.exact(1)
        return [key for depth in range(1, self.options.depth + 1) for key in view.exact(depth)]
