"""Slow, plain versions of the prefetch policies that learn from a trace.

Each ranks the experts of later layers by dictionaries and loops, from all layer events so far. Sums
of shares can differ in their last digit, so near ties may be broken in either order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

from moesim.trace import Trace

NEAR = 1e-9


class Look(NamedTuple):
    """What one call showed: a layer event, or the start of a step with layer -1."""

    layer: int
    rows: dict[int, int]  # of each expert that the event wants
    weights: dict[int, float]  # gate weights; empty where none are recorded
    requests: tuple[int, ...]


class Table(NamedTuple):
    """The rows of the training part, request by request, as lists of experts by layer."""

    requests: list[list[list[list[int]]]]
    weights: list[list[list[list[float]]]]
    layers: int
    experts: int
    top_k: int


def table_of(trace: Trace, share: float) -> Table:
    """Return the first `share` of the requests of a trace."""
    chosen = [trace.slice(number) for number in range(round(share * trace.num_requests))]
    ids: list[Any] = [trace.expert_ids[rows].astype(int).tolist() for rows in chosen]
    weights = []
    if trace.gate_weights is not None:
        weights = [trace.gate_weights[rows].astype(float).tolist() for rows in chosen]
    unused = int(trace.meta.unused)
    kept = [[[[e for e in k if e != unused] for k in row] for row in rows] for rows in ids]
    return Table(kept, weights, trace.num_layers, trace.num_experts, trace.top_k)


Scores = dict[int, float]


def popularity(table: Table, looks: Sequence[Look], layer: int, rule: str = "") -> Scores:
    """Return the uses of each expert of a layer."""
    scores: Scores = {}
    for rows in table.requests:
        for row in rows:
            for expert in row[layer]:
                scores[expert] = scores.get(expert, 0) + 1
    return scores


def _after(pairs: list[tuple[list[int], list[int]]], rows: dict[int, int]) -> Scores:
    scores: Scores = {}
    for wanted, count in rows.items():
        seen = sum(wanted in before for before, _ in pairs)
        for before, after in pairs:
            for expert in after if wanted in before else ():
                scores[expert] = scores.get(expert, 0) + count / seen
    return scores


def _bayes(pairs: list[tuple[list[int], list[int]]], table: Table, rows: dict[int, int]) -> Scores:
    """Return naive Bayes of the mean row, with half an occurrence added to each count."""
    if not rows:
        return {}
    number = max(1.0, sum(rows.values()) / table.top_k)
    scores: Scores = {}
    for expert in range(table.experts):
        followed = [before for before, after in pairs if expert in after]
        score = len(followed) + 0.5
        for wanted, count in rows.items():
            share = (sum(wanted in before for before in followed) + 0.5) / (len(followed) + 1)
            score *= share ** (count / number)
        scores[expert] = score
    best = max(scores.values())
    return {expert: score / best for expert, score in scores.items()}


def previous_layer(table: Table, looks: Sequence[Look], layer: int, rule: str = "sum") -> Scores:
    """Return a score of each expert, given the rows of the last layer event."""
    now = looks[-1]
    if now.layer < 0:
        return {}
    pairs = [(row[now.layer], row[layer]) for rows in table.requests for row in rows]
    return _bayes(pairs, table, now.rows) if rule == "bayes" else _after(pairs, now.rows)


def previous_token(table: Table, looks: Sequence[Look], layer: int, rule: str = "sum") -> Scores:
    """Return a score of each expert, given the rows of the layer's last event."""
    before = [look for look in looks if look.layer == layer]
    pairs = [
        (earlier[layer], later[layer])
        for rows in table.requests
        for earlier, later in itertools.pairwise(rows)
    ]
    if not before:
        return {}
    rows = before[-1].rows
    return _bayes(pairs, table, rows) if rule == "bayes" else _after(pairs, rows)


BY_SCORE: dict[str, Callable[[Table, Sequence[Look], int, str], Scores]] = {
    "popularity": popularity,
    "previous_layer": previous_layer,
    "previous_token": previous_token,
}


