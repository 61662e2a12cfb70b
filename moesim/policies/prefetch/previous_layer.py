"""Previous-layer prefetch: a table of which experts follow which in the next layers.

The table counts in a profile which experts rows want at layer l + d beside those at layer l. Two
rules combine what the experts of an event say; see `moesim/policies/prefetch/transitions.py`.
EdgeMoE (arXiv 2308.14352) uses such a table, of the two layers before.
"""

from __future__ import annotations

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import ScoredLayers, Scores, rows_of
from moesim.policies.prefetch.transitions import TableOptions, Transitions
from moesim.policies.registry import register
from moesim.policies.view import View


@register("prefetch", "previous_layer")
class PreviousLayer(ScoredLayers):
    """Fetch the experts that most often follow those of this layer.
    Nothing is fetched for the first layer.
    """

    Options = TableOptions

    def learn(self, lessons: Lessons) -> None:
        ids_BLK, rule = lessons.ids, self.options.combine
        self._tables = {
            (before, after): Transitions(
                ids_BLK[:, before], ids_BLK[:, after], self.num_experts, rule
            )
            for before in range(self.num_layers)
            for after in range(before + 1, min(before + self.options.ahead + 1, self.num_layers))
        }

    def scores(self, layer: int, view: View) -> Scores:
        rows_E = rows_of(view, self.num_experts)
        table = self._tables.get((view.layer, layer))
        return rows_E if table is None else table.scores(rows_E)  # no rows at a step's start
