"""A request: a prompt to compute and a number of tokens to emit, with its state in the server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


class Request:
    """One request. States: waiting (holds no KV blocks) → running → finished; or rejected.

    To emit output token e + 1, the first prompt + e rows must be in the KV cache. `position` counts
    the rows that are, and `target` the rows needed. A preempted request starts again at its first
    row and computes all rows as prefill (recompute).

    `wait_steps` counts the steps from arrival to the first step that serves the request.
    `pause_steps` and `pause_ns` are the longest pause between two steps that serve it, including
    preemptions.

    `arrival_ns` is -1 until the request is sent, if that time depends on the run (closed loop).
    `think_ns` is the time from its end until its client sends another request; None if arrivals
    do not wait for ends.

    `rows` are trace rows, one for each computed position. `tiled_rows` of them come from other
    requests than `source`, the recorded one that it replays. `token_ns` are the times of the
    emitted tokens.

    With a prefix cache, `prefix` are the identities of the prompt's units of `unit_tokens` tokens.
    `units` counts those that the request holds, and `reused_tokens` the rows that it found cached
    when it was admitted first.
    """

    __slots__ = (
        "arrival_ns",
        "blocks",
        "domain",
        "due",
        "emitted",
        "first_row_position",
        "index",
        "name",
        "output_tokens",
        "pause_ns",
        "pause_steps",
        "position",
        "preemptions",
        "prefix",
        "prompt_tokens",
        "reused_tokens",
        "rows",
        "scheduled_ns",
        "served_ns",
        "source",
        "status",
        "think_ns",
        "tiled_rows",
        "token_ns",
        "unit_tokens",
        "units",
        "wait_steps",
    )

    def __init__(
        self,
        index: int,
        *,
        arrival_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        rows: npt.NDArray[np.int64],
        domain: str = "",
        tiled_rows: int = 0,
        cached_tokens: int = 0,
        think_ns: int | None = None,
        source: int = -1,
        prefix: tuple[int, ...] = (),
        unit_tokens: int = 0,
    ) -> None:
        self.index = index
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.rows = rows
        self.domain = domain
        self.tiled_rows = tiled_rows
        self.think_ns = think_ns
        self.source = source
        self.prefix = prefix
        self.unit_tokens = unit_tokens
        self.units = 0
        self.reused_tokens = 0
        # The KV entries of these tokens exist from the start, and `rows` begins behind them.
        self.first_row_position = cached_tokens
        self.position = self.first_row_position
        # The prefill of a prompt that is cached whole would have emitted the first token.
        self.emitted = int(cached_tokens >= prompt_tokens)
        self.blocks = 0
        self.preemptions = 0
        self.scheduled_ns = -1  # before the first step
        self.served_ns = -1  # the end of the last step that served it
        self.due = 0  # number of the first step that could serve it next
        self.wait_steps = self.pause_steps = self.pause_ns = 0
        self.token_ns: list[int] = []
        self.status = "waiting"

    @property
    def target(self) -> int:
        """Number of rows that must be computed before the next token."""
        return self.prompt_tokens + self.emitted

    @property
    def tokens_wanted(self) -> int:
        """Number of rows that the request could compute in the next step."""
        return self.prompt_tokens + self.emitted - self.position

    @property
    def decoding(self) -> bool:
        """Whether one row is left before the next token, and the prompt is computed."""
        # Written out instead of `tokens_wanted`: a property of a property costs time in each step.
        return self.emitted > 0 and self.prompt_tokens + self.emitted - self.position == 1

    @property
    def finished(self) -> bool:
        """Whether all output tokens are emitted."""
        return self.emitted == self.output_tokens

    @property
    def max_kv_tokens(self) -> int:
        """Number of KV entries when the last token is emitted, which itself is never computed."""
        return self.prompt_tokens + self.output_tokens - 1

    @property
    def first_row(self) -> npt.NDArray[np.int64]:
        """The trace row of the first position, as an array of one.

        Its token exists on arrival. With a static router it has the routing of all rows.
        """
        return self.rows[:1]

    def next_rows(self, tokens: int) -> npt.NDArray[np.int64]:
        """Return the trace rows of the next `tokens` positions."""
        start = self.position - self.first_row_position
        return self.rows[start : start + tokens]

    def last_rows(self, tokens: int) -> npt.NDArray[np.int64]:
        """Return the trace rows of at most `tokens` computed positions, the newest first."""
        end = self.position - self.first_row_position
        return self.rows[max(0, end - tokens) : end][::-1]

    def plan_in(self, step: int) -> None:
        """Record that step number `step` serves the request, and how many steps passed it over."""
        passed_over = step - self.due
        self.due = step + 1
        if self.scheduled_ns < 0:
            self.wait_steps = passed_over
        elif passed_over > self.pause_steps:
            self.pause_steps = passed_over

    def decode(self, steps: int, finish_ns: Sequence[int]) -> None:
        """Record that steps in a row each decoded one token, without a pause before the first."""
        self.position += steps
        self.emitted += steps
        self.due += steps
        self.served_ns = finish_ns[-1]
        self.token_ns += finish_ns

    def serve(self, start_ns: int, finish_ns: int) -> None:
        """Record that a step that serves the request ran from `start_ns` to `finish_ns`."""
        if self.served_ns >= 0:
            self.pause_ns = max(self.pause_ns, start_ns - self.served_ns)
        self.served_ns = finish_ns

    def restart(self) -> None:
        """Forget all computed rows (preemption by recompute)."""
        self.position = self.first_row_position
        self.preemptions += 1
        self.status = "waiting"


def all_at_once(requests: Iterable[Request]) -> bool:
    """Return whether all requests arrive at time zero, so that no time can change a step."""
    return all(request.arrival_ns == 0 for request in requests)
