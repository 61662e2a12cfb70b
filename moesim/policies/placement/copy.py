"""Copy: every missing expert is copied to the GPU and computed there.

The systems without CPU experts do this, for example mixtral-offloading (arXiv 2312.17238) and
MoE-Infinity (arXiv 2401.14361).
"""

from __future__ import annotations

from collections.abc import Mapping

from moesim.policies.placement.base import Estimate, Placement
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("placement", "copy")
class Copy(Placement):
    """Run every expert on the GPU."""

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        return {}
