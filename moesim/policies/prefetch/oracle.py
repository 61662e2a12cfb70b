"""Oracle prefetch: the true experts of the next `depth` layers of the step. Only a bound."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import DepthOptions, Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "oracle")
class Oracle(Prefetch):
    """Asks for the true experts of the next `depth` layers of the step: a bound."""

    clairvoyant = True
    Options = DepthOptions

    def wanted(self, view: View) -> Sequence[Key]:
        return [key for depth in range(1, self.options.depth + 1) for key in view.exact(depth)]
