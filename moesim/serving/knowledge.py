"""Knowledge: which routing decisions a model's router reveals, and when. Policies know no more.

| router | revealed |
|---|---|
| layerwise (Mixtral, Qwen, DeepSeek, ...) | a layer's ids, once its router has run |
| pregated (Hwang et al., 2024, arXiv 2308.12066) | those of the next layer as well |
| decoupled (Read-ME, arXiv 2410.19123) | all layers of every queued token, once it exists |
| static (DSelect-k, arXiv 2106.03760, converged) | all layers of every token of a task |

The token after a decoded one does not exist yet. Only a static router reveals its ids: it routes
by the task, which is known when a request arrives. So the first row of a request has the ids of
all its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EVERYTHING: Final = 1 << 30
"""More layers than any model has."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a router reveals.

    - `reach`: number of later layers of a step whose ids are known.
    - `queued`: whether the ids of queued tokens are known before their step. Then no ids return
      from the GPU during a step.
    - `future_tokens`: whether the ids of tokens that do not exist yet are known, because all rows
      of a request are routed alike.
    """

    reach: int = 0
    queued: bool = False
    future_tokens: bool = False

    def comes_back(self, layer: int) -> bool:
        """Return whether the ids of trace layer `layer` must return from the GPU.

        False if the host knows them already. With a pre-gated router, only those of the first
        layer are unknown.
        """
        return not self.queued and (layer == 0 or self.reach == 0)

    @property
    def uniform(self) -> bool:
        """Return whether ids return in every layer or in none."""
        return self.queued or self.reach == 0


KNOWLEDGE: Final = {
    "layerwise": Knowledge(),
    "pregated": Knowledge(reach=1),
    "decoupled": Knowledge(EVERYTHING, queued=True),
    "static": Knowledge(EVERYTHING, queued=True, future_tokens=True),
}
