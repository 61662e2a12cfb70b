"""A token's choice at a layer, as one number that routing statistics can count.

The choice is either the whole *set* of experts that the token uses (without order; smaller than
top-k if places are unused) or its *top* expert, the one with the largest gate weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

__all__ = ["STATES", "Choices", "Ints", "State", "choices", "top_experts"]

Ints = npt.NDArray[np.int64]
State = Literal["set", "top"]
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Choices:
    """The choice of each token at one layer.

    Attributes: `codes` int64 (tokens,), the number of each token's state; `states`, the expert
    ids of each number in rising order, () for a token that used none. Number 0 is the most
    frequent.
    """

    codes: Ints
    states: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> Ints:
        """Return how many tokens are in each state, the largest number first."""
        return np.bincount(self.codes, minlength=len(self.states))


def choices(trace: Trace, layer: int, state: State = "set") -> Choices:
    """Return the choices of all tokens at trace layer `layer`.

    States that are equally frequent are ordered by expert id.

    Raises:
        UsageError: no such layer or kind of state, or no gate weights to find a top expert by.
    """
    if not 0 <= layer < trace.num_layers:
        raise UsageError(f"layer {layer} is not in the trace: it has 0 to {trace.num_layers - 1}")
    if state not in STATES:
        raise UsageError(f"state {state!r} is none of {', '.join(STATES)}")
    if state == "top":
        ids_Tk = top_experts(trace, layer)[:, None]
    else:
        ids_Tk = np.sort(trace.expert_ids[:, layer].astype(np.int64), axis=1)
    ranks_T = np.zeros(len(ids_Tk), np.int64)
    # Number whole sets place by place: the rank of a prefix stays below the number of tokens, so
    # rank and one more id fit into 64 bits for any k.
    for ids_T in ids_Tk.T:
        ranks_T = np.unique(ranks_T * (trace.meta.unused + 1) + ids_T, return_inverse=True)[1]
    _, first, codes_T, counts = np.unique(
        ranks_T, return_index=True, return_inverse=True, return_counts=True
    )
    # Stable, so that equally frequent states keep the order of their ids.
    order = np.argsort(-counts, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    unused = trace.meta.unused
    states = tuple(
        tuple(expert for expert in ids if expert != unused) for ids in ids_Tk[first[order]].tolist()
    )
    return Choices(number[codes_T], states)


def top_experts(trace: Trace, layer: int) -> Ints:
    """Return the expert with each token's largest gate weight at a layer, (tokens,).

    Of equal weights the first place wins. A token without experts has `meta.unused`.

    Raises:
        UsageError: tokens use several experts and the trace has no gate weights.
    """
    ids_Tk = trace.expert_ids[:, layer].astype(np.int64)
    if trace.top_k == 1:
        return ids_Tk[:, 0]
    if trace.gate_weights is None:
        raise UsageError(
            f"the trace has no gate weights, so it is not known which of a token's {trace.top_k} "
            "experts is the top one; use whole sets instead (state: set)"
        )
    used_Tk = ids_Tk != trace.meta.unused
    weights_Tk = np.where(used_Tk, trace.gate_weights[:, layer].astype(np.float64), -1)
    return np.take_along_axis(ids_Tk, weights_Tk.argmax(axis=1)[:, None], axis=1)[:, 0]
