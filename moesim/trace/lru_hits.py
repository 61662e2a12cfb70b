"""The hit rate of LRU that synthetic routing gives, as a formula, and the knobs for a hit rate.

A token that repeats the experts of the token before hits in any cache of at least k slots, and
changes no other expert's place in LRU's order. All other tokens draw independently. For those,
Che's approximation holds (Che, Tung and Wang, 2002, doi:10.1109/JSAC.2002.801752): an expert is
resident if it was used in the last T events, where T is the number of events that use as many
distinct experts as the cache has slots. The cache is empty at the start, so first uses miss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moesim.trace.synthetic import log_popularity

__all__ = ["LocalityKnobs", "fit_knobs", "lru_hit_rates"]

Floats = npt.NDArray[np.float64]

_STARTS: Final = ((1.0, 0.1, 1.0), (0.3, 0.1, 4.0), (1.5, 0.0, 0.2))
_BOUNDS: Final = ((0.0, 0.0, 0.0), (6.0, 0.95, 60.0))
_HALVINGS: Final = 80
_EXACT: Final = 1e-8  # half a sum of squares: within 0.02 points at each target


@dataclass(frozen=True, slots=True)
class LocalityKnobs:
    """The knobs of a synthetic trace that decide its hit rates."""

    skew: float
    stickiness: float = 0.0
    cutoff: float = 0.0


def lru_hit_rates(
    knobs: LocalityKnobs,
    experts: int,
    top_k: int,
    slots: Sequence[float],
    steps: int | None = None,
) -> Floats:
    """Return the expected hit rate of LRU at each number of slots a layer, from 0 to 1.

    `slots` are at least `top_k`. A cache starts empty and serves `steps` tokens (None: endless).
    """
    chosen_E = _chosen(log_popularity(experts, knobs.skew, knobs.cutoff), top_k)
    log_spared_E = np.log1p(-chosen_E)
    # Repeats bring no new expert, so only the other steps fill the cache.
    fresh_steps = np.inf if steps is None else max(1.0, steps * (1 - knobs.stickiness))
    rates = []
    for count in slots:
        window = _window(log_spared_E, min(count, experts))
        missed_E = _mean_spared(log_spared_E, window, fresh_steps)
        rates.append(1 - float(chosen_E @ missed_E) / top_k)
    return np.asarray(knobs.stickiness + (1 - knobs.stickiness) * np.asarray(rates))


def fit_knobs(
    targets: Mapping[float, float],
    experts: int,
    top_k: int,
    steps: int | None = None,
    *,
    fixed: Mapping[str, float] | None = None,
) -> LocalityKnobs:
    """Return the knobs whose hit rates are nearest to `targets`: rates by slots a layer.

    `fixed` knobs keep their value. The squared differences are least; the search is deterministic.
    """
    from scipy.optimize import least_squares

    names = ("skew", "stickiness", "cutoff")
    held = dict(fixed or {})
    free = [number for number, name in enumerate(names) if name not in held]
    wanted = np.asarray(list(targets.values()))

    def knobs(point: Floats) -> LocalityKnobs:
        found = dict(zip((names[number] for number in free), map(float, point), strict=True))
        return LocalityKnobs(**held, **found)

    def misfit(point: Floats) -> Floats:
        return np.asarray(
            lru_hit_rates(knobs(point), experts, top_k, list(targets), steps) - wanted
        )

    bounds = tuple([each[number] for number in free] for each in _BOUNDS)
    best = None
    for start in _STARTS:
        found = least_squares(
            misfit, [start[number] for number in free], bounds=bounds, diff_step=1e-4
        )
        if best is None or found.cost < best.cost:
            best = found
        if best.cost < _EXACT:
            break
    assert best is not None
    return knobs(best.x)


def _chosen(log_popularity_E: Floats, top_k: int) -> Floats:
    """Return the chance of each expert to be among the k of one draw without replacement."""
    weights_E = np.exp(log_popularity_E - log_popularity_E.max())
    experts = len(weights_E)
    if top_k >= experts:
        return np.full(experts, 1 - 1e-12)

    def excess(log_scale: float) -> float:
        return float(-np.expm1(-weights_E * np.exp(log_scale)).sum()) - top_k

    # The k first arrivals of independent Poisson processes: about those before a common time.
    chosen_E = -np.expm1(-weights_E * np.exp(_root(excess)))
    return np.asarray(np.clip(chosen_E, 1e-300, 1 - 1e-12))


def _window(log_spared_E: Floats, slots: float) -> float:
    """Return the number of events that use `slots` distinct experts on average."""
    if slots >= len(log_spared_E):
        return np.inf

    def excess(log_window: float) -> float:
        return float(-np.expm1(log_spared_E * np.exp(log_window)).sum()) - slots

    return float(np.exp(_root(excess)))


def _mean_spared(log_spared_E: Floats, window: float, steps: float) -> Floats:
    """Return the chance of no use in the window before a step, a mean over the steps."""
    if np.isinf(steps):
        spared_E = np.exp(log_spared_E * window) if np.isfinite(window) else 0 * log_spared_E
        return np.asarray(spared_E)
    full = min(window, steps)  # early steps have only the steps before them in their window
    cold_E = np.expm1(log_spared_E * full) / np.expm1(log_spared_E)
    return np.asarray((cold_E + (steps - full) * np.exp(log_spared_E * full)) / steps)


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function of a logarithm crosses zero, by bisection."""
    low, high = -40.0, 700.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
