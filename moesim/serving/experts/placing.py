"""Placing: asks the placement policy on which lane each absent expert of a layer event runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from moesim.hardware.topology import HOST
from moesim.policies.placement.answers import check_placement
from moesim.policies.placement.base import ARRIVING, Estimate, Placement
from moesim.policies.view import Key, View
from moesim.serving.experts.decision import Placed

__all__ = ["Placing"]


class _Estimate(Estimate, Protocol):
    rows: int


class Placing:
    """A placement policy with what it may see: places of experts, and estimates of durations.

    `lanes` are the lanes of the machine that compute. `place_of(key)` is the memory of an expert
    that is not in GPU memory; None: always `host`.
    """

    def __init__(
        self,
        policy: Placement,
        estimate: _Estimate,
        lanes: Sequence[str],
        place_of: Callable[[Key], str] | None = None,
    ) -> None:
        self.policy = policy
        self.estimate = estimate
        self._lanes = lanes
        self._place_of = place_of

    def __call__(
        self, view: View, missing: Sequence[Key], arriving: Sequence[Key], rows: int
    ) -> Placed:
        """Return the lanes of the absent keys that the policy names, in its order.

        `rows` are those of the step. Raise `PolicyViolation` for an impossible answer.
        """
        place_of = self._place_of
        absent = {key: HOST if place_of is None else place_of(key) for key in missing}
        absent.update(dict.fromkeys(arriving, ARRIVING))
        self.estimate.rows = rows
        answer = self.policy.place(view, absent, self.estimate)
        check_placement(self.policy.name, answer, absent, self._lanes)
        return answer
