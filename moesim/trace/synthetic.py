"""Synthetic routing with stated knobs, for tests and what-if questions; marked `synthetic`.

Real traces are the default everywhere. Uniform routing (`skew=0`, `stickiness=0`) gives every
policy a hit rate of capacity ÷ experts. That is a good oracle and a bad workload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.progress import Counter
from moesim.trace.meta import TraceMeta
from moesim.trace.trace import Trace
from moesim.trace.writer import TraceWriter

_MOST_CHOICES = 100_000_000  # more would fill the memory: each takes some 30 bytes
_MOST_WRITTEN = 10_000_000_000
"""Choices of the largest trace that is written request by request: three bytes each on disk."""


@dataclass(frozen=True, slots=True)
class SyntheticKnobs:
    """The properties of a synthetic trace.

    `skew`: exponent of a Zipf law over experts, in a different order for each layer.
    `cutoff`: how fast the law's tail falls below Zipf's: the popularity of rank r (from 1) is in
    proportion to r^-skew × exp(-cutoff × r / experts); 0 is Zipf's law.
    `stickiness`: chance that a token repeats the previous token's experts at a layer.
    `layer_correlation`: chance that a layer's experts follow, through a fixed permutation, from
    the layer before, for tokens that do not repeat. `prediction_accuracy`: chance that a recorded
    prediction is true. Stickiness is applied last. It holds exactly at the first layer. At later
    layers repeats are more frequent, because following a layer that repeats is repeating too.
    """

    requests: int = 32
    prompt_tokens: int = 32
    output_tokens: int = 32
    num_layers: int = 8
    num_experts: int = 16
    top_k: int = 2
    skew: float = 0.8
    stickiness: float = 0.2
    layer_correlation: float = 0.3
    prediction_depth: int = 0
    prediction_accuracy: float = 0.9
    seed: int = 0
    cutoff: float = 0.0

    @property
    def rows_each(self) -> int:
        """Number of rows of each request."""
        return self.prompt_tokens + self.output_tokens - 1

    def problem(self, *, in_memory: bool = True) -> str | None:
        """Return the first rule that these knobs break, or None.

        `in_memory`: whether all requests are drawn before any is used.
        """
        for name in ("requests", "prompt_tokens", "output_tokens", "num_layers", "top_k"):
            if getattr(self, name) < 1:
                return f"{name} must be at least 1, not {getattr(self, name)}"
        if self.top_k > self.num_experts:
            return f"top_k ({self.top_k}) exceeds num_experts ({self.num_experts})"
        for name in ("stickiness", "layer_correlation", "prediction_accuracy"):
            if not 0 <= getattr(self, name) <= 1:
                return f"{name} must lie between 0 and 1, not {getattr(self, name)}"
        if self.num_experts > 65_535:
            return f"num_experts ({self.num_experts}) exceeds 65535"
        if not 0 <= self.skew < 100:
            return f"skew must lie between 0 and 100, not {self.skew}"
        if not 0 <= self.cutoff < 1000:
            return f"cutoff must lie between 0 and 1000, not {self.cutoff}"
        for name in ("prediction_depth", "seed"):
            if getattr(self, name) < 0:
                return f"{name} must not be negative, not {getattr(self, name)}"
        each = self.rows_each * self.num_layers * self.top_k * (1 + self.prediction_depth)
        choices, most = self.requests * each, _MOST_CHOICES if in_memory else _MOST_WRITTEN
        if choices > most:
            return f"asks for {choices:,} choices of experts; at most {most:,} are drawn"
        if each > _MOST_CHOICES:
            return (
                f"asks for {each:,} choices of experts in one request; at most {_MOST_CHOICES:,} "
                "are drawn: ask for more and shorter requests"
            )
        if self.prediction_depth and self.prediction_depth >= self.num_layers:
            depth, layers = self.prediction_depth, self.num_layers
            return f"prediction_depth ({depth}) must be less than num_layers ({layers})"
        return None


def synthesize(knobs: SyntheticKnobs) -> Trace:
    """Draw a trace. Raise `UsageError` for impossible knobs."""
    if problem := knobs.problem():
        raise UsageError(f"synthetic trace: {problem}")
    rng = _random(knobs)
    ids = np.concatenate([_sequence(knobs, rng) for _ in range(knobs.requests)])
    predictions = _predictions(knobs, rng, ids) if knobs.prediction_depth else None
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=np.full(knobs.requests, knobs.rows_each),
        prompt_tokens=np.full(knobs.requests, knobs.prompt_tokens),
        num_experts=knobs.num_experts,
        gate_weights=np.full(ids.shape, 1 / knobs.top_k),
        predictions=predictions,
        domain=_DOMAIN,
        **_facts(knobs),
    )


def write_synthetic(
    path: str | Path,
    knobs: SyntheticKnobs,
    *,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Counter | None = None,
) -> Trace:
    """Draw a trace into a folder, request by request, and return it as loaded from there.

    The files are those of `synthesize(knobs).with_meta(**meta).save(path)`, in the memory of one
    shard. Predictions are drawn after all requests, so a trace with predictions is drawn in memory.
    `progress(done, total)` counts requests.

    Raises:
        UsageError: the knobs are impossible.
        OutputError: the folder exists (without `force`) or cannot be written.
    """
    changes = dict(meta or {})
    if knobs.prediction_depth:
        drawn = synthesize(knobs).with_meta(**changes)
        return drawn.save(path, force=force, progress=progress)
    if problem := knobs.problem(in_memory=False):
        raise UsageError(f"synthetic trace: {problem}")
    header = TraceMeta(
        num_layers=knobs.num_layers,
        num_experts=knobs.num_experts,
        top_k=knobs.top_k,
        **{**_facts(knobs), **changes},
    )
    with TraceWriter(path, header, force=force) as writer:
        for number, ids in enumerate(_sequences(knobs), start=1):
            writer.add_request(
                expert_ids=ids,
                gate_weights=np.full(ids.shape, 1 / knobs.top_k),
                prompt_tokens=knobs.prompt_tokens,
                output_tokens=knobs.output_tokens,
                domain=_DOMAIN,
            )
            if progress is not None:
                progress(number, knobs.requests)
    return writer.trace


_DOMAIN = "synthetic"


def _facts(knobs: SyntheticKnobs) -> dict[str, Any]:
    """Return the fields of the header that do not follow from the arrays."""
    provenance = {"knobs": asdict(knobs)}
    return {
        "normalised": True,
        "synthetic": True,
        "model": "synthetic",
        "provenance": provenance,
    }


def _random(knobs: SyntheticKnobs) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(knobs.seed, spawn_key=(0x7ACE,)))


def _sequences(knobs: SyntheticKnobs) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the ids of each request in turn."""
    rng = _random(knobs)
    for _ in range(knobs.requests):
        yield _sequence(knobs, rng)


