"""What a model's router reveals, and when: the boundary of all that policies may know.

| router | revealed |
|---|---|
| layerwise (Mixtral, Qwen, DeepSeek, ...) | a layer's ids, once its router has run |
| pregated (Hwang et al., 2024, arXiv 2308.12066) | those of the next layer as well |
| decoupled (Read-ME, arXiv 2410.19123) | all layers of every queued token, once it exists |
| static (DSelect-k, arXiv 2106.03760, converged) | all layers of every token of a task, for ever |

A decoded token's successor does not exist yet, so all but the last know nothing of it. A static
router never looks at tokens: the task is known when a request arrives, and its first row tells of
all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EVERYTHING: Final = 1 << 30
"""More layers than any model has."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """`reach`: how many layers ahead ids are known within a step; `queued`: ids of tokens that
    wait for their step are known too, so none ever comes back to the host during one; `for_ever`:
    so are those of tokens that do not exist yet, for all rows of a request are routed alike."""

    reach: int = 0
    queued: bool = False
    for_ever: bool = False

    def comes_back(self, layer: int) -> bool:
        """Whether the host waits for the ids of trace layer `layer`: not if it knew them before."""
        return not self.queued and (layer == 0 or self.reach == 0)

    @property
    def uniform(self) -> bool:
        """Whether it waits for those of all layers, or of none."""
        return self.queued or self.reach == 0


KNOWLEDGE: Final = {
    "layerwise": Knowledge(),
    "pregated": Knowledge(reach=1),
    "decoupled": Knowledge(EVERYTHING, queued=True),
    "static": Knowledge(EVERYTHING, queued=True, for_ever=True),
}
