"""A step: the batch of one forward pass, formed before anybody knows when it will run.

What a step consists of depends on requests and memory alone, so it may be formed ahead of its
time; moments are written down when they are known.
"""

from __future__ import annotations

import numpy as np

from moesim.hardware.ops import BatchShape
from moesim.machine.base import FAR
from moesim.serving.request import Request
from moesim.serving.scheduler import Batch
from moesim.serving.step_sums import StepFacts


class Step:
    """Made from a plan, it moves the planned requests on by the rows they compute.

    `parts` are (request, first position, tokens, whether it emits a token), `rows` those of the
    trace, in the same order; `emitting` the requests that emit a token, `finished` those that
    emit their last; `known_ahead` the rows after these whose tokens are known already: as many
    again of each request that is still inside its prompt (or recomputes). A decoded token is
    known only when the step is over; but where routing is known `for_ever`, a request that emits
    one and goes on counts too, by a row that is routed as the next will be.
    """

    __slots__ = (
        "_newcomers",
        "batch",
        "emitting",
        "facts",
        "finished",
        "known_ahead",
        "parts",
        "rows",
    )

    def __init__(self, plan: Batch, number: int, blocks: int, *, for_ever: bool = False) -> None:
        """`number`: how many steps came before; `blocks`: KV blocks in use."""
        total = entries = pairs = sampled = prefill = 0
        rows = []
        ahead = []
        self.parts: list[tuple[Request, int, int, bool]] = []
        self.finished: list[Request] = []
        self.emitting: list[Request] = []
        self._newcomers: list[tuple[Request, int]] = []
        for request, tokens in plan:
            request.plan_in(number)
            if request.scheduled_ns < 0:
                request.scheduled_ns = FAR
                self._newcomers.append((request, request.emitted))
            if not request.decoding:
                prefill += tokens
            before = request.position
            total += tokens
            entries += before + tokens
            pairs += tokens * before + tokens * (tokens + 1) // 2
            rows.append(request.next_rows(tokens))
            request.position += tokens
            emits = request.position == request.target
            self.parts.append((request, before, tokens, emits))
            if emits:
                request.emitted += 1
                sampled += 1
                self.emitting.append(request)
                if request.finished:
                    self.finished.append(request)
                elif for_ever:
                    ahead.append(request.first_row)  # not the next: nothing unborn is ever read
            else:
                ahead.append(request.next_rows(min(tokens, request.tokens_wanted)))
        self.rows = rows[0] if len(rows) == 1 else np.concatenate(rows)
        self.known_ahead = np.concatenate(ahead) if ahead else rows[0][:0]
        self.batch = BatchShape(total, entries, pairs, sampled, len(plan))
        self.facts = StepFacts(prefill, total - prefill, len(plan), blocks)

    def stamp(self, start_ns: int, finish_ns: int) -> None:
        """It ran from `start_ns` until its tokens were known to the host."""
        for request, emitted in self._newcomers:
            request.scheduled_ns = start_ns
            request.token_ns += [start_ns] * emitted  # of a skipped prefill
        for request, *_ in self.parts:
            request.serve(start_ns, finish_ns)
        for request in self.emitting:
            request.token_ns.append(finish_ns)
