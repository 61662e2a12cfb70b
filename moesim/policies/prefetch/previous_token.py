"""Previous-token prefetch: a table of which experts follow which from a token to the next one.

The table counts, at each layer of a profile's requests, which experts a token wants after those of
the token before. It is applied to the experts that the layer wanted in the step before. Two rules
combine what they say; see `moesim/policies/prefetch/transitions.py`.

Adjacent tokens share experts more often than by chance
(Mixtral of Experts, arXiv 2401.04088, section 5).
"""

from __future__ import annotations

import numpy as np

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import ScoredLayers, Scores, rows_of
from moesim.policies.prefetch.transitions import TableOptions, Transitions
from moesim.policies.registry import register
from moesim.policies.view import View


@register("prefetch", "previous_token")
class PreviousToken(ScoredLayers):
    """Fetch the experts that most often follow those of the same layer in the step before."""

    Options = TableOptions

    def learn(self, lessons: Lessons) -> None:
        ids_BLK, request_B = lessons.ids, lessons.requests
        follows = np.flatnonzero(request_B[1:] == request_B[:-1])
        self._tables = [
            Transitions(
                ids_BLK[follows, layer],
                ids_BLK[follows + 1, layer],
                self.num_experts,
                self.options.combine,
            )
            for layer in range(self.num_layers)
        ]
        self._rows_LE = np.zeros((self.num_layers, self.num_experts))

    def observe(self, view: View) -> None:
        if view.layer >= 0:
            self._rows_LE[view.layer] = rows_of(view, self.num_experts)

    def scores(self, layer: int, view: View) -> Scores:
        # Later layers of this step still hold what the step before wanted.
        return self._tables[layer].scores(self._rows_LE[layer])
