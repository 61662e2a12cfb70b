"""What stretches add to the ledger, kept until it repays to add it.

Shapes: S steps, L trace layers, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.hardware.ops import Readback
from moesim.hardware.topology import D2H
from moesim.machine.prices import Prices, alone_ns
from moesim.serving.compiled.kernel import COLUMNS, Out, Steps
from moesim.serving.ledger import Ledger
from moesim.serving.step import Step
from moesim.serving.step_memo import StepBytes
from moesim.serving.step_sums import StepSums
from moesim.serving.unions import Unions

__all__ = ["Readbacks", "StretchLog", "add_blocks"]

_ADD_EVERY: Final = 4096  # steps: the fixed costs of NumPy are shared
_FEW_KEYS: Final = 1 << 18  # of a stretch: more are not copied to those of other stretches
_TIMES: Final = ("number", "start", "finish", "fixed", "ids", "sampled", "ids_bytes",
                 "sampled_bytes", "waves_max")  # fmt: skip
_START, _FINISH, _FIXED, _IDS, _SAMPLED, _WAVES_MAX = (
    _TIMES.index(name) for name in ("start", "finish", "fixed", "ids", "sampled", "waves_max")
)
_NAMES: Final = {
    "hits": "hits",
    "demand_copies": "demand_copies",
    "missed_rows": "missed_rows",
    "rows": "rows",
    "waves": "waves",
    "stall_demand": "stall demand",
    "busy_gpu": "busy gpu",
    "busy_h2d": "busy h2d",
    "residents": "residents",
}
"""The names of `StepSums`, by those of the kernel's columns."""


class Readbacks(NamedTuple):
    """Times and bytes of the readbacks of a step: its ids of a layer, and its sampled tokens."""

    ids_ns: int
    sampled_ns: int
    ids_bytes: int
    sampled_bytes: int

    @classmethod
    def of(cls, sizes: StepBytes, prices: Prices) -> Readbacks:
        """Return the readbacks of these sizes, where 0 bytes take no time."""
        ids_ns, sampled_ns = (
            alone_ns(prices, D2H, Readback(nbytes)) if nbytes else 0 for nbytes in sizes
        )
        return cls(ids_ns, sampled_ns, *sizes)


class StretchLog:
    """The steps of stretches that the ledger of a run does not have yet.

    They stand in tables, one row or column a step. `begin` takes the places of a stretch there, the
    kernel writes to the views that `out` returns, and `add` keeps the steps that have run.
    """

    def __init__(
        self, ledger: Ledger, layers: int, nbytes: int, block_tokens: int, *, keep: bool
    ) -> None:
        """Build empty tables. With `keep`, `kept` gets all steps, to be run again."""
        self._ledger, self._layers, self._nbytes = ledger, layers, nbytes
        self._block_tokens = block_tokens
        self.kept: list[Steps] | None = [] if keep else None
        self._steps = 0
        self._times = np.zeros((len(_TIMES), _ADD_EVERY), np.int64)
        self._facts = np.zeros((_ADD_EVERY, 4), np.int64)
        self._by_step = np.zeros((_ADD_EVERY, len(COLUMNS)), np.int64)
        self._by_layer = np.zeros((layers, len(COLUMNS)), np.int64)
        self._unions: list[Unions] = []

    def begin(
        self, gpu_ns: npt.NDArray[np.int64], first: Readbacks, later: Readbacks
    ) -> npt.NDArray[np.int64]:
        """Start a stretch; return the time of each of its steps outside of layer events, [S].

        `gpu_ns` [S] is that of the GPU. The first step may have prompts, so its readbacks differ
        from those of the others.
        """
        number = len(gpu_ns)
        if self._steps + number > _ADD_EVERY:
            self.flush()
        times = self._times[:, self._steps : self._steps + number]
        times[_FIXED] = gpu_ns
        times[_IDS:_WAVES_MAX, 0] = first
        fixed_ns = gpu_ns + (self._layers * later.ids_ns + later.sampled_ns)
        fixed_ns[0] = gpu_ns[0] + (self._layers * first.ids_ns + first.sampled_ns)
        if number > 1:
            times[_IDS:_WAVES_MAX, 1:] = np.array(later)[:, None]
        return fixed_ns

    def out(self, steps: int, works: int) -> Out:
        """Return what the kernel writes for a stretch. `works` is the number of its shown works."""
        first, end = self._steps, self._steps + steps
        return Out(
            self._times[_FINISH, first:end],
            self._by_step[first:end],
            self._by_layer,
            self._times[_WAVES_MAX, first:end],
            np.empty((works, 6), np.int64),
        )

    def add(self, step: Step, ran: int, start_ns: int, unions: Unions) -> None:
        """Keep the first `ran` steps of a stretch, which began with `step` at `start_ns`.

        `unions` are those of these steps alone.
        """
        first, end = self._steps, self._steps + ran
        start = self._times[_START]
        start[first] = start_ns
        start[first + 1 : end] = self._times[_FINISH, first : end - 1]
        self._facts[first:end] = step.facts
        if ran > 1:
            add_blocks(step, self._facts[first:end], self._block_tokens)
        self._unions.append(unions)
        self._steps = end
        self._ledger.num_steps += ran
        if len(unions.keys) >= _FEW_KEYS:
            self.flush()

    def flush(self) -> None:
        """Add all steps to the ledger. Raise `InvariantError` for impossible times."""
        steps, ledger = self._steps, self._ledger
        if not steps:
            return
        times, by_step = self._times[:, :steps], self._by_step[:steps]
        times[_TIMES.index("number")] = ledger.num_steps - steps + np.arange(steps)
        sizes = _joined([unions.sizes for unions in self._unions])
        keys = _joined([unions.keys for unions in self._unions])
        wants_ids = times[_IDS] @ (sizes.reshape(steps, self._layers) > 0)
        nonempty = by_step[:, COLUMNS.index("nonempty")]
        ledger.log_arrays(sizes, keys, nonempty.tolist())
        if self.kept is not None:
            counts = [unions.tokens[: len(unions.keys)] for unions in self._unions]
            fixed_ns = times[_FIXED] + self._layers * times[_IDS] + times[_SAMPLED]
            unshown = np.zeros(steps, np.bool_)
            self.kept.append(
                Steps(keys, _joined(counts), sizes, fixed_ns, unshown, ledger.num_experts)
            )
        StepSums(
            **dict(zip(_TIMES, times, strict=True)),
            facts=self._facts[:steps],
            by_step=self._named(by_step),
            by_layer=self._named(self._by_layer),
            waves_events=by_step[:, COLUMNS.index("waves_events")],
            ids_stall=wants_ids,
            late_stall=times[_IDS].sum() - wants_ids,
        ).add_to(ledger)
        for table in (self._times, self._by_step, self._by_layer):
            table[:] = 0
        self._steps, self._unions = 0, []

    def _named(self, sums: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return columns of sums by the names of `StepSums`."""
        columns = dict(zip(COLUMNS, sums.T, strict=True))
        copied = columns["demand_copies"] * self._nbytes
        named = {name: columns[own] for own, name in _NAMES.items()}
        return {**named, "demand_bytes": copied, "moved demand": copied}


def add_blocks(step: Step, facts: npt.NDArray[np.int64], block_tokens: int) -> None:
    """Count the KV blocks of steps [S, 4] behind a step, which all decode."""
    later = np.arange(len(facts))
    facts[1:, 0], facts[1:, 1] = 0, len(step.parts)
    for _, before, tokens, _ in step.parts:
        held = before + tokens
        facts[:, 3] += -(-(held + later) // block_tokens) - -(-held // block_tokens)


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
