"""Requests that wait: those that have arrived and that no step has served yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.report.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Times = NDArray[np.int64]

__all__ = ["waiting_ns"]


def waiting_ns(run: Run) -> tuple[Times, Times]:
    """Return when requests begin to wait, and when waiting ones are first served, in ns.

    Each is in ascending order. A request that is never served waits until the run ends. Rejected
    requests, and those that a closed client never sent, do not wait.
    """
    import numpy as np

    table = run.table("requests", ("arrival_ns", "scheduled_ns", "status"))
    arrival, scheduled = (table[key].astype(np.int64) for key in ("arrival_ns", "scheduled_ns"))
    waits = (arrival >= 0) & (table["status"] != "rejected")
    return np.sort(arrival[waits]), np.sort(scheduled[waits & (scheduled >= 0)])
