"""Cost: each missing expert runs where it is estimated to be done sooner, by itself.

Fiddler (arXiv 2402.07033) decides like this: few rows are computed faster on the CPU than the
weights are copied. It fills GPU memory once, by frequency, which is `cache: static` here.

An expert that is arriving runs on the GPU: its copy is under way, and how much of it is left is not
known. A read from disk comes before both alternatives, so it favours neither.
"""

from __future__ import annotations

from collections.abc import Mapping

from moesim.policies.placement.base import ARRIVING, CPU, Estimate, Placement
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@register("placement", "cost")
class Cost(Placement):
    """Copy an expert if copy and GPU take less time than the CPU; ties: the CPU."""

    lanes = (CPU,)

    def place(self, view: View, absent: Mapping[Key, str], estimate: Estimate) -> Mapping[Key, str]:
        return {
            key: CPU
            for key, rows in zip(view.union, view.tokens, strict=True)
            if absent.get(key, ARRIVING) != ARRIVING
            # A tie leaves the link free for other experts.
            and estimate.cpu_ns(key, rows) <= estimate.copy_ns(key) + estimate.gpu_ns(key, rows)
        }
