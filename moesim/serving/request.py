"""A request on its way through the server."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Request:
    """States: waiting (queued, holds no KV) → running → finished; or rejected on arrival.

    To emit output token e + 1, its first prompt + e rows must be in the KV cache: `position`
    counts those that are, `target` those needed. A preempted request starts over at position 0
    (recompute), which re-touches its rows as prefill.

    How long it was passed over: `wait_steps` from its arrival to its first step, and at most
    `pause_steps`, `pause_ns` between two steps that serve it, a preemption's included.
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
        "prompt_tokens",
        "rows",
        "scheduled_ns",
        "served_ns",
        "status",
        "tiled_rows",
        "token_ns",
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
        prefill_skipped: bool = False,
    ) -> None:
        self.index = index
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.rows = rows
        self.domain = domain
        self.tiled_rows = tiled_rows
        # With a skipped prefill the prompt's KV is there already and its rows do not exist.
        self.first_row_position = prompt_tokens if prefill_skipped else 0
        self.position = self.first_row_position
        self.emitted = int(prefill_skipped)
        self.blocks = 0
        self.preemptions = 0
        self.scheduled_ns = -1
        self.served_ns = -1  # the end of the last step that served it
        self.due = 0  # the first step that could serve it next
        self.wait_steps = self.pause_steps = self.pause_ns = 0
        self.token_ns: list[int] = []
        self.status = "waiting"

    @property
    def target(self) -> int:
        """Rows that must be computed before the next token appears."""
        return self.prompt_tokens + self.emitted

    @property
    def tokens_wanted(self) -> int:
        """Rows it could compute in the next step."""
        return self.prompt_tokens + self.emitted - self.position

    @property
    def decoding(self) -> bool:
        """It needs one row to emit its next token, and is past its prompt."""
        return self.emitted > 0 and self.prompt_tokens + self.emitted - self.position == 1

    @property
    def finished(self) -> bool:
        return self.emitted == self.output_tokens

    @property
    def max_kv_tokens(self) -> int:
        """KV entries it holds when its last token appears."""
        return self.prompt_tokens + self.output_tokens - 1

    @property
    def first_row(self) -> npt.NDArray[np.int64]:
        """The trace row of its first position alone: where all are routed alike, it tells of them
        all. Its token is there when the request arrives."""
        return self.rows[:1]

    def next_rows(self, tokens: int) -> npt.NDArray[np.int64]:
        """Trace rows of its next `tokens` positions."""
        start = self.position - self.first_row_position
        return self.rows[start : start + tokens]

    def plan_in(self, step: int) -> None:
        """Step number `step` serves it: those since it was due did not."""
        passed_over = step - self.due
        self.due = step + 1
        if self.scheduled_ns < 0:
            self.wait_steps = passed_over
        elif passed_over > self.pause_steps:
            self.pause_steps = passed_over

    def serve(self, start_ns: int, finish_ns: int) -> None:
        """A step that serves it ran from `start_ns` to `finish_ns`."""
        if self.served_ns >= 0:
            self.pause_ns = max(self.pause_ns, start_ns - self.served_ns)
        self.served_ns = finish_ns

    def restart(self) -> None:
        """Forget all computed rows (preemption by recompute)."""
        self.position = self.first_row_position
        self.preemptions += 1
        self.status = "waiting"
