"""Ageing: whoever was passed over for long goes first, so that no order starves anybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from moesim.policies.batching.base import StepPlan


class Ageing:
    """Counts for each request the steps since it was last served. After `limit` of them it is old;
    without a limit nobody ever is."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._passed_over: Counter[int] = Counter()

    def split(self, requests: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Those that are old, and the others, each in the order given."""
        old = [request for request in requests if self._is_old(request.index)]
        return old, [request for request in requests if not self._is_old(request.index)]

    def note(self, requests: Sequence[Any], plan: StepPlan) -> None:
        """A step was planned: all of `requests` that are not in it were passed over."""
        served = {request.index for request, _ in plan}
        present = [request.index for request in requests if request.index not in served]
        self._passed_over = Counter({index: self._passed_over[index] + 1 for index in present})

    def _is_old(self, index: int) -> bool:
        return self._limit is not None and self._passed_over[index] >= self._limit
