"""Activation-matrix prefetch: copy what the most similar recorded request used (MoE-Infinity).

Xue et al. (arXiv 2401.14361) count the uses of each expert in each layer by a request: its expert
activation matrix, of shape [layers, experts]. The matrix of the running requests is compared with
those of a profile. The distance is the mean over layers of one minus the cosine of the two rows. Of
the nearest matrix, the experts of later layers are fetched by uses, scaled by
1 - (distance in layers) / (layers + 1), as in the code (github.com/EfficientMoE/MoE-Infinity). The
paper divides by the number of layers.

The running matrix starts anew where a step serves no request of the step before. With several
requests at once it is that of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import Learned, LearnedOptions, Scores, best, rows_of
from moesim.policies.registry import register
from moesim.policies.view import Key, View


@dataclass(frozen=True, slots=True)
class MatrixOptions(LearnedOptions):
    """`profile`: trace folder to learn from; by default the replayed trace.

    `train`: the share of its requests to learn from; see `LearnedOptions`.
    `depth`: number of later layers to prefetch for, or `all`. `experts`: number of experts to
    fetch for each of these layers on average; by default as many as the last layer event wanted.
    `stored`: largest number of matrices; the first ones are stored.
    """

    stored: Annotated[int, Ge(1)] = 1000


@register("prefetch", "activation_matrix", "moe_infinity")
class ActivationMatrix(Learned):
    """Fetch what the most similar request of a profile used most in the next layers."""

    Options = MatrixOptions

    def learn(self, lessons: Lessons) -> None:
        requests = np.unique(lessons.requests)[: self.options.stored]
        self._stored = np.array([self._matrix(lessons, each) for each in requests])
        self._unit = _unit(self._stored)
        self._running = np.zeros((self.num_layers, self.num_experts))
        self._requests: frozenset[int] = frozenset()

    def _matrix(self, lessons: Lessons, request: int) -> Scores:
        ids_BLK = lessons.ids[lessons.requests == request]
        layer_BLK = np.broadcast_to(np.arange(self.num_layers)[:, None], ids_BLK.shape)
        matrix = np.zeros((self.num_layers, self.num_experts))
        used = ids_BLK >= 0
        np.add.at(matrix, (layer_BLK[used], ids_BLK[used]), 1)
        return matrix

    def observe(self, view: View) -> None:
        if view.layer >= 0:
            self._running[view.layer] += rows_of(view, self.num_experts)
            return
        requests = frozenset(view.requests)
        if requests.isdisjoint(self._requests):
            self._running[:] = 0
        self._requests = requests

    def ranked(self, view: View) -> Sequence[Key]:
        last = min(view.layer + self.options.ahead, self.num_layers - 1)
        if not self._running.any() or last <= view.layer:
            return ()
        # The cosine of each row; an empty row is similar to none.
        cosine_SL = (self._unit * _unit(self._running)).sum(axis=-1)
        nearest = self._stored[int(np.argmin((1 - cosine_SL).mean(axis=-1)))]
        ahead = np.arange(last - view.layer) + 1
        scores = nearest[view.layer + 1 : last + 1] * (1 - ahead / (self.num_layers + 1))[:, None]
        first = (view.layer + 1) * self.num_experts
        return [first + place for place in best(scores.reshape(-1), self._most * len(ahead))]


def _unit(matrices: Scores) -> Scores:
    """Return matrices whose rows have length 1; rows of zeros stay."""
    length = np.linalg.norm(matrices, axis=-1, keepdims=True)
    return matrices / np.where(length > 0, length, 1)