def log_popularity(experts: int, skew: float, cutoff: float) -> npt.NDArray[np.float64]:
    """Return the logarithm of each rank's popularity, (experts,), the most popular first."""
    ranks = np.arange(1, experts + 1)
    return np.asarray(-skew * np.log(ranks) - cutoff * ranks / experts)


def _sequence(knobs: SyntheticKnobs, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the ids of the next request, (rows, layers, k)."""
    layers, experts, k, rows = knobs.num_layers, knobs.num_experts, knobs.top_k, knobs.rows_each
    # The same for each sequence: an order of popularity belongs to the model, not to the text.
    world = np.random.default_rng(knobs.seed)
    popularity = log_popularity(experts, knobs.skew, knobs.cutoff)
    ids_LTK = np.empty((layers, rows, k), np.int64)
    for layer in range(layers):
        order, follow = world.permutation(experts), world.permutation(experts)
        # Gumbel noise on log-popularity: the k largest are k draws without replacement.
        scores = popularity[None, :] + rng.gumbel(size=(rows, experts))
        drawn = order[np.argsort(-scores, axis=1)[:, :k]]
        if layer:
            linked = rng.random(rows) < knobs.layer_correlation
            drawn[linked] = follow[ids_LTK[layer - 1, linked]]
        # Rows that repeat point to row 0; the running maximum is the last row that did not.
        source = np.arange(rows)
        source[1:][rng.random(rows - 1) < knobs.stickiness] = 0
        ids_LTK[layer] = drawn[np.maximum.accumulate(source)]
    return ids_LTK.transpose(1, 0, 2)


def _predictions(
    knobs: SyntheticKnobs, rng: np.random.Generator, ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    rows, layers, k = ids.shape
    out = np.full((rows, layers, knobs.prediction_depth, k), -1, np.int64)
    for layer in range(layers):
        for depth in range(min(knobs.prediction_depth, layers - 1 - layer)):
            truth = ids[:, layer + 1 + depth]
            # A wrong prediction is a uniform choice of k experts, so it may be partly right by
            # chance.
            noise = rng.random((rows, knobs.num_experts)).argsort(axis=1)[:, :k]
            right = rng.random((rows, 1)) < knobs.prediction_accuracy
            out[:, layer, depth] = np.where(right, truth, noise)
    return out
