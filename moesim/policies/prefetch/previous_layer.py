"""Previous-layer prefetch: a table of which experts follow which in the next layers.

The table holds P(expert at layer l + d | expert at layer l), counted in a profile. An expert's
score is the sum over the experts that the event of layer l wants, each weighed by its rows.
EdgeMoE (arXiv 2308.14352) uses such a table, of the two layers before.
"""

from __future__ import annotations

from moesim.policies.prefetch.base import Lessons
from moesim.policies.prefetch.learned import Learned, Scores, rows_of, transitions
from moesim.policies.registry import register
from moesim.policies.view import View


@register("prefetch", "previous_layer")
class PreviousLayer(Learned):
    """Fetch the experts that most often follow those of this layer.
    Nothing is fetched for the first layer.
    """

    def learn(self, lessons: Lessons) -> None:
        ids_BLK = lessons.ids
        self._tables = {
            (before, after): transitions(ids_BLK[:, before], ids_BLK[:, after], self.num_experts)
            for before in range(self.num_layers)
            for after in range(before + 1, min(before + self.options.depth + 1, self.num_layers))
        }

    def scores(self, layer: int, view: View) -> Scores:
        rows_E = rows_of(view, self.num_experts)
        table = self._tables.get((view.layer, layer))
        return rows_E if table is None else rows_E @ table  # no rows at the start of a step
