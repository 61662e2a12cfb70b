"""Synthetic routing like that of a named model: the knobs, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any, Final, Literal, get_args

from moesim.config.suggest import suggest
from moesim.errors import UsageError
from moesim.trace.localities import (
    HitRates,
    KnownModel,
    Sizes,
    caveat_of_fit,
    fitted_knobs,
    hit_rates_like,
    known_model,
    middle_trace,
)
from moesim.trace.lru_hits import LocalityKnobs, fit_knobs, lru_hit_rates
from moesim.trace.synthetic import SyntheticKnobs, synthesize
from moesim.trace.trace import Trace

__all__ = [
    "LOCALITIES",
    "Likeness",
    "header_like",
    "knobs_like",
    "likeness",
    "synthesize_like",
]

LocalityName = Literal["published", "low", "middle", "high"]
LOCALITIES: Final[tuple[str, ...]] = get_args(LocalityName)
_SHARES: Final = (0.125, 0.25, 0.5)
_PLACES: Final = {"low": "low end", "middle": "middle", "high": "high end"}
_STEPS: Final = 1000  # tokens that fill an empty cache where no trace says how many


@dataclass(frozen=True, slots=True)
class Likeness:
    """Knobs of synthetic routing that is like a model's.

    `basis` says in words what was fitted to what. `ranges` are the known hit rates by share of the
    experts that have slots, and `expected` those of the synthetic routing.
    """

    model: str
    sizes: Sizes
    locality: LocalityName
    knobs: LocalityKnobs
    basis: str
    ranges: Mapping[float, HitRates]
    expected: Mapping[float, float]

    @property
    def published(self) -> bool:
        """Whether hit rates of the model itself are published."""
        return all(each.published for each in self.ranges.values())

    def lines(self) -> list[str]:
        """Return the likeness as lines of text, with the range at each share."""
        knobs = ", ".join(f"{key} {value:g}" for key, value in asdict(self.knobs).items())
        head = [f"like {self.model}, locality {self.locality}: {knobs}", f"  {self.basis}"]
        if not self.published:
            head.append(f"  {next(iter(self.ranges.values())).source}")
        return head + [self._row(share) for share in self.ranges]

    def plain(self) -> dict[str, Any]:
        """Return the likeness as plain data, for the header of a trace."""
        return {
            "model": self.model,
            "locality": self.locality,
            "published": self.published,
            "source": next(iter(self.ranges.values())).source,
            "basis": self.basis,
            "lru_hit_rates": {
                f"{share:g}": {
                    "low": round(each.low, 4),
                    "high": round(each.high, 4),
                    "expected": round(self.expected[share], 4),
                }
                for share, each in self.ranges.items()
            },
        }

    def _row(self, share: float) -> str:
        each = self.ranges[share]
        return (
            f"  LRU with slots for {share:.3g} of the experts: known {100 * each.low:.0f} to "
            f"{100 * each.high:.0f} %, this routing {100 * self.expected[share]:.0f} %"
        )


def likeness(model: str, sizes: Sizes, locality: str | None = None) -> Likeness:
    """Return the knobs of synthetic routing like that of a model.

    `published` takes the stored knobs of the model's middle trace. `low`, `middle` and `high` are
    fitted here to the known range of hit rates, of the model itself or of similar models. None is
    `published` where hit rates of the model are published, and `middle` elsewhere.

    Raises:
        UsageError: there is no such locality, or `published` is asked for and nothing is.
    """
    known = known_model(model, sizes)
    name = _checked(model, sizes, known, locality)
    ranges = {share: hit_rates_like(model, share, sizes) for share in _shares(sizes)}
    if name == "published":
        assert known is not None
        trace = middle_trace(known)
        knobs, basis = fitted_knobs(known, trace), _basis(known)
        steps: int = trace.steps
    else:
        knobs, basis, steps = *_fitted_to_range(name, model, sizes), _STEPS
    slots = [share * sizes.experts for share in ranges]
    rates = lru_hit_rates(knobs, sizes.experts, sizes.top_k, slots, steps)
    expected = dict(zip(ranges, map(float, rates), strict=True))
    return Likeness(model, sizes, name, knobs, basis, ranges, expected)


def synthesize_like(
    like: Likeness, knobs: SyntheticKnobs, layer_map: tuple[int, ...] | None = None
) -> Trace:
    """Draw a trace with a likeness; its header says so.

    Of `knobs`, lengths, number of layers, predictions and seed count. `layer_map` is the model
    layer of each trace layer.
    """
    own = knobs_like(like, knobs)
    return synthesize(own).with_meta(**header_like(like, own, layer_map))


def knobs_like(like: Likeness, knobs: SyntheticKnobs) -> SyntheticKnobs:
    """Return knobs with the sizes and the locality of a likeness."""
    return replace(
        knobs,
        num_experts=like.sizes.experts,
        top_k=like.sizes.top_k,
        layer_correlation=0.0,
        **asdict(like.knobs),
    )


def header_like(
    like: Likeness, knobs: SyntheticKnobs, layer_map: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Return the fields of a header that say what a trace with these knobs is like."""
    return {
        "model": f"routing like {like.model}",
        "layer_map": layer_map,
        "provenance": {"knobs": asdict(knobs), "like": like.plain()},
    }


