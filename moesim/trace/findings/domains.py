"""Whether domains use different experts: a permutation test on requests.

The statistic is the pseudo-F of a permutational analysis of variance (Anderson, 2001,
doi:10.1111/j.1442-9993.2001.01070.pp.x) on each request's shares of experts. Whole requests are
permuted, because tokens of one request are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.trace.findings.sample import Sample

__all__ = ["Domains", "domains_of"]

Floats = npt.NDArray[np.float64]

_PERMUTATIONS: Final = 199
_MOST_REQUESTS: Final = 1000
_SHOWN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Domains:
    """Domains with at least two requests each, and how far their popularity differs.

    `p` of the permutation test; `pair`, the two domains that differ most; `distance`, the total
    variation between their popularity (0 alike, 1 disjoint), a mean over layers; `by_chance`, the
    same for random groups of requests of the same sizes.
    """

    names: tuple[str, ...]
    p: float
    pair: tuple[str, str]
    distance: float
    by_chance: float

    @property
    def differ(self) -> bool:
        """Return whether domains differ by more than chance at the 5 % level."""
        return self.p < _SHOWN


def domains_of(sample: Sample, rng: np.random.Generator) -> Domains | None:
    """Return how domains differ; None with fewer than two domains of two requests each."""
    sizes = np.bincount(sample.domain[sample.lengths > 0], minlength=len(sample.domains))
    kept = np.flatnonzero(sizes >= 2)
    if len(kept) < 2:
        return None
    requests = np.flatnonzero(np.isin(sample.domain, kept) & (sample.lengths > 0))
    if len(requests) > _MOST_REQUESTS:
        requests = np.sort(rng.permutation(requests)[:_MOST_REQUESTS])
    share_RLE = _shares(sample, requests)
    label_R = np.searchsorted(kept, sample.domain[requests])
    flat = share_RLE.reshape(len(requests), -1)
    square_RR = _squares(flat)
    own = _pseudo_f(square_RR, label_R, len(kept))
    random = []
    for _ in range(_PERMUTATIONS):
        random.append(_pseudo_f(square_RR, rng.permutation(label_R), len(kept)))
    p = (1 + sum(value >= own for value in random)) / (1 + _PERMUTATIONS)
    pair, distance = _farthest(share_RLE, label_R, len(kept))
    mixed = [_between(share_RLE, rng.permutation(label_R), pair) for _ in range(20)]
    names = tuple(sample.domains[number] or "(unnamed)" for number in kept)
    return Domains(names, p, (names[pair[0]], names[pair[1]]), distance, float(np.mean(mixed)))


def _shares(sample: Sample, requests: npt.NDArray[np.int64]) -> Floats:
    """Return each request's share of each expert at each layer, (requests, layers, experts)."""
    shape = (len(requests), sample.layers, sample.experts)
    counts = np.zeros(shape, np.float64)
    place_R = np.full(len(sample.lengths), -1)
    place_R[requests] = np.arange(len(requests))
    row_T = place_R[sample.request]
    for layer in range(sample.layers):
        token, place = np.nonzero((sample.ids[:, layer] != sample.unused) & (row_T[:, None] >= 0))
        np.add.at(counts[:, layer], (row_T[token], sample.ids[token, layer, place]), 1)
    return np.asarray(counts / np.maximum(counts.sum(axis=2, keepdims=True), 1))


def _squares(flat: Floats) -> Floats:
    norm = (flat**2).sum(axis=1)
    return np.asarray(np.maximum(norm[:, None] + norm[None, :] - 2 * flat @ flat.T, 0))


def _pseudo_f(square_RR: Floats, label_R: npt.NDArray[np.int64], groups: int) -> float:
    count = len(label_R)
    total = square_RR.sum() / (2 * count)
    member_RG = np.eye(groups)[label_R]
    inner = np.einsum("rg,rs,sg->g", member_RG, square_RR, member_RG, optimize=True)
    within = float((inner / (2 * member_RG.sum(axis=0))).sum())
    if within <= 0 or count <= groups:
        return math.inf if total > within else 0.0
    return float((total - within) / (groups - 1) / (within / (count - groups)))


def _farthest(
    share_RLE: Floats, label_R: npt.NDArray[np.int64], groups: int
) -> tuple[tuple[int, int], float]:
    pairs = list(combinations(range(groups), 2))
    distances = [_between(share_RLE, label_R, pair) for pair in pairs]
    best = int(np.argmax(distances))
    return pairs[best], distances[best]


def _between(share_RLE: Floats, label_R: npt.NDArray[np.int64], pair: tuple[int, int]) -> float:
    """Return the total variation between the mean shares of two groups, a mean over layers."""
    first, second = (share_RLE[label_R == number].mean(axis=0) for number in pair)
    return float(abs(first - second).sum(axis=1).mean() / 2)
