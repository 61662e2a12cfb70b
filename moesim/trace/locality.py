"""Locality: how often a token of a request follows the experts of the token before it.

Measured at each layer and within requests only, in three ways that agree where routing is top-1:
the same *top* expert (the largest gate weight), the same *set* of experts, and the *overlap*, the
share of a token's experts that the token before it used too. Beside each stands what chance would
give: two tokens drawn independently from their domain's own popularity at that layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.progress import Progress
from moesim.streams import stream
from moesim.trace.choices import Ints, choices

if TYPE_CHECKING:
    from moesim.trace.trace import Trace

__all__ = ["Distances", "Locality", "distances", "follows", "locality", "pooled", "shared_places"]


@dataclass(frozen=True, slots=True)
class Locality:
    """Shares of pairs of consecutive tokens in one domain at one layer (None: several pooled).

    Attributes: `pairs` of a token and the one before it, counted once a layer; `uses` of experts
    by the second tokens; `same_top` and `same_set`, shares of pairs; `overlap`, share of uses;
    `chance_...`, the same for independent tokens. `..._top` is NaN where no gate weight tells.
    """

    domain: str | None
    layer: int | None
    pairs: int
    uses: int
    same_top: float
    chance_top: float
    same_set: float
    chance_set: float
    overlap: float
    chance_overlap: float


@dataclass(frozen=True, slots=True)
class Distances:
    """How many tokens ago a request last used an expert that a token of a domain uses now.

    Attributes: `uses`, all of them, layers pooled; `counts` int64 (longest + 1,): `[d]` of them
    found their expert d tokens ago ([0] is 0; the rest are first uses in their request);
    `null_counts` float64, the same with the domain's tokens shuffled over its requests (mean).
    """

    domain: str
    uses: int
    counts: Ints
    null_counts: npt.NDArray[np.float64]

    @property
    def first_uses(self) -> float:
        """Share of uses of an expert that the request had not used before."""
        return 1 - float(self.counts.sum() / self.uses) if self.uses else math.nan

    @property
    def median(self) -> float:
        """Median distance of the uses that have one, in tokens; NaN without any."""
        return _median(self.counts)

    @property
    def null_median(self) -> float:
        """The same of the shuffled tokens."""
        return _median(self.null_counts)


def follows(trace: Trace) -> npt.NDArray[np.bool_]:
    """Whether each row has a row of its own request before it, (rows,)."""
    inside = np.ones(trace.num_rows, bool)
    inside[trace.requests["first_row"][trace.requests["num_rows"] > 0]] = False
    return inside


def shared_places(
    ids: npt.NDArray[np.integer], before: npt.NDArray[np.integer], unused: int
) -> npt.NDArray[np.bool_]:
    """Which places of `ids` (..., k) hold an expert that `before` (..., k) holds as well."""
    return np.asarray(
        (ids[..., :, None] == before[..., None, :]).any(axis=-1) & (ids != unused), dtype=bool
    )


def locality(trace: Trace) -> list[Locality]:
    """The locality of each domain at each layer, domains in alphabetical order.

    Raises:
        UsageError: no request has two tokens.
    """
    domains, domain_T = _domain_of_rows(trace)
    second_T = np.flatnonzero(follows(trace))
    if not len(second_T):
        raise UsageError("no request of the trace has two tokens; locality compares neighbours")
    told = trace.top_k == 1 or trace.gate_weights is not None
    found = []
    for layer in range(trace.num_layers):
        ids_Tk = np.asarray(trace.expert_ids[:, layer])
        sets_T = choices(trace, layer, "set").codes
        tops_T = choices(trace, layer, "top").codes if told else None
        for number, domain in enumerate(domains):
            rows = np.flatnonzero(domain_T == number)
            pairs = second_T[domain_T[second_T] == number]
            uses, overlap, chance = _overlap(ids_Tk, rows, pairs, trace.meta.unused)
            same_top, chance_top = _same(tops_T, rows, pairs)
            same_set, chance_set = _same(sets_T, rows, pairs)
            found.append(
                Locality(
                    domain, layer, len(pairs), uses, same_top, chance_top, same_set, chance_set,
                    overlap, chance,
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.domain or "", one.layer or 0))


def pooled(parts: Sequence[Locality], domain: str | None = None) -> Locality:
    """The mean of parts: of pairs' shares weighted by pairs, of the overlap weighted by uses.

    So chance stays that of each domain and layer by itself.
    """

    def mean(name: str, weight: str) -> float:
        total = sum(getattr(part, weight) for part in parts)
        weighed = (
            getattr(part, name) * getattr(part, weight) for part in parts if getattr(part, weight)
        )
        return sum(weighed) / total if total else math.nan

    by_pairs = ("same_top", "chance_top", "same_set", "chance_set")
    return Locality(
        domain=domain,
        layer=None,
        pairs=sum(part.pairs for part in parts),
        uses=sum(part.uses for part in parts),
        **{name: mean(name, "pairs") for name in by_pairs},
        **{name: mean(name, "uses") for name in ("overlap", "chance_overlap")},
    )


def distances(
    trace: Trace,
    *,
    shuffles: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Distances]:
    """The temporal distances of each domain, all layers pooled, domains in alphabetical order.

    Raises:
        UsageError: fewer than one shuffle.
    """
    if shuffles < 1:
        raise UsageError(f"shuffles must be at least 1, not {shuffles}")
    domains, domain_T = _domain_of_rows(trace)
    request_T = np.repeat(np.arange(trace.num_requests), trace.requests["num_rows"])
    found = []
    for number, domain in enumerate(domains):
        rows = np.flatnonzero(domain_T == number)
        ids_TLk, requests_T = trace.expert_ids[rows], request_T[rows]
        measured = _distance_counts(ids_TLk, requests_T, trace)
        rngs = [stream(seed, "locality.null", number, shuffle) for shuffle in range(shuffles)]
        null = [_distance_counts(rng.permutation(ids_TLk), requests_T, trace) for rng in rngs]
        uses = int((ids_TLk != trace.meta.unused).sum())
        found.append(Distances(domain, uses, measured, np.mean(null, axis=0)))
        if progress is not None:
            progress("domains", number + 1, len(domains))
    return found


def _domain_of_rows(trace: Trace) -> tuple[list[str], Ints]:
    """The names of the domains that have rows, and the number of each row's."""
    names = np.repeat(trace.requests["domain"].astype(str), trace.requests["num_rows"])
    domains, domain_T = np.unique(names, return_inverse=True)
    return domains.tolist(), domain_T.astype(np.int64)


