"""Recall and precision of policies that learn, one layer ahead, on requests not seen before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moesim.policies import Input, View, find, parse_options
from moesim.policies.prefetch import PrefetchContext
from moesim.simulate.lessons import lessons_of
from moesim.trace import Trace
from moesim.workload.workload import requests_of

__all__ = ["LEARNED", "Accuracy", "accuracy_of"]

LEARNED: Final[Mapping[str, Mapping[str, Any]]] = {
    "popularity": {},
    "previous_layer": {"combine": "bayes"},
    "previous_token": {"combine": "bayes"},
    "activation_matrix": {},
    "trajectory": {},
}
"""The policies that are measured, with their options; all look one layer ahead."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of needed experts that were predicted, and of predicted ones that were needed."""

    recall: float
    precision: float


class _Row(View):
    """One layer event of one row of one request."""

    __slots__ = ("_request", "_weights")

    def __init__(self, layer: int, keys: Sequence[int], weights: Sequence[float], request: int):
        super().__init__(layer, keys, [1] * len(keys))
        self._weights = weights
        self._request = request

    @property
    def requests(self) -> Sequence[int]:
        return (self._request,)

    def gate_weights(self) -> Sequence[float]:
        return self._weights


def accuracy_of(name: str, options: Mapping[str, Any], trace: Trace) -> Accuracy:
    """Return the accuracy of a policy that learns on the first half, served on the second.

    Requests are served one after another, one row a step. The first layer counts: a policy that
    predicts nothing at the start of a step misses its experts.
    """
    kind = find("prefetch", name)
    policy = kind(parse_options(kind, {**options, "depth": 1}))

    def lessons(given: Input) -> Any:
        assert given.part is not None
        return lessons_of(trace, given.part)

    rng = np.random.default_rng(0)
    policy.prepare(PrefetchContext(trace.num_layers, trace.num_experts, trace.top_k, rng, lessons))
    needed = predicted = right = 0
    for number in requests_of(trace, (0.5, 1.0)):
        for row in range(trace.slice(number).start, trace.slice(number).stop):
            guess: set[int] = set(policy.wanted(_Row(-1, (), (), number)))
            for layer, (keys, weights) in enumerate(_events(trace, row)):
                truth = set(keys)
                needed, predicted = needed + len(truth), predicted + len(guess)
                right += len(truth & guess)
                guess = set(policy.wanted(_Row(layer, keys, weights, number)))
    return Accuracy(right / needed, right / predicted)


def _events(trace: Trace, row: int) -> list[tuple[list[int], list[float]]]:
    """Return keys and gate weights of each layer of a row."""
    ids_LK = np.asarray(trace.expert_ids[row]).astype(np.int64)
    keys_LK = ids_LK + np.arange(trace.num_layers)[:, None] * trace.num_experts
    weights = trace.gate_weights
    if weights is None:
        return [(keys, []) for keys in keys_LK.tolist()]
    of_row = np.asarray(weights[row]).astype(float).tolist()
    return list(zip(keys_LK.tolist(), of_row, strict=True))
