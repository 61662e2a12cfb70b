"""The times of one run on one machine: steps, layer events, requests and the whole.

A layer event lasts from the end of its layer's `Front` (attention and router) to the end of the
last computation of its experts: readback of the ids, waiting for copies and computing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.hardware.ops import Experts, Front
from moesim.machine.work import Work
from moesim.results.metrics import ratio
from moesim.serving.server import Server
from moesim.simulate import finish
from moesim.simulate.build import Plan
from moesim.validate.decisions import Decisions, Witness

__all__ = ["Columns", "Observation", "observe"]

Columns = dict[str, npt.NDArray[Any]]

_STEPS = (
    "step", "tokens", "prefill_tokens", "decode_tokens", "sequences", "accesses", "misses",
    "late_hits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Observation:
    """One run. Times are nanoseconds since its start, one entry a step, layer event or request.

    `steps` and `events` have `start_ns` and `finish_ns` beside their contents. `requests` have -1
    for a moment that never came. `busy_share` is the share of time in steps that the compute lane
    worked; `stall_share` is the rest.
    """

    makespan_ns: int
    steps: Columns = field(repr=False)
    events: Columns = field(repr=False)
    requests: Columns = field(repr=False)
    busy_share: float
    stall_share: float
    decisions: Decisions = field(repr=False)


def observe(plan: Plan, server: Server, witness: Witness, now_ns: int) -> Observation:
    """Read a finished run from its server and from the witness that observed it.

    Raises:
        InvariantError: a check of the run's totals fails.
    """
    finish(plan, server, now_ns)
    ledger = server.ledger
    steps = ledger.step_columns()
    stalled = sum(map(sum, ledger.stall_ns))
    return Observation(
        now_ns,
        {name: steps[name] for name in (*_STEPS, "start_ns", "finish_ns")},
        _events(witness),
        _requests(server),
        ratio(ledger.busy_ns["gpu"], ledger.stepping_ns) or 0.0,
        ratio(stalled, ledger.stepping_ns) or 0.0,
        witness.decisions(),
    )


def _events(witness: Witness) -> Columns:
    """Return one row for each layer event that wanted any expert, in order."""
    fronts: dict[tuple[int, int], tuple[Work, Front]] = {}
    experts: dict[tuple[int, int], list[tuple[Work, Experts]]] = defaultdict(list)
    for issued in witness.works:
        work, place = issued.work, (issued.step, issued.layer)
        if isinstance(work.op, Front):
            fronts[place] = work, work.op
        elif isinstance(work.op, Experts):
            experts[place].append((work, work.op))
    # Experts that are computed elsewhere were not in GPU memory either.
    absent = Counter((step, layer) for step, layer, *_ in (*witness.misses, *witness.placements))
    rows = []
    for place, computed in experts.items():
        front, op = fronts[place]
        keys = sum(len(experts.keys) for _, experts in computed)
        last = max(work.finish_ns for work, _ in computed)
        rows.append((*place, op.batch.tokens, keys, absent[place], front.finish_ns, last))
    names = ("step", "layer", "tokens", "accesses", "misses", "start_ns", "finish_ns")
    table = np.array(rows, np.int64).reshape(-1, len(names))
    return {name: table[:, place] for place, name in enumerate(names)}


def _requests(server: Server) -> Columns:
    requests = server.requests
    moments = {
        "arrival_ns": [request.arrival_ns for request in requests],
        "first_token_ns": [request.token_ns[0] if request.token_ns else -1 for request in requests],
        "finish_ns": [
            request.token_ns[-1] if request.status == "finished" else -1 for request in requests
        ],
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "output_tokens": [request.output_tokens for request in requests],
    }
    return {
        "request": np.arange(len(requests)),
        **{name: np.array(values, np.int64) for name, values in moments.items()},
    }