def _same(codes_T: Ints | None, rows: Ints, pairs: Ints) -> tuple[float, float]:
    """Share of pairs that chose the same, and the sum of squared frequencies over `rows`."""
    if codes_T is None or not len(pairs):
        return math.nan, math.nan
    share = np.bincount(codes_T[rows]) / len(rows)
    return float((codes_T[pairs] == codes_T[pairs - 1]).mean()), float((share**2).sum())


def _overlap(
    ids_Tk: npt.NDArray[np.integer], rows: Ints, pairs: Ints, unused: int
) -> tuple[int, float, float]:
    """Uses by the second tokens of pairs, the share of them that is shared, and by chance."""
    uses = int((ids_Tk[pairs] != unused).sum())
    if not uses:
        return 0, math.nan, math.nan
    shared = shared_places(ids_Tk[pairs], ids_Tk[pairs - 1], unused).sum()
    ids = ids_Tk[rows]
    share = np.bincount(ids[ids != unused]) / len(rows)  # of tokens that use an expert
    return uses, float(shared / uses), float((share**2).sum() / share.sum())


def _distance_counts(ids_TLk: npt.NDArray[np.integer], requests_T: Ints, trace: Trace) -> Ints:
    """How many uses found their expert d tokens ago in their request, at the same layer, [d]."""
    longest = int(trace.requests["num_rows"].max())
    counts = np.zeros(longest + 1, np.int64)
    for layer in range(trace.num_layers):
        token, place = np.nonzero(ids_TLk[:, layer] != trace.meta.unused)
        expert = ids_TLk[token, layer, place].astype(np.int64)
        key = requests_T[token] * trace.num_experts + expert
        order = np.argsort(key, kind="stable")  # within a key the tokens keep their order
        key, token = key[order], token[order]
        again = key[1:] == key[:-1]
        counts += np.bincount(np.diff(token)[again], minlength=longest + 1)
    return counts


def _median(counts: npt.NDArray[np.number]) -> float:
    total = counts.sum()
    return float(np.searchsorted(np.cumsum(counts), total / 2)) if total else math.nan
