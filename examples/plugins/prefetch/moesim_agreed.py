"""Prefetch of what recent steps agree on, in a package of its own.

An expert of the next layer is fetched if each of the last `steps` steps wanted it there. Adjacent
tokens share experts more often than by chance (Mixtral of Experts, arXiv 2401.04088, section 5). To
ask several steps costs recall and gains precision, so fewer copies are wasted.

After `pip install ./examples/plugins/prefetch`, scenarios can say `prefetch: {policy: agreed}`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from moesim.policies import Key, View, register
from moesim.policies.prefetch import Prefetch, PrefetchContext


@dataclass(frozen=True, slots=True)
class AgreedOptions:
    """`steps`: number of past steps that must agree."""

    steps: Annotated[int, Ge(1), Le(100)] = 2


@register("prefetch", "agreed")
class Agreed(Prefetch):
    """Fetch the experts that the next layer wanted in each of the last steps."""

    Options = AgreedOptions

    def prepare(self, context: PrefetchContext) -> None:
        steps = self.options.steps
        # The last unions of each layer, as sets; older ones fall out.
        self.past: list[deque[frozenset[Key]]] = [
            deque(maxlen=steps) for _ in range(context.num_layers)
        ]

    def wanted(self, view: View) -> Sequence[Key]:
        if view.layer >= 0:  # -1: a step begins, and no layer has been routed yet
            self.past[view.layer].append(frozenset(view.union))
        following = view.layer + 1
        if following == len(self.past) or len(self.past[following]) < self.options.steps:
            return ()
        return sorted(frozenset.intersection(*self.past[following]))
