"""Redundancy of layer-wise routers: how much a layer's choice tells of the next layer's.

S(l) is a token's choice at layer l. The more S(l-1) tells of it, the less is there for a router of
layer l to decide, which is Read-ME's case for one router for all layers (Cai et al., NeurIPS 2024,
section 3). Measured here for every two adjacent layers: transition counts, and the mutual
information I(S(l); S(l-1)) in bits.

The plain ("plug-in") estimate is too large, the more so the fewer tokens fill a cell; with many
experts it is mostly that bias. Two corrections stand beside it: that of Miller and Madow (Miller,
1955), which fails too where most cells are never seen, and the mean of a permutation null, the
same estimate after S(l-1) was shuffled over the tokens. The null undoes every dependence, also
what comes from the text rather than from the routers: a domain prefers experts of its own at both
layers, and the first token is often the same in all requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.progress import Progress
from moesim.streams import stream
from moesim.trace.choices import Choices, Ints, State, choices

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

__all__ = [
    "DENSE",
    "Redundancy",
    "Transition",
    "Transitions",
    "redundancy",
    "sparse_pairs",
    "transitions",
]

DENSE: Final = 5.0
"""Tokens per occupied cell below which a plug-in estimate is mostly bias: a rule of thumb."""

_NATS_TO_BITS: Final = 1 / math.log(2)


@dataclass(frozen=True, slots=True)
class Transition:
    """Of `tokens` tokens in state `before`, the share `probability` chose `after` next."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    probability: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Transitions:
    """What all tokens chose at two adjacent layers; `layer` is the second of them."""

    layer: int
    before: Choices
    after: Choices

    def shuffled(self, rng: np.random.Generator) -> Transitions:
        """The same with the choices before dealt out to the tokens anew: the null."""
        codes_T = rng.permutation(self.before.codes)
        return Transitions(self.layer, Choices(codes_T, self.before.states), self.after)

    def cells(self) -> tuple[Ints, Ints, Ints]:
        """(state before, state after, tokens) of each occupied cell, in rising order."""
        width = len(self.after.states)
        joint, counts = _counted(self.before.codes * width + self.after.codes)
        return joint // width, joint % width, counts

    def matrix(self, most: int | None = None) -> npt.NDArray[np.float64]:
        """P(S(l) | S(l-1)), a row a state before; the `most` most frequent states of either
        (default: all). A row sums to one only where it shows all that followed."""
        rows, columns = len(self.before.states[:most]), len(self.after.states[:most])
        before, after, counts = self.cells()
        shown = (before < rows) & (after < columns)
        table = np.zeros((rows, columns))
        table[before[shown], after[shown]] = counts[shown]
        return np.asarray(table / self.before.counts[:rows, None])

    def information(self) -> tuple[float, float]:
        """I(S(l); S(l-1)) in bits: plug-in, and with the correction of Miller and Madow."""
        counts = self.before.counts, self.after.counts, self.cells()[2]
        before, after, joint = map(_entropy, counts)
        plugin = before + after - joint
        spare = sum(map(len, counts[:2])) - len(counts[2]) - 1
        correction = spare / (2 * len(self.before.codes)) * _NATS_TO_BITS
        return max(0.0, plugin), plugin + correction

    def likeliest(self, min_count: int) -> Transition | None:
        """The largest entry of the matrix among rows of at least `min_count` tokens (of equals,
        the one with most tokens); None where no row has so many."""
        before, after, counts = self.cells()
        total = self.before.counts[before]
        enough = np.flatnonzero(total >= min_count)
        if not len(enough):
            return None
        share = counts / total
        best = enough[np.lexsort((-total[enough], -share[enough]))[0]]
        return Transition(
            self.before.states[before[best]],
            self.after.states[after[best]],
            float(share[best]),
            int(total[best]),
        )


