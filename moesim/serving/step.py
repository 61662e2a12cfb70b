"""A step: the batch of one forward pass of the model.

Its content depends on requests and memory, and not on time. So several steps may be formed before
the first one runs. Their times are recorded later, by `Step.stamp`.
"""

from __future__ import annotations

import numpy as np

from moesim.hardware.ops import BatchShape
from moesim.machine.work import FAR
from moesim.serving.ledger import StepFacts
from moesim.serving.request import Request
from moesim.serving.scheduler import Batch


class Step:
    """The batch of one forward pass. Creating it advances the planned requests.

    - `parts`: (request, first position, tokens, whether it emits a token), in planned order.
    - `rows`: trace rows of the step's tokens, in the same order.
    - `emitting`, `finished`: the requests that emit a token, and those that emit their last one.
    - `known_ahead`: rows of the next step whose tokens exist: of each request inside its prompt (or
      recomputing), as many as it computes in this step. With `future_tokens`, each request that
      emits a token and is not finished adds one row, since all its rows are routed alike.
    - `batch`, `facts`: the sums that the cost model and the ledger need.
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

    def __init__(
        self, plan: Batch, number: int, blocks: int, *, future_tokens: bool = False
    ) -> None:
        """Form step `number` (from 0), with `blocks` KV blocks in use.

        `future_tokens` is as in `Knowledge`.
        """
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
                request.scheduled_ns = FAR  # in a step, though its time is not known yet
                self._newcomers.append((request, request.emitted))
            if not request.decoding:
                prefill += tokens
            before = request.position
            total += tokens
            # A row attends to all rows before it and to itself.
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
                elif future_tokens:
                    # The first row, because the next token does not exist yet.
                    ahead.append(request.first_row)
            else:
                ahead.append(request.next_rows(min(tokens, request.tokens_wanted)))
        self.rows = rows[0] if len(rows) == 1 else np.concatenate(rows)
        self.known_ahead = np.concatenate(ahead) if ahead else rows[0][:0]
        self.batch = BatchShape(total, entries, pairs, sampled, len(plan))
        self.facts = StepFacts(prefill, total - prefill, len(plan), blocks)

    def stamp(self, start_ns: int, finish_ns: int) -> None:
        """Record that the step ran from `start_ns` until the host had its tokens."""
        for request, emitted in self._newcomers:
            request.scheduled_ns = start_ns
            request.token_ns += [start_ns] * emitted  # the first token, if prefill is skipped
        for request, *_ in self.parts:
            request.serve(start_ns, finish_ns)
        for request in self.emitting:
            request.token_ns.append(finish_ns)
