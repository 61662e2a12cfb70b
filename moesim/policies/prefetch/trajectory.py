"""Trajectory prefetch: copy what followed the most similar recorded trajectory (fMoE).

Yu et al. (fMoE, FineMoE; arXiv 2502.05370) store a map of each iteration: the gate probabilities of
all layers. At layer l the layers seen so far are compared with those of the stored maps, by cosine.
For a later layer the experts of the best map are fetched by descending probability until their sum
reaches 1 - similarity, and at least as many as `experts` says. So a poor match fetches more.

Traces hold no prompt embeddings, so nothing is fetched before the first layer is known. Maps are of
recorded gate weights, which are 0 for experts that were not chosen; without weights, all chosen
experts count the same. The map of a step with several requests is that of all its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import Learned, LearnedOptions, Scores, best, rows_of, weighed
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class TrajectoryOptions(LearnedOptions):
    """`profile`: trace folder to learn from; by default the replayed trace.

    `train`: the share of its requests to learn from; see `LearnedOptions`.
    `depth`: number of later layers to prefetch for, or `all`. `experts`: least number of experts to
    fetch for each layer; by default as many as the last layer event wanted.
    `stored`: largest number of maps; the last rows are stored.
    """

    stored: Annotated[int, Ge(1)] = 1000


@register("prefetch", "trajectory", "fmoe")
class Trajectory(Learned):
    """Fetch what the most similar recorded trajectory used in the next layers."""

    Options = TrajectoryOptions

    def learn(self, lessons: Lessons) -> None:
        kept = Lessons(
            lessons.ids[-self.options.stored :],
            None if lessons.weights is None else lessons.weights[-self.options.stored :],
            lessons.requests[-self.options.stored :],
        )
        self._maps = _shares(weighed(kept, self.num_experts))
        # Sums over layers 0 to l, so that a match needs no pass over all layers.
        self._squares_SL = np.square(self._maps).sum(axis=-1).cumsum(axis=1)
        self._products_S = np.zeros(len(self._maps))
        self._square = 0.0

    def observe(self, view: View) -> None:
        if view.layer <= 0:
            self._products_S[:] = self._square = 0.0
        if view.layer >= 0:
            rows_E = rows_of(view, self.num_experts)
            weights = view.gate_weights()
            if weights:
                rows_E[[key % self.num_experts for key in view.union]] = weights
            seen_E = _shares(rows_E)
            self._products_S += self._maps[:, view.layer] @ seen_E
            self._square += float(seen_E @ seen_E)

    def ranked(self, view: View) -> Sequence[Key]:
        if view.layer < 0 or not self._square:
            return ()
        length_S = np.sqrt(self._squares_SL[:, view.layer] * self._square)
        cosine_S = self._products_S / np.maximum(length_S, 1e-300)
        match = int(np.argmax(cosine_S))
        threshold = min(1.0, max(0.0, 1 - float(cosine_S[match])))
        last = min(view.layer + self.options.ahead, self.num_layers - 1)
        return [
            layer * self.num_experts + expert
            for layer in range(view.layer + 1, last + 1)
            for expert in self._enough(self._maps[match, layer], threshold)
        ]

    def _enough(self, map_E: Scores, threshold: float) -> list[int]:
        """Return the likeliest experts whose sum reaches a threshold, at least `experts`."""
        order = best(map_E, self.num_experts)
        reached = int(np.searchsorted(np.cumsum(map_E[order]), threshold)) + 1
        return order[: max(self._most, reached)]


def _shares(weights: Scores) -> Scores:
    """Return weights that sum to 1 over the last axis; zeros stay."""
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1)
