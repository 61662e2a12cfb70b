"""The window: the part of a run that the summary counts, so that ramp-up and drain can be left out.

Both forms of `metrics.window` give two moments at which no step is in progress. Sums over steps are
those of the steps between them. Latencies are those of the requests that finished between them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.config.units import format_duration_ns
from moesim.errors import ScenarioError
from moesim.serving.totals import Totals, totals_of

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.scenario.metrics import Window as Chosen
    from moesim.serving.ledger import Ledger
    from moesim.serving.request import Request

__all__ = ["Window", "check_window", "find_window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a run: what happened after `after_ns` and not after `to_ns`.

    An `after_ns` of -1 includes what happened at time zero. `totals` are of its steps.
    """

    after_ns: int
    to_ns: int
    totals: Totals

    @property
    def from_ns(self) -> int:
        """Time at which the window starts."""
        return max(0, self.after_ns)

    @property
    def duration_ns(self) -> int:
        """Length of the window."""
        return self.to_ns - self.from_ns

    def count(self, times_ns: Sequence[int]) -> int:
        """Return how many of the times, in ascending order, are inside."""
        return bisect_right(times_ns, self.to_ns) - bisect_right(times_ns, self.after_ns)

    def finished(self, requests: Iterable[Request]) -> list[Request]:
        """Return the requests that finished inside."""
        return [
            request
            for request in requests
            if request.status == "finished" and self.count(request.token_ns[-1:])
        ]


def check_window(scenario: Scenario, requests: Sequence[Request]) -> None:
    """Raise `ScenarioError` if the window leaves out all requests of the workload."""
    chosen = scenario.metrics.window
    if chosen is not None and chosen.skip_requests + chosen.last >= len(requests):
        raise ScenarioError.at(
            scenario,
            "metrics.window",
            f"leaves out the first {chosen.skip_requests} and the last {chosen.last} of "
            f"{len(requests)} requests, so none is left; leave out fewer, or raise "
            "workload.requests",
        )


def find_window(
    scenario: Scenario, requests: Sequence[Request], ledger: Ledger, now_ns: int
) -> Window:
    """Return the window of a run that ended at `now_ns`; without `metrics.window`, all of it.

    Raise `ScenarioError` if no step is inside.
    """
    chosen = scenario.metrics.window
    if chosen is None or ledger.per_step is None:
        return Window(-1, now_ns, totals_of(ledger))
    steps = ledger.step_columns()
    if chosen.by_time:
        after_ns, to_ns = _between_times(chosen, steps, now_ns)
    else:
        after_ns, to_ns = _between_requests(chosen, requests, now_ns)
    # The last row is of what was added between the last step and the end of the run.
    ends = [*steps["finish_ns"].tolist(), now_ns]
    rows = range(bisect_right(ends, after_ns), bisect_right(ends, to_ns))
    if after_ns >= to_ns or rows.start >= min(rows.stop, len(ends) - 1):
        raise ScenarioError.at(
            scenario,
            "metrics.window",
            f"has no step inside; the run lasts {format_duration_ns(now_ns)} and finishes "
            f"{sum(request.status == 'finished' for request in requests)} requests; "
            "choose a longer window",
        )
    return Window(after_ns, to_ns, ledger.per_step.of(ledger, rows))


def _between_requests(chosen: Chosen, requests: Sequence[Request], now_ns: int) -> tuple[int, int]:
    """Return the ends of the steps in which the last requests before and inside finished.

    Without requests before, -1 takes the first of the two places.
    """
    ends = sorted(request.token_ns[-1] for request in requests if request.status == "finished")
    first, last = chosen.skip_requests, len(ends) - chosen.last
    if first >= last:  # requests that were rejected never finish
        return now_ns, now_ns
    return ends[first - 1] if first else -1, ends[last - 1] if chosen.last else now_ns


def _between_times(chosen: Chosen, steps: dict[str, Any], now_ns: int) -> tuple[int, int]:
    """Return the times of the window, each moved inwards to a moment without a step.

    A window from time zero on starts before it, at -1.
    """
    starts, finishes = steps["start_ns"], steps["finish_ns"]
    after, until = chosen.after or -1, now_ns if chosen.until is None else chosen.until
    first = int(np.searchsorted(starts, after, "left"))
    stop = int(np.searchsorted(finishes, until, "right"))
    after_ns = max(after, int(finishes[first - 1])) if first else after
    to_ns = min(until, int(starts[stop]) if stop < len(starts) else now_ns)
    return after_ns, to_ns