def is_ranking(answer: Sequence[int], scores: Scores, most: int) -> bool:
    """Return whether an answer is the `most` highest positive scores, the highest first."""
    named = [scores.get(expert, 0.0) for expert in answer]
    others = [score for expert, score in scores.items() if expert not in answer]
    right = len(answer) == min(most, sum(score > 0 for score in scores.values()))
    ordered = all(a >= b - NEAR for a, b in itertools.pairwise(named))
    best = max(others, default=0.0) <= min(named, default=float("inf")) + NEAR
    return right and ordered and best and len(set(answer)) == len(answer)


def _cosine(a: Scores, b: Scores) -> float:
    length = sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
    return sum(x * b.get(key, 0) for key, x in a.items()) / length if length else 0.0


def matrix_scores(table: Table, looks: Sequence[Look], depth: int) -> list[Scores]:
    """Return the scaled uses of the nearest activation matrix, by key; several if they tie."""
    start = 0
    steps = [place for place, look in enumerate(looks) if look.layer < 0]
    for earlier, later in itertools.pairwise(steps):
        if not set(looks[earlier].requests) & set(looks[later].requests):
            start = later
    running: list[Scores] = [{} for _ in range(table.layers)]
    for look in looks[start:]:
        for expert, count in look.rows.items():
            running[look.layer][expert] = running[look.layer].get(expert, 0) + count
    if not any(running):
        return [{}]
    stored = []
    for rows in table.requests:
        if not rows:
            continue
        uses: list[Scores] = [{} for _ in range(table.layers)]
        for row in rows:
            for layer, experts in enumerate(row):
                for expert in experts:
                    uses[layer][expert] = uses[layer].get(expert, 0) + 1
        stored.append(uses)
    distances = [
        sum(1 - _cosine(a, b) for a, b in zip(uses, running, strict=True)) / table.layers
        for uses in stored
    ]
    now = looks[-1].layer
    return [
        {
            layer * table.experts + expert: count * (1 - (layer - now) / (table.layers + 1))
            for layer in range(now + 1, min(now + depth, table.layers - 1) + 1)
            for expert, count in uses[layer].items()
        }
        for uses, distance in zip(stored, distances, strict=True)
        if distance <= min(distances) + NEAR
    ]


def _map(experts: list[list[int]], weights: list[list[float]] | None) -> list[Scores]:
    result = []
    for layer, chosen in enumerate(experts):
        shares = weights[layer][: len(chosen)] if weights else [1.0] * len(chosen)
        total = sum(shares)
        result.append({e: w / total for e, w in zip(chosen, shares, strict=True)} if total else {})
    return result


def trajectories(table: Table, looks: Sequence[Look]) -> list[tuple[list[Scores], float]]:
    """Return the maps that match the step best, each with its similarity; none at its start."""
    start = max(place for place, look in enumerate(looks) if look.layer < 0)
    seen: Scores = {}
    for look in looks[start + 1 :]:
        shares = look.weights or look.rows
        total = sum(shares.values())
        for expert, share in shares.items():
            seen[look.layer * table.experts + expert] = share / total if total else 0.0
    if not any(seen.values()):
        return []
    found = []
    for number, rows in enumerate(table.requests):
        for place, row in enumerate(rows):
            weights = table.weights[number][place] if table.weights else None
            layers = _map(row, weights)
            flat = {
                layer * table.experts + expert: share
                for layer in range(looks[-1].layer + 1)
                for expert, share in layers[layer].items()
            }
            found.append((layers, _cosine(seen, flat)))
    best = max(similarity for _, similarity in found)
    return [pair for pair in found if pair[1] >= best - NEAR]


def is_enough(answer: Sequence[int], scores: Scores, threshold: float, least: int) -> bool:
    """Return whether an answer is the shortest ranking whose sum reaches a threshold."""
    positive = sum(score > 0 for score in scores.values())
    reached = [
        count
        for near in (-NEAR, NEAR)
        for count in [_shortest(sorted(scores.values(), reverse=True), threshold + near)]
    ]
    sizes = {min(positive, max(least, count)) for count in reached}
    return len(answer) in sizes and is_ranking(answer, scores, len(answer))


def _shortest(shares: list[float], threshold: float) -> int:
    total = 0.0
    for count, share in enumerate(shares, 1):
        total += share
        if total >= threshold:
            return count
    return len(shares)