@dataclass(frozen=True, slots=True)
class Redundancy:
    """How much layer `layer` - 1 tells of layer `layer`, in bits a token.

    Attributes: `tokens` counted; `states_before`, `states_after`, `cells` occupied;
    `entropy_bits`, H(S(l)), the upper limit; `plugin_bits` and `miller_madow_bits`, two estimates
    of I(S(l); S(l-1)); `null_bits` and `null_spread_bits`, mean and standard deviation of the
    plug-in over the shuffles; `likeliest`, the largest transition probability that is seen often
    enough, or None.
    """

    layer: int
    tokens: int
    states_before: int
    states_after: int
    cells: int
    entropy_bits: float
    plugin_bits: float
    miller_madow_bits: float
    null_bits: float
    null_spread_bits: float
    likeliest: Transition | None

    @property
    def corrected_bits(self) -> float:
        """Plug-in less the null's mean: near 0 for independent layers, and too small by the
        null for layers that determine one another."""
        return self.plugin_bits - self.null_bits

    @property
    def normalised(self) -> float:
        """Plug-in over H(S(l)); NaN where the layer always chooses the same."""
        return self.plugin_bits / self.entropy_bits if self.entropy_bits else math.nan

    @property
    def adjusted(self) -> float:
        """(I - null) / (H(S(l)) - null): 0 by chance, 1 where layer l follows from the one before
        (adjusted for chance as by Vinh, Epps and Bailey, JMLR 2010); NaN where chance is all."""
        room = self.entropy_bits - self.null_bits
        return self.corrected_bits / room if room > 1e-9 else math.nan

    @property
    def tokens_per_cell(self) -> float:
        """Tokens per occupied cell: with few, the plug-in is mostly bias."""
        return self.tokens / self.cells


def transitions(trace: Trace, layer: int | None = None, state: State = "set") -> Transitions:
    """What all tokens chose at `layer` - 1 and `layer` (default: the last two trace layers).

    Raises:
        UsageError: a trace of one layer or fewer than two tokens, or no such pair in it.
    """
    _check(trace)
    last = trace.num_layers - 1
    layer = last if layer is None else layer
    if not 1 <= layer <= last:
        raise UsageError(
            f"the trace has no pair of layers {layer - 1} and {layer}: choose from 1 to {last}"
        )
    return Transitions(layer, choices(trace, layer - 1, state), choices(trace, layer, state))


def redundancy(
    trace: Trace,
    *,
    state: State = "set",
    shuffles: int = 20,
    min_count: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Redundancy]:
    """The redundancy of every two adjacent layers, first pair first.

    `shuffles` of the null, each with a random stream of its own; `min_count` tokens must have been
    in a state for its transitions to count as likeliest.

    Raises:
        UsageError: a trace of one layer or fewer than two tokens, fewer than two shuffles, a
            `min_count` below one, or states that the trace cannot tell.
    """
    _check(trace)
    if shuffles < 2:
        raise UsageError(f"shuffles must be at least 2 to have a spread, not {shuffles}")
    if min_count < 1:
        raise UsageError(f"min_count must be at least 1, not {min_count}")
    found = []
    before = choices(trace, 0, state)
    for layer in range(1, trace.num_layers):
        after = choices(trace, layer, state)
        found.append(_measured(Transitions(layer, before, after), shuffles, min_count, seed))
        before = after
        if progress is not None:
            progress("layer pairs", layer, trace.num_layers - 1)
    return found


def sparse_pairs(found: Sequence[Redundancy]) -> int:
    """How many pairs have too few tokens a cell for their plug-in to mean anything."""
    return sum(one.tokens_per_cell < DENSE for one in found)


def _measured(pair: Transitions, shuffles: int, min_count: int, seed: int) -> Redundancy:
    plugin, miller_madow = pair.information()
    null = [
        pair.shuffled(stream(seed, "redundancy.null", pair.layer, number)).information()[0]
        for number in range(shuffles)
    ]
    return Redundancy(
        layer=pair.layer,
        tokens=len(pair.after.codes),
        states_before=len(pair.before.states),
        states_after=len(pair.after.states),
        cells=len(pair.cells()[0]),
        entropy_bits=_entropy(pair.after.counts),
        plugin_bits=plugin,
        miller_madow_bits=miller_madow,
        null_bits=float(np.mean(null)),
        null_spread_bits=float(np.std(null, ddof=1)),
        likeliest=pair.likeliest(min_count),
    )


def _entropy(counts: Ints) -> float:
    """Plug-in entropy in bits of counts, all of them positive."""
    total = counts.sum()
    if len(counts) == 1:
        return 0.0  # exactly
    return float(np.log2(total) - (counts * np.log2(counts)).sum() / total)


def _counted(codes: Ints) -> tuple[Ints, Ints]:
    """The distinct codes in rising order and how often each is there."""
    if codes.max() < 4 * len(codes):  # a small table is quicker than sorting
        counts = np.bincount(codes)
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(codes, return_counts=True)


def _check(trace: Trace) -> None:
    if trace.num_layers < 2:
        raise UsageError("the trace has one layer; redundancy compares adjacent layers")
    if trace.num_rows < 2:
        raise UsageError("the trace has one token; redundancy needs at least two")
