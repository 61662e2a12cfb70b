"""What stretches add to the ledger, kept until it repays to add it.

Shapes: S steps, L trace layers, C columns of sums.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.hardware.ops import Readback
from moesim.hardware.topology import D2H
from moesim.machine.prices import Prices, alone_ns
from moesim.serving.compiled.kernel import COLUMNS, Out
from moesim.serving.ledger import Ledger
from moesim.serving.step import Step
from moesim.serving.step_memo import StepBytes
from moesim.serving.step_sums import StepSums
from moesim.serving.unions import Unions

__all__ = ["Readbacks", "StretchLog", "facts_of"]

_ADD_EVERY: Final = 4096  # steps: the fixed costs of NumPy are shared
_TIMES: Final = ("number", "start", "finish", "fixed", "ids", "sampled", "ids_bytes",
                 "sampled_bytes", "waves_max")  # fmt: skip
_NAMES: Final = {
    "hits": "hits",
    "demand_copies": "demand_copies",
    "missed_rows": "missed_rows",
    "rows": "rows",
    "waves": "waves",
    "stall_demand": "stall demand",
    "busy_gpu": "busy gpu",
    "busy_h2d": "busy h2d",
}
"""The names of `StepSums`, by those of the kernel's columns."""


class Readbacks:
    """Bytes and times of the readbacks of each step: its ids of a layer, and its sampled tokens.

    The first step of a stretch may have prompts, so its readbacks differ from those of the others.
    """

    def __init__(self, first: StepBytes, later: StepBytes, more: int, prices: Prices) -> None:
        def each(one: int, other: int) -> npt.NDArray[np.int64]:
            column = np.full(more + 1, other, np.int64)
            column[0] = one
            return column

        def lasts_ns(nbytes: int) -> int:
            return alone_ns(prices, D2H, Readback(nbytes)) if nbytes else 0

        self.ids_bytes = each(first.ids, later.ids)
        self.sampled_bytes = each(first.sampled, later.sampled)
        self.ids_ns = each(lasts_ns(first.ids), lasts_ns(later.ids))
        self.sampled_ns = each(lasts_ns(first.sampled), lasts_ns(later.sampled))


class StretchLog:
    """The sums of stretches that the ledger of a run does not have yet."""

    def __init__(self, ledger: Ledger, layers: int, nbytes: int, block_tokens: int) -> None:
        self._ledger, self._layers, self._nbytes = ledger, layers, nbytes
        self._block_tokens = block_tokens
        self._steps = 0
        self._times: list[npt.NDArray[np.int64]] = []  # of _TIMES, [9, S]
        self._facts: list[npt.NDArray[np.int64]] = []  # [S, 4]
        self._by_step: list[npt.NDArray[np.int64]] = []  # [S, C]
        self._by_layer = np.zeros((layers, len(COLUMNS)), np.int64)
        self._waits = np.zeros(layers, np.int64)  # for ids, where a layer wants experts
        self._waits_all = 0

    def add(
        self,
        step: Step,
        ran: int,
        start_ns: int,
        gpu_ns: npt.NDArray[np.int64],
        backs: Readbacks,
        out: Out,
        unions: Unions,
    ) -> None:
        """Add the first `ran` steps of a stretch, which began with `step` at `start_ns`.

        `unions` has the keys of these steps alone, and the sizes of all.
        """
        ledger, layers = self._ledger, self._layers
        times = np.empty((len(_TIMES), ran), np.int64)
        times[0] = ledger.num_steps + np.arange(ran)
        times[1, 0], times[1, 1:] = start_ns, out.finish_ns[: ran - 1]
        times[2], times[3] = out.finish_ns[:ran], gpu_ns[:ran]
        times[4], times[5] = backs.ids_ns[:ran], backs.sampled_ns[:ran]
        times[6], times[7] = backs.ids_bytes[:ran], backs.sampled_bytes[:ran]
        times[8] = out.waves_max[:ran]
        self._times.append(times)
        self._facts.append(facts_of(step, ran, self._block_tokens))
        self._by_step.append(out.by_step[:ran])
        self._by_layer += out.by_layer
        sizes = unions.sizes[: ran * layers]
        first_wants = (sizes[:layers] > 0).astype(np.int64)
        later_want = out.by_layer[:, COLUMNS.index("nonempty")] - first_wants
        self._waits += times[4, 0] * first_wants + times[4, -1] * later_want
        self._waits_all += int(times[4].sum())
        ledger.num_steps += ran
        wants = out.by_step[:ran, COLUMNS.index("nonempty")]
        ledger.log_arrays(sizes, unions.keys, wants.tolist())
        self._steps += ran
        if self._steps >= _ADD_EVERY:
            self.flush()

    def flush(self) -> None:
        """Add all steps to the ledger. Raise `InvariantError` for impossible times."""
        if not self._steps:
            return
        by_step = np.concatenate(self._by_step)
        StepSums(
            **dict(zip(_TIMES, np.concatenate(self._times, axis=1), strict=True)),
            facts=np.concatenate(self._facts),
            by_step=self._named(by_step),
            by_layer=self._named(self._by_layer),
            waves_events=by_step[:, COLUMNS.index("waves_events")],
            ids_stall=self._waits,
            late_stall=self._waits_all - self._waits,
        ).add_to(self._ledger)
        self._steps, self._times, self._facts, self._by_step = 0, [], [], []
        self._by_layer = np.zeros_like(self._by_layer)
        self._waits, self._waits_all = np.zeros_like(self._waits), 0

    def _named(self, sums: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return columns of sums by the names of `StepSums`."""
        columns = dict(zip(COLUMNS, sums.T, strict=True))
        copied = columns["demand_copies"] * self._nbytes
        named = {name: columns[own] for own, name in _NAMES.items()}
        return {**named, "demand_bytes": copied, "moved demand": copied}


def facts_of(step: Step, ran: int, block_tokens: int) -> npt.NDArray[np.int64]:
    """Return the facts of each step, [S, 4]: those of the first, with more KV blocks."""
    facts = np.tile(np.array(step.facts, np.int64), (ran, 1))
    if ran == 1:
        return facts
    later = np.arange(ran)
    facts[1:, 0], facts[1:, 1] = 0, len(step.parts)  # all decode
    for _, before, tokens, _ in step.parts:
        held = before + tokens
        facts[:, 3] += -(-(held + later) // block_tokens) - -(-held // block_tokens)
    return facts