def _checked(
    model: str, sizes: Sizes, known: KnownModel | None, locality: str | None
) -> LocalityName:
    if locality is None:
        return "middle" if known is None else "published"
    if locality not in LOCALITIES:
        hint = suggest(locality, LOCALITIES, rest="there are")
        raise UsageError(f"no locality is called {locality!r}{hint}")
    if locality == "published" and known is None:
        source = hit_rates_like(model, _SHARES[0], sizes).source
        raise UsageError(f"{source}; ask for the locality low, middle or high")
    return locality  # type: ignore[return-value]


def _shares(sizes: Sizes) -> tuple[float, ...]:
    """Return the shares that are shown: a cache has a slot for each expert of a token at least."""
    least = sizes.top_k / sizes.experts
    return tuple(dict.fromkeys(max(share, least) for share in _SHARES))


def _fitted_to_range(name: str, model: str, sizes: Sizes) -> tuple[LocalityKnobs, str]:
    _, experts, top_k = sizes
    first = max(top_k, experts / 8)
    last = max(experts / 2, (first + experts) / 2)
    field = "value" if name == "middle" else name
    targets = {
        slots: float(getattr(hit_rates_like(model, slots / experts, sizes), field))
        for slots in dict.fromkeys((first, sqrt(first * last), last))
    }
    found = fit_knobs(targets, experts, top_k, _STEPS)
    knobs = LocalityKnobs(**{key: round(value, 4) for key, value in asdict(found).items()})
    rates = lru_hit_rates(knobs, experts, top_k, list(targets), _STEPS)
    worst = max(abs(rate - wanted) for rate, wanted in zip(rates, targets.values(), strict=True))
    shares = ", ".join(f"{slots / experts:.2g}" for slots in targets)
    basis = (
        f"fitted to the {_PLACES[name]} of the known range of LRU's hit rates, with slots for "
        f"{shares} of the experts, within {100 * float(worst):.1f} points"
    )
    return knobs, basis


def _basis(known: KnownModel) -> str:
    trace = middle_trace(known)
    per = known.sizes.layers if trace.slots == "global" else 1
    of = f"of {known.sizes.experts * per} slots" + (" a layer" if per == 1 else "")
    slots = ", ".join(str(round(count * per)) for count in trace.fitted)
    return (
        f"fitted to {trace.kind} hit rates of LRU at {slots} {of} ({trace.source}; "
        f"text: {trace.trace}; model: {known.name}); {caveat_of_fit(known, trace)}"
    )
