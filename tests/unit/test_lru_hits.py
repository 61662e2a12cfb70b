"""The formula for LRU's hits on synthetic routing, against caches that are replayed."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.simulate.curve import curve
from moesim.trace import SyntheticKnobs, synthesize
from moesim.trace.lru_hits import LocalityKnobs, fit_knobs, lru_hit_rates

KNOBS = (
    LocalityKnobs(0.0),
    LocalityKnobs(1.2),
    LocalityKnobs(0.4, 0.3, 4.0),
    LocalityKnobs(0.8, 0.6, 0.0),
)


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize(("experts", "top_k", "steps"), [(32, 4, 150), (8, 2, 1500)])
def test_the_formula_gives_the_hit_rates_of_a_replayed_cache(
    knobs: LocalityKnobs, experts: int, top_k: int, steps: int
) -> None:
    slots = [experts // 4, experts // 2, experts * 3 // 4, experts]
    trace = synthesize(
        SyntheticKnobs(
            requests=1, prompt_tokens=1, output_tokens=steps, num_layers=12 if steps < 500 else 4,
            num_experts=experts, top_k=top_k, layer_correlation=0, **asdict(knobs),
        )
    )  # fmt: skip
    replayed = curve(trace, ["lru"], capacities=slots, admission="always")["lru"]
    expected = lru_hit_rates(knobs, experts, top_k, slots, steps)
    # Four standard errors of a share of some 7000 uses that depend on each other, and the
    # approximation itself.
    assert expected == pytest.approx([replayed[each] for each in slots], abs=0.025)


def test_uniform_routing_hits_in_proportion_to_the_slots_of_a_warm_cache() -> None:
    rates = lru_hit_rates(LocalityKnobs(0.0), 64, 4, [16, 32, 64])
    # The k experts of a token are distinct, which the formula follows on average only.
    assert rates == pytest.approx([0.25, 0.5, 1.0], abs=0.01)


def test_a_token_that_repeats_always_hits() -> None:
    fresh, sticky = (
        lru_hit_rates(LocalityKnobs(0.9, stickiness), 64, 4, [16])[0] for stickiness in (0, 0.5)
    )
    assert sticky == pytest.approx(0.5 + 0.5 * fresh)


def test_first_uses_miss_in_a_cache_of_all_experts() -> None:
    short, long = (lru_hit_rates(LocalityKnobs(0.5), 64, 4, [64], n)[0] for n in (40, 4000))
    assert short < 0.75
    assert long > 0.98


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.1, 2.0), st.floats(0.05, 0.6), st.floats(0.2, 8.0),
    st.sampled_from([(64, 6), (128, 8)]),
)  # fmt: skip
def test_fitted_knobs_give_the_hit_rates_that_were_asked_for(
    skew: float, stickiness: float, cutoff: float, sizes: tuple[int, int]
) -> None:
    slots = [sizes[1], sizes[0] / 4, sizes[0] / 2]
    wanted = lru_hit_rates(LocalityKnobs(skew, stickiness, cutoff), *sizes, slots, 1000)
    found = fit_knobs(dict(zip(slots, wanted, strict=True)), *sizes, 1000)
    assert lru_hit_rates(found, *sizes, slots, 1000) == pytest.approx(wanted, abs=0.005)


def test_a_fixed_knob_keeps_its_value() -> None:
    found = fit_knobs({16: 0.5}, 64, 6, fixed={"stickiness": 0.1, "cutoff": 2.0})
    assert (found.stickiness, found.cutoff) == (0.1, 2.0)
    assert lru_hit_rates(found, 64, 6, [16]) == pytest.approx([0.5], abs=1e-3)


def test_a_cache_of_more_slots_never_hits_less() -> None:
    rates = lru_hit_rates(LocalityKnobs(0.4, 0.2, 3.0), 128, 8, list(range(8, 129)), 500)
    assert (np.diff(rates) >= 0).all()
