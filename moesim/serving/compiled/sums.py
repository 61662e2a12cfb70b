"""The sums of overlapping events, on their way to the ledger.

Shapes: S steps, L trace layers, C columns of sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moesim.serving.compiled.log import add_blocks
from moesim.serving.compiled.records import COLUMNS, Sums
from moesim.serving.ledger import Ledger
from moesim.serving.step import Step
from moesim.serving.step_memo import StepBytes
from moesim.serving.step_sums import StepSums
from moesim.serving.unions import Unions

__all__ = ["OverlapSums"]


class OverlapSums:
    """The sums of stretches that the ledger of a run does not have yet."""

    def __init__(
        self, ledger: Ledger, layers: int, nbytes: int, state_bytes: int, block_tokens: int
    ) -> None:
        self._ledger, self._layers, self._nbytes = ledger, layers, nbytes
        self._state_bytes, self._block_tokens = state_bytes, block_tokens
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._times: list[npt.NDArray[np.int64]] = []  # number, start, finish, bytes, waves: [5, S]
        self._facts: list[npt.NDArray[np.int64]] = []  # [S, 4]
        self._by_step: list[npt.NDArray[np.int64]] = []  # [S, C]

    def add(
        self,
        step: Step,
        ran: int,
        start_ns: int,
        sizes: tuple[StepBytes, StepBytes],
        out: Sums,
        unions: Unions,
        returns: npt.NDArray[np.bool_],
    ) -> None:
        """Add the first `ran` steps of a stretch, which began with `step` at `start_ns`.

        `sizes` are the bytes of the first step's readbacks and of those of the others.
        """
        ledger = self._ledger
        times = np.empty((5, ran), np.int64)
        times[0] = ledger.num_steps + np.arange(ran)
        times[1, 0], times[1, 1:] = start_ns, out.finish_ns[: ran - 1]
        times[2], times[4] = out.finish_ns[:ran], out.waves_max[:ran]
        back = [int(returns.sum()) * each.ids + each.sampled for each in sizes]
        times[3], times[3, 0] = back[1], back[0]
        self._times.append(times)
        facts = np.tile(np.array(step.facts, np.int64), (ran, 1))
        if ran > 1:
            add_blocks(step, facts, self._block_tokens)
        self._facts.append(facts)
        self._by_step.append(out.by_step[:ran])
        ledger.num_steps += ran
        wants = out.by_step[:ran, COLUMNS.index("nonempty")]
        ledger.log_arrays(unions.sizes[: ran * self._layers], unions.keys, wants.tolist())
        self.steps += ran

    def flush(self, by_layer_LC: npt.NDArray[np.int64]) -> None:
        """Add all steps to the ledger, which add `by_layer_LC` to the sums of each layer.

        Raise `InvariantError` for impossible times.
        """
        if not self.steps:
            return
        number, start, finish, back, waves_max = np.concatenate(self._times, axis=1)
        by_step = dict(zip(COLUMNS, np.concatenate(self._by_step).T, strict=True))
        by_layer = dict(zip(COLUMNS, by_layer_LC.T, strict=True))
        for sums in (by_step, by_layer):
            for kind in ("demand", "prefetch"):
                sums[f"{kind}_bytes"] = sums[f"{kind}_copies"] * self._nbytes
        by_step["moved demand"] = by_step["demand_bytes"]
        by_step["moved prefetch"] = by_step["landed"] * self._nbytes
        by_step["moved readback"] = back
        facts = np.concatenate(self._facts)
        rows = facts[:, 0] + facts[:, 1]
        by_step["moved states"] = 2 * self._state_bytes * rows * by_step["states"]
        nothing, layers = np.zeros_like(number), np.zeros(self._layers, np.int64)
        StepSums(
            number=number,
            start=start,
            finish=finish,
            fixed=by_step["fixed"],
            ids=nothing,
            sampled=nothing,
            ids_bytes=nothing,
            sampled_bytes=nothing,
            facts=facts,
            by_step=by_step,
            by_layer={
                name: column if name.startswith("stall") else column[:-1]
                for name, column in by_layer.items()
            },
            waves_events=by_step["waves_events"],
            waves_max=waves_max,
            ids_stall=layers,
            late_stall=layers,
        ).add_to(self._ledger)
        self._clear()
