"""Synthetic routing of a router that is decoupled from the layers: one expert for all layers.

Read-ME (Cai et al., 2024, arXiv 2410.19123) routes a token once, to the same expert index in every
layer. It finds that a token often takes the expert of the token before. Here a request is a Markov
chain: a token keeps the expert of the token before, or draws again by popularity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class DecoupledKnobs:
    """The properties of a synthetic decoupled trace.

    `skew` is the exponent of a Zipf law over experts. Each of the `domains` orders the experts
    differently, and requests take the domains in turn. `persistence` is the share of tokens with
    the expert of the token before, by chance or not. So it is at least that of independent draws
    (1 / experts if `skew` is 0). Lengths are the same for all requests or, if `geometric`, have
    these means.
    """

    requests: int = 32
    prompt_tokens: int = 32
    output_tokens: int = 32
    geometric: bool = False
    num_layers: int = 8
    num_experts: int = 7
    domains: int = 1
    skew: float = 0.0
    persistence: float = 0.713
    seed: int = 0

    @property
    def popularity(self) -> npt.NDArray[np.float64]:
        """Return each expert's share of tokens, the most popular expert first."""
        weights = np.arange(1, self.num_experts + 1) ** -float(self.skew)
        return np.asarray(weights / weights.sum())

    def problem(self) -> str | None:
        """Return the first rule that these knobs break, or None."""
        sizes = ("requests", "prompt_tokens", "output_tokens", "num_layers", "num_experts")
        for name in (*sizes, "domains"):
            if getattr(self, name) < 1:
                return f"{name} must be at least 1, not {getattr(self, name)}"
        if self.num_experts > 65_535:
            return f"num_experts ({self.num_experts}) exceeds 65535"
        if not 0 <= self.skew < 100:
            return f"skew must lie between 0 and 100, not {self.skew}"
        least = float(np.square(self.popularity).sum())
        if not least - 1e-9 <= self.persistence <= 1:
            return (
                f"persistence must lie between {least:.3f}, that of independent draws, and 1, "
                f"not {self.persistence}"
            )
        if self.seed < 0:
            return f"seed must not be negative, not {self.seed}"
        return None


def synthesize_decoupled(
    knobs: DecoupledKnobs, lengths: npt.NDArray[np.int64] | None = None
) -> Trace:
    """Draw a top-1 trace of router kind `decoupled`.

    `lengths` (requests, 2), if given, are each request's prompt and output tokens; they replace
    those of the knobs. Raise `UsageError` for impossible knobs or lengths.
    """
    if problem := knobs.problem():
        raise UsageError(f"synthetic decoupled trace: {problem}")
    if lengths is not None and (lengths.shape != (knobs.requests, 2) or lengths.min() < 1):
        raise UsageError(
            f"synthetic decoupled trace: lengths must have the shape ({knobs.requests}, 2) and be "
            f"at least 1; their shape is {lengths.shape}"
        )
    # A stream of its own: other users of the same seed draw other numbers.
    rng = np.random.default_rng(np.random.SeedSequence(knobs.seed, spawn_key=(0xDEC0,)))
    prompts, outputs = (
        rng.geometric(1 / mean, knobs.requests)
        if knobs.geometric
        else np.full(knobs.requests, mean)
        for mean in (knobs.prompt_tokens, knobs.output_tokens)
    )
    if lengths is not None:
        prompts, outputs = lengths.T
    orders = [rng.permutation(knobs.num_experts) for _ in range(knobs.domains)]
    domains = np.arange(knobs.requests) % knobs.domains
    rows = prompts + outputs - 1  # the last token is never fed back, so it has no row
    ids_B = np.concatenate(
        [
            orders[domain][_chain(knobs, rng, count)]
            for domain, count in zip(domains.tolist(), rows.tolist(), strict=True)
        ]
    )
    return Trace.from_arrays(
        expert_ids=np.broadcast_to(ids_B[:, None, None], (len(ids_B), knobs.num_layers, 1)),
        seq_len=rows,
        prompt_tokens=prompts,
        num_experts=knobs.num_experts,
        domain=[f"synthetic {domain}" for domain in domains.tolist()],
        router="decoupled",
        synthetic=True,
        model="synthetic",
        provenance={"knobs": asdict(knobs)},
    )


def _chain(knobs: DecoupledKnobs, rng: np.random.Generator, rows: int) -> npt.NDArray[np.int64]:
    """Return each row's expert as a rank of popularity."""
    popularity = knobs.popularity
    # A new draw repeats the expert by chance, so the chain must stay less often than `persistence`.
    by_chance = float(np.square(popularity).sum())
    stays = (knobs.persistence - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0
    # Rows that stay point to row 0; the running maximum is the last row that drew.
    source = np.arange(rows)
    source[1:][rng.random(rows - 1) < stays] = 0
    drawn = rng.choice(knobs.num_experts, size=rows, p=popularity)
    return np.asarray(drawn[np.maximum.accumulate(source)], np.int64)
