"""Published hit rates of LRU, and the range of them for a model or a share of slots.

`localities.yaml` has the facts with their sources. `localities_fitted.yaml` has the knobs of
synthetic routing that give those hit rates; `studies/published/fit_localities.py` writes it.

Between published capacities the odds of a hit, h / (1 - h), are interpolated on logarithmic scales
against the odds of the share of slots, s / (1 - s). Uniform routing has odds of hits equal to those
of the share. Outside of the published capacities the ratio of both odds stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, inf, log
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from moesim.config.shipped_yaml import load_shipped
from moesim.errors import UsageError
from moesim.trace.lru_hits import LocalityKnobs

__all__ = [
    "HitRates",
    "KnownModel",
    "KnownTrace",
    "Sizes",
    "caveat_of_fit",
    "distance",
    "fitted_knobs",
    "hit_rates_like",
    "known_model",
    "known_models",
    "middle_trace",
    "similar_models",
]

FACTS: Final = Path(__file__).with_name("localities.yaml")
FITTED: Final = Path(__file__).with_name("localities_fitted.yaml")
_FEWEST: Final = 3  # models in a range, and traces of a model that give a range
_FACTORS: Final = (2, 4, 8, inf)
"""How many times more or fewer experts, and a k per expert, a similar model may have."""
_MIDDLE_SHARE: Final = 0.25
_EDGE: Final = 1e-6

Kind = Literal["published", "replayed", "reported"]


class Sizes(NamedTuple):
    """MoE layers of a model, experts of a layer, and experts per token and layer."""

    layers: int
    experts: int
    top_k: int


class HitRates(NamedTuple):
    """Hit rates of LRU at batch 1, from 0 to 1, and what they rest on, in words.

    `value` is a published one or, where `published` is False, the median of other models.
    """

    low: float
    value: float
    high: float
    source: str
    published: bool


@dataclass(frozen=True, slots=True)
class KnownTrace:
    """Published hit rates of one text: `hits` from 0 to 1 by slots a layer.

    `fitted` are the slots a layer to which knobs are fitted. `slots` says what a capacity counts
    in the source; `steps`, how many tokens were decoded.
    """

    trace: str
    source: str
    kind: Kind
    slots: Literal["global", "per_layer"]
    steps: int
    batch: int
    warm: bool
    hits: Mapping[float, float]
    fitted: tuple[float, ...]
    adjacent_overlap: float | None

    def log_odds(self, share: float, experts: int) -> float:
        """Return the logarithm of the odds of a hit where a share of the experts has slots."""
        at = [_log_odds(slots / experts) for slots in self.hits]
        odds = [_log_odds(hit) for hit in self.hits.values()]
        x = _log_odds(share)
        return float(np.interp(x, at, odds)) + x - min(max(x, at[0]), at[-1])


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of which hit rates are published."""

    name: str
    sizes: Sizes
    traces: tuple[KnownTrace, ...]

    @property
    def single(self) -> tuple[KnownTrace, ...]:
        """The traces of one token a step."""
        return tuple(each for each in self.traces if each.batch == 1)

    def log_odds(self, share: float) -> list[float]:
        """Return the sorted logarithms of the odds of a hit, one for each trace of batch 1."""
        return sorted(each.log_odds(share, self.sizes.experts) for each in self.single)


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return the models with published hit rates, by the names of their shapes."""
    raw = load_shipped(FACTS)
    return {name: _model(name, entry) for name, entry in raw.items()}


def hit_rates_like(name: str, share_of_slots: float, sizes: Sizes | None = None) -> HitRates:
    """Return what LRU is known to hit on a model where a share of its experts has slots.

    `name` is that of a shape. A model of the same `sizes` stands for one that is not known by name.
    For others, the range over known models with similar `sizes` is returned, or over all of them if
    `sizes` is None. Where fewer than three traces of a model are published, the range is as wide as
    that of the model whose traces differ most.

    Raises:
        UsageError: the share does not lie between 0 and 1.
    """
    share = share_of_slots
    if not 0 <= share <= 1:
        raise UsageError(f"share_of_slots must lie between 0 and 1, not {share}")
    if share in (0, 1):
        return HitRates(share, share, share, "no cache" if not share else "all experts", True)
    if (model := known_model(name, sizes)) is not None:
        odds = model.log_odds(share)
        value = median(odds)
        spread = _widest_spread(share) if len(odds) < _FEWEST else 0.0
        low, high = min(odds[0], value - spread), max(odds[-1], value + spread)
        return HitRates(*_rates((low, value, high), share), _source_of(model), True)
    models = similar_models(sizes)
    odds = sorted(value for each in models for value in each.log_odds(share))
    middle = median(median(each.log_odds(share)) for each in models)
    names = ", ".join(each.name for each in models)
    source = f"no hit rates of {name} are published: the range over {names}"
    return HitRates(*_rates((odds[0], middle, odds[-1]), share), source, False)


def known_model(name: str, sizes: Sizes | None = None) -> KnownModel | None:
    """Return the model with published hit rates of this name, or else of these sizes, or None."""
    models = known_models()
    if name in models:
        return models[name]
    return next((each for each in models.values() if each.sizes == sizes), None)


def similar_models(sizes: Sizes | None) -> tuple[KnownModel, ...]:
    """Return the known models with a similar number of experts and a similar k per expert.

    Both may differ by a factor of 2; where fewer than three models are so near, of 4, and so on.
    """
    models = tuple(each for each in known_models().values() if each.single)
    if sizes is None:
        return models
    near = models
    for factor in _FACTORS:
        near = tuple(each for each in models if distance(each.sizes, sizes) <= factor)
        if len(near) >= _FEWEST:
            break
    return near


def middle_trace(model: KnownModel) -> KnownTrace:
    """Return the trace with the median hit rate at a quarter of the experts, of those fitted."""
    fitted = [each for each in model.single if each.fitted]
    fitted.sort(key=lambda each: each.log_odds(_MIDDLE_SHARE, model.sizes.experts))
    return fitted[(len(fitted) - 1) // 2]


def fitted_knobs(model: KnownModel, trace: KnownTrace) -> LocalityKnobs:
    """Return the stored knobs with which synthetic routing hits as a trace of a model does."""
    return LocalityKnobs(**_entry(model, trace)["knobs"])


def caveat_of_fit(model: KnownModel, trace: KnownTrace) -> str:
    """Return which knobs are assumed, and the largest error at a capacity that was held out."""
    entry = _entry(model, trace)
    held_out = {
        slots: ours - published
        for slots, (published, ours) in entry["hits_pct"].items()
        if slots not in entry["fitted"]
    }
    worst = max(held_out, key=lambda slots: abs(held_out[slots]), default=None)
    error = "no capacity was held out"
    if worst is not None:
        error = f"largest error at capacities held out: {held_out[worst]:+.1f} points at {worst}"
    assumed = " and ".join(entry["assumed"])
    return f"assumed: {assumed}; {error}" if assumed else error


def _entry(model: KnownModel, trace: KnownTrace) -> Mapping[str, Any]:
    return next(
        each
        for each in _fitted()[model.name]
        if (each["trace"], each["source"]) == (trace.trace, trace.source)
    )


@cache
def _fitted() -> Mapping[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = load_shipped(FITTED)
    return loaded


def _model(name: str, entry: Mapping[str, Any]) -> KnownModel:
    sizes = Sizes(entry["layers"], entry["experts"], entry["top_k"])
    return KnownModel(name, sizes, tuple(_trace(each, sizes.layers) for each in entry["traces"]))


def _trace(entry: Mapping[str, Any], layers: int) -> KnownTrace:
    per = layers if entry["slots"] == "global" else 1
    return KnownTrace(
        trace=entry["trace"],
        source=entry["source"],
        kind=entry["kind"],
        slots=entry["slots"],
        steps=entry["steps"],
        batch=entry.get("batch", 1),
        warm=entry.get("warm", False),
        hits={slots / per: pct / 100 for slots, pct in entry["hits_pct"].items()},
        fitted=tuple(slots / per for slots in entry["fitted"]),
        adjacent_overlap=entry.get("adjacent_overlap"),
    )


@cache
def _widest_spread(share: float) -> float:
    """Return how far, in log odds, a trace is from the median of its model at most."""
    every = [each.log_odds(share) for each in known_models().values() if each.single]
    return max(abs(value - median(odds)) for odds in every for value in odds)


def distance(one: Sizes, other: Sizes) -> float:
    """Return the larger of two ratios, at least 1: of experts, and of k per expert."""
    experts = one.experts / other.experts
    density = (one.top_k / one.experts) / (other.top_k / other.experts)
    return max(experts, 1 / experts, density, 1 / density)


def _rates(log_odds: Iterable[float], share: float) -> tuple[float, float, float]:
    """Return hit rates of log odds. None is below the share, what uniform routing hits."""
    low, value, high = (max(share, 1 / (1 + exp(-each))) for each in log_odds)
    return low, value, high


def _log_odds(share: float) -> float:
    inside = min(max(share, _EDGE), 1 - _EDGE)
    return log(inside / (1 - inside))


def _source_of(model: KnownModel) -> str:
    sources: Sequence[str] = tuple(dict.fromkeys(each.source for each in model.single))
    text = f"hit rates of LRU on {model.name}: {'; '.join(sources)}"
    if (number := len(model.single)) < _FEWEST:
        traces = "one trace" if number == 1 else f"{number} traces"
        text += f" ({traces}; the range is as wide as that of the model whose traces differ most)"
    return text
