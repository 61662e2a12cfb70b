"""Gate scores: the share of each expert in a layer event, for policies that weigh by the router."""

from __future__ import annotations

from moesim.policies.view import Key, View

__all__ = ["gate_scores"]


def gate_scores(view: View, experts_per_layer: int) -> dict[Key, float]:
    """Return each key's share of the scores of a layer event; shares sum to 1.

    Scores are the router's probabilities of all experts if the trace records them. Else they are
    the gate weights of the chosen experts, and without those the numbers of rows.
    """
    scores: dict[Key, float]
    if probabilities := view.probabilities():
        first = view.layer * experts_per_layer
        scores = {first + expert: value for expert, value in enumerate(probabilities)}
    else:
        weights = view.gate_weights() or view.tokens or (1,) * len(view.union)
        scores = dict(zip(view.union, weights, strict=True))
    total = sum(scores.values())
    return {key: score / total for key, score in scores.items()} if total else {}
