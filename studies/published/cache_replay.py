"""Hit rates of moesim's eviction policies at any number of slots, and synthetic routing to match.

`moesim curve` takes whole slots per layer. Published caches have any number of slots for all layers
together, and some steps have several rows, so layer events are replayed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from scipy.optimize import minimize

from moesim.policies import Key, parse_options
from moesim.policies.eviction.base import CacheContext
from moesim.policies.guard import find_policy
from moesim.simulate.curve import replay_hits
from moesim.trace import Trace
from moesim.trace.synthetic import SyntheticKnobs, synthesize

__all__ = ["Events", "Locality", "events_of", "fit_locality", "hit_pct", "synthetic_events"]

Scope = Literal["per_layer", "global"]
_SEED: Final = 0
# A wide start, because hit rates of a drawn trace are not smooth: a narrow one stops too early.
_CORNERS: Final = ((0.8, 0.1), (1.4, 0.1), (0.8, 0.4))


@dataclass(frozen=True, slots=True)
class Locality:
    """The two knobs of `moesim trace synth` that are fitted to hit rates."""

    skew: float
    stickiness: float


@dataclass(frozen=True, slots=True)
class Events:
    """The layer events of a run: `unions[layer][step]` are the distinct experts, as keys."""

    unions: Sequence[Sequence[tuple[Key, ...]]]
    num_experts: int

    def caches(self, scope: Scope) -> list[tuple[Sequence[tuple[Key, ...]], range]]:
        """Return the events of each cache in order, and the keys that they may name."""
        if scope == "global":
            merged = [union for step in zip(*self.unions, strict=True) for union in step]
            return [(merged, range(len(self.unions) * self.num_experts))]
        experts = self.num_experts
        return [
            (unions, range(layer * experts, (layer + 1) * experts))
            for layer, unions in enumerate(self.unions)
        ]


def events_of(trace: Trace, rows: int = 1) -> Events:
    """Return the events of a trace whose steps have `rows` consecutive rows of one request."""
    ids_TLk = np.asarray(trace.expert_ids[:]).astype(np.int64)
    unions: list[list[tuple[Key, ...]]] = []
    for layer in range(trace.num_layers):
        keys = (ids_TLk[:, layer] + layer * trace.num_experts).tolist()
        steps = [keys[first : first + rows] for first in range(0, len(keys), rows)]
        unions.append([tuple(dict.fromkeys(k for row in step for k in row)) for step in steps])
    return Events(unions, trace.num_experts)


@lru_cache(maxsize=8)
def synthetic_events(
    layers: int, experts: int, top_k: int, steps: int, knobs: Locality, rows: int = 1
) -> Events:
    """Return the events of one synthetic request of `steps` steps."""
    return events_of(
        synthesize(
            SyntheticKnobs(
                requests=1, prompt_tokens=1, output_tokens=steps * rows, num_layers=layers,
                num_experts=experts, top_k=top_k, skew=knobs.skew, stickiness=knobs.stickiness,
                layer_correlation=0, seed=_SEED,
            )
        ),
        rows,
    )  # fmt: skip


def hit_pct(
    events: Events,
    policy: str,
    slots: float,
    scope: Scope,
    *,
    warm: bool = False,
    popularity: Mapping[Key, int] | None = None,
) -> float:
    """Return the hit rate in per cent of a cache of `slots` slots (of each layer, if per layer).

    With `warm`, the first half of the steps fills the caches and is not counted. `popularity` is
    the profile of a static placement; without one it is counted in the events themselves.
    """
    found = find_policy("eviction", policy)
    hits = uses = 0
    for number, (unions, universe) in enumerate(events.caches(scope)):
        half = len(unions) // 2 if warm else 0
        counts = Counter(key for union in unions for key in union)
        context = CacheContext(
            capacity=round(slots),
            universe=universe,
            admission="bypass" if found.needs_bypass else "always",
            rng=np.random.default_rng((_SEED, number)),
            popularity=_constant(counts if popularity is None else popularity),
            future=unions,
        )
        cache = found(context, parse_options(found, {}))
        before = replay_hits(cache, unions)
        uses += sum(map(len, unions[half:]))
        if half:
            fresh = found(context, parse_options(found, {}))
            before -= replay_hits(fresh, unions[:half])
        hits += before
    return 100 * hits / uses


def _constant(counts: Mapping[Key, int]) -> Callable[[object], Mapping[Key, int]]:
    return lambda _profile: counts


def fit_locality(misfit: Callable[[Locality], Sequence[float]]) -> Locality:
    """Return the knobs with the least squares of `misfit`, rounded to three digits."""

    def loss(point: np.ndarray) -> float:
        skew, stickiness = (float(value) for value in point)
        outside = max(0.0, -skew) + max(0.0, -stickiness) + max(0.0, stickiness - 0.95)
        knobs = Locality(max(0.0, skew), min(0.95, max(0.0, stickiness)))
        return float(sum(each**2 for each in misfit(knobs))) + 1e4 * outside

    options = {"maxfev": 60, "xatol": 2e-3, "fatol": 0.01, "initial_simplex": _CORNERS}
    best = minimize(loss, _CORNERS[0], method="Nelder-Mead", options=options).x
    return Locality(round(max(0.0, float(best[0])), 3), round(max(0.0, float(best[1])), 3))
