"""No prefetch: every missing expert is loaded on demand. The baseline of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.policies.prefetch.base import Prefetch
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("prefetch", "none")
class NoPrefetch(Prefetch):
    """Fetch nothing early: every missing expert is loaded on demand."""

    active = False

    def wanted(self, view: View) -> Sequence[Key]:
        return ()
