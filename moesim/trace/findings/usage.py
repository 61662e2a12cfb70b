"""How experts are used: popularity, and what tokens share with the token before, layer by layer.

The chance level of overlap is that of two distinct tokens of the same domain. It is estimated from
pairs of distinct tokens, so that short traces have no bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moesim.trace.findings.sample import Sample

__all__ = ["Layer", "Reuse", "layers_of", "repeated_rows", "reuse", "spread", "token_overlap"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layer:
    """The use of the experts of one layer.

    `uses` in all; `entropy_bits` of the experts' shares; `effective` experts, two to the power of
    the entropy; `skew`, the most popular expert's uses over the mean; `idle` experts without any
    use; `variation`, the standard deviation of the experts' true shares over their mean, without
    what chance adds; `overlap`, the share of a token's experts that the token before used, and
    `chance_overlap`; `same_ids`, the share whose number is used in the next layer too, and
    `chance_same_ids` (NaN at the last layer).
    """

    layer: int
    uses: int
    entropy_bits: float
    effective: float
    skew: float
    idle: int
    variation: float
    overlap: float
    chance_overlap: float
    same_ids: float
    chance_same_ids: float


def layers_of(sample: Sample) -> list[Layer]:
    """Return the use of the experts of each layer."""
    result = []
    used_TE = sample.uses(0)
    for layer in range(sample.layers):
        later_TE = sample.uses(layer + 1) if layer + 1 < sample.layers else None
        result.append(_layer(sample, layer, used_TE, later_TE))
        used_TE = used_TE if later_TE is None else later_TE
    return result


def _layer(sample: Sample, layer: int, used_TE: Bools, later_TE: Bools | None) -> Layer:
    counts = used_TE.sum(axis=0)
    uses = int(counts.sum())
    share = counts[counts > 0] / max(uses, 1)
    entropy = float(-(share * np.log2(share)).sum()) if uses else math.nan
    overlap, chance = token_overlap(used_TE, sample)
    same, chance_same = math.nan, math.nan
    if later_TE is not None and uses:
        same = float((used_TE & later_TE).sum() / uses)
        chance_same = float((counts * later_TE.mean(axis=0)).sum() / uses)
    return Layer(
        layer, uses, entropy, 2**entropy if uses else math.nan,
        float(counts.max() * sample.experts / uses) if uses else math.nan,
        int((counts == 0).sum()), spread(counts, len(used_TE)), overlap, chance, same, chance_same,
    )  # fmt: skip


def spread(counts: npt.NDArray[np.int64], rows: int) -> float:
    """Return the variation of experts' shares beyond that of `rows` independent uniform draws."""
    mean = float(counts.mean())
    if not mean:
        return math.nan
    share = mean / rows
    # The counts of uniform draws without replacement vary like this by themselves.
    by_chance = rows * share * (1 - share) * (len(counts) - 1) / len(counts)
    excess = float(((counts - mean) ** 2).mean()) - by_chance
    return math.sqrt(max(0.0, excess)) / mean


def token_overlap(used_TE: Bools, sample: Sample) -> tuple[float, float]:
    """Return the share of uses that the token before has too, and that by chance."""
    second = np.flatnonzero(sample.follows)
    uses = int(used_TE[second].sum())
    if not uses:
        return math.nan, math.nan
    shared = int((used_TE[second] & used_TE[second - 1]).sum())
    domain_T = sample.row_domain
    expected = 0.0
    for number in range(len(sample.domains)):
        of_domain = domain_T == number
        counts, rows = used_TE[of_domain].sum(axis=0).astype(np.float64), int(of_domain.sum())
        pairs = int(used_TE[second[of_domain[second]]].sum())
        if rows > 1 and counts.sum():
            chance = (counts * (counts - 1)).sum() / (counts.sum() * (rows - 1))
            expected += pairs * float(chance)
    return shared / uses, expected / uses


def repeated_rows(sample: Sample) -> float:
    """Return the share of rows whose experts are those of the row before, at all layers."""
    ordered = np.sort(sample.ids, axis=2)
    second = np.flatnonzero(sample.follows)
    if not len(second):
        return math.nan
    return float((ordered[second] == ordered[second - 1]).all(axis=(1, 2)).mean())


@dataclass(frozen=True, slots=True)
class Reuse:
    """How many tokens ago a request last used an expert, all layers pooled.

    `within[n]` is the share of uses at a distance of at most n tokens; `shuffled` is the same with
    the tokens of each domain shuffled over its requests. `first` is the share of uses of an expert
    that its request had not used.
    """

    within: dict[int, float]
    shuffled: dict[int, float]
    first: float
    median: float


def reuse(sample: Sample, rng: np.random.Generator, steps: Sequence[int] = ()) -> Reuse:
    """Return the reuse distances of a sample. `steps` are the distances to report."""
    longest = int(sample.lengths.max())
    distances = list(steps) or [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < longest]
    counts, uses = _distances(sample, sample.ids)
    mixed = np.arange(sample.rows)
    domain_T = sample.row_domain
    for number in range(len(sample.domains)):
        rows = np.flatnonzero(domain_T == number)
        mixed[rows] = rng.permutation(rows)
    null, _ = _distances(sample, sample.ids[mixed])
    reached, reached_null = np.cumsum(counts), np.cumsum(null)
    total = int(counts.sum())
    median = float(np.searchsorted(reached, total / 2)) if total else math.nan
    return Reuse(
        {n: float(reached[n] / max(uses, 1)) for n in distances},
        {n: float(reached_null[n] / max(uses, 1)) for n in distances},
        1 - total / uses if uses else math.nan,
        median,
    )


def _distances(
    sample: Sample, ids_TLk: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return [d]: uses whose expert was last used d tokens ago, and the number of all uses."""
    counts = np.zeros(int(sample.lengths.max()) + 1, np.int64)
    uses = 0
    for layer in range(sample.layers):
        token, place = np.nonzero(ids_TLk[:, layer] != sample.unused)
        uses += len(token)
        expert = ids_TLk[token, layer, place].astype(np.int64)
        key = sample.request[token] * sample.experts + expert
        order = np.argsort(key, kind="stable")
        key, token = key[order], token[order]
        again = key[1:] == key[:-1]
        counts += np.bincount(np.diff(token)[again], minlength=len(counts))
    return counts, uses
