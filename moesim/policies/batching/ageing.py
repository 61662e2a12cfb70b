"""Ageing: a request that was passed over in many steps goes first, so no request starves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from moesim.policies.batching.base import StepPlan


class Ageing:
    """Counts for each request the steps since it was last served.

    A request is old after `limit` of them. With `limit` None, no request gets old.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._passed_over: Counter[int] = Counter()

    def split(self, requests: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the old requests, then the others, both in the given order."""
        old = [request for request in requests if self._is_old(request.index)]
        return old, [request for request in requests if not self._is_old(request.index)]

    def note(self, requests: Sequence[Any], plan: StepPlan) -> None:
        """Record a planned step: the `requests` that are not in it were passed over."""
        served = {request.index for request, _ in plan}
        skipped = [request.index for request in requests if request.index not in served]
        # A new counter drops the requests that were served or have finished.
        self._passed_over = Counter({index: self._passed_over[index] + 1 for index in skipped})

    def _is_old(self, index: int) -> bool:
        return self._limit is not None and self._passed_over[index] >= self._limit
