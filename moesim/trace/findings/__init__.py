"""What a trace's routing is like, and what it is good for: measures, and verdicts from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moesim.streams import stream
from moesim.trace.findings.domains import Domains, domains_of
from moesim.trace.findings.duplicates import Duplicates, duplicates
from moesim.trace.findings.length import FEW, Interval, interval
from moesim.trace.findings.prediction import Foresight, foresight
from moesim.trace.findings.sample import MOST_ROWS, Sample, sampled
from moesim.trace.findings.unions import Union, overflow, unions
from moesim.trace.findings.usage import Layer, Reuse, layers_of, repeated_rows, reuse
from moesim.trace.statistics import prediction_recall

if TYPE_CHECKING:
    from moesim.progress import Progress
    from moesim.trace.trace import Trace

__all__ = [
    "FEW",
    "MOST_ROWS",
    "Domains",
    "Duplicates",
    "Findings",
    "Foresight",
    "Interval",
    "Layer",
    "Reuse",
    "Sample",
    "Union",
    "examine",
    "interval",
    "overflow",
    "sampled",
]

_UNIFORM: Final = 0.1  # variation of popularity below which it counts as uniform
_CHANCE: Final = 0.01  # overlap this near to chance counts as chance, or within a tenth of it
_PER_EXPERT: Final = 30  # uses of an expert from which its share is known well enough
_PARTS: Final = ("usage", "reuse", "prediction", "unions", "domains", "prompts", "length")


@dataclass(frozen=True, slots=True)
class Findings:
    """All measures of one trace, of its rows or of a sample of them.

    `recorded_recall` is that of the trace's own predictions by depth, None without any. `hits` is
    the hit rate of LRU with `slots` slots a layer, with its interval, None where it is not given.
    `overlap_interval` is that of the overlap of consecutive tokens beyond chance.
    """

    rows: int
    whole: bool
    requests: int
    experts: int
    top_k: int
    layers: list[Layer]
    reuse: Reuse
    repeated_rows: float
    foresight: list[Foresight]
    recorded_recall: list[float] | None
    unions: list[Union]
    domains: Domains | None
    duplicates: Duplicates | None
    overlap_interval: Interval
    slots: int | None
    hits: Interval | None

    @property
    def entropy_share(self) -> float:
        """Return the mean entropy over its maximum."""
        most = math.log2(self.experts) if self.experts > 1 else math.nan
        return mean([one.entropy_bits for one in self.layers]) / most

    @property
    def variation(self) -> float:
        """Return the root mean square of the layers' variation of popularity."""
        return math.sqrt(mean([one.variation**2 for one in self.layers]))

    @property
    def overlap(self) -> float:
        """Return the mean overlap of consecutive tokens over layers."""
        return mean([one.overlap for one in self.layers])

    @property
    def chance_overlap(self) -> float:
        """Return the mean overlap by chance over layers."""
        return mean([one.chance_overlap for one in self.layers])

    @property
    def enough_uses(self) -> bool:
        """Return whether experts have enough uses to judge their popularity."""
        return self.rows * self.top_k >= _PER_EXPERT * self.experts

    @property
    def uniform(self) -> bool | None:
        """Return whether all experts are equally popular; None where uses are too few."""
        return self.variation < _UNIFORM if self.enough_uses else None

    @property
    def independent(self) -> bool | None:
        """Return whether consecutive tokens share no more than chance; None where unknown."""
        if math.isnan(self.overlap):
            return None
        excess = self.overlap - self.chance_overlap
        if abs(excess) < min(_CHANCE, 0.1 * self.chance_overlap):
            return True
        one = self.overlap_interval
        return False if math.isnan(one.low) else bool(one.low <= self.chance_overlap <= one.high)

    @property
    def collapsed(self) -> list[int]:
        """Return the layers that use little more than the same experts for all tokens."""
        least = min(1.5 * self.top_k, 0.5 * self.experts)
        if not self.enough_uses or self.top_k == self.experts:
            return []
        return [one.layer for one in self.layers if one.effective < least]

    def as_plain(self) -> dict[str, Any]:
        """Return the findings as plain data."""
        plain = asdict(self)
        for name in ("entropy_share", "variation", "overlap", "chance_overlap", "uniform",
                     "independent", "collapsed"):  # fmt: skip
            plain[name] = getattr(self, name)
        if self.hits is not None:
            plain["hits"] |= {"verdict": self.hits.verdict, "requests_needed": self.hits.needed
                              if not math.isnan(self.hits.half_width) else None}  # fmt: skip
        return plain


def examine(
    trace: Trace,
    sample: Sample | None = None,
    *,
    seed: int = 0,
    hits: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Measure a trace, or a sample of it (default: at most `MOST_ROWS` rows in whole requests).

    `hits` are slots a layer, and the hits and accesses of each request with LRU, from a replay.
    """
    sample = sampled(trace, seed=seed) if sample is None else sample

    def rng(name: str) -> np.random.Generator:
        return stream(seed, f"trace info {name}")

    def told(part: int) -> None:
        if progress is not None:
            progress("measures", part, len(_PARTS))

    told(0)
    layers = layers_of(sample)
    told(1)
    distances = reuse(sample, rng("reuse"))
    repeats = repeated_rows(sample)
    told(2)
    table = foresight(sample)
    told(3)
    sizes = unions(sample, rng("unions"))
    told(4)
    domains = domains_of(sample, rng("domains"))
    told(5)
    prompts = duplicates(sample)
    told(6)
    shared = interval(*_overlap_by_request(sample), rng("overlap"))
    lru = None if hits is None else interval(hits[1], hits[2], rng("hits"))
    told(7)
    return Findings(
        sample.rows, sample.whole, len(sample.lengths), sample.experts, sample.top_k, layers,
        distances, repeats, table, prediction_recall(trace), sizes, domains, prompts, shared,
        None if hits is None else hits[0], lru,
    )  # fmt: skip


def _overlap_by_request(sample: Sample) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each request the uses that the token before has too, and all uses after it."""
    second = np.flatnonzero(sample.follows)
    shared_T, uses_T = np.zeros(len(second), np.int64), np.zeros(len(second), np.int64)
    for layer in range(sample.layers):
        used_TE = sample.uses(layer)
        shared_T += (used_TE[second] & used_TE[second - 1]).sum(axis=1)
        uses_T += used_TE[second].sum(axis=1)
    requests = len(sample.lengths)
    of = sample.request[second]
    return (
        np.bincount(of, shared_T, requests).astype(np.int64),
        np.bincount(of, uses_T, requests).astype(np.int64),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are defined; NaN without any."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
