"""Popularity prefetch: copy the experts of the next layers that a profile uses most.

The simplest table, and the baseline of all others: it sees nothing of the running requests.
MoE-Infinity (arXiv 2401.14361) and ProMoE (arXiv 2410.22134) compare with it.
"""

from __future__ import annotations

import numpy as np

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import ScoredLayers, Scores
from moesim.policies.registry import register
from moesim.policies.view import View


@register("prefetch", "popularity")
class Popularity(ScoredLayers):
    """Fetch the experts of the next layers that a profile uses most."""

    def learn(self, lessons: Lessons) -> None:
        ids_LN = lessons.ids.transpose(1, 0, 2).reshape(self.num_layers, -1)
        counts = [np.bincount(ids[ids >= 0], minlength=self.num_experts) for ids in ids_LN]
        self._counts_LE = np.array(counts, np.float64)

    def scores(self, layer: int, view: View) -> Scores:
        return np.asarray(self._counts_LE[layer])
