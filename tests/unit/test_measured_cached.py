"""An expert cache at a stated hit rate: its routing against LRU, its times against real routing."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from math import exp, log, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_rows import reading
from paths import SHARED

from moesim.errors import UsageError
from moesim.measured.cached import ExpertCache, over_hit_rates
from moesim.measured.predict import Declined, Prediction
from moesim.measured.simulated import Simulated, timeline_of
from moesim.trace.localities import Sizes

CARD: Any = {
    "gpu": "RTX 3060 12GB", "cpu": "Ryzen 7 5800X", "ram": "32 GB DDR4-3200 dual channel",
    "pcie": "4.0 x16", "model": "deepseek-v2-lite", "quant": "Q8_0", "engine": "llama.cpp CUDA",
    "setting": "-ngl 99 -ncmoe 28", "metric": "decode_tok_s", "depth": 1024,
}  # fmt: skip
V2_LITE = Sizes(26, 64, 6)
LAW = SHARED / "data/routing/esft_deepseek_v2_lite/law.npz"


def predicted(slots: int, rate: float, **fields: Any) -> Prediction:
    answer = Simulated(cache=ExpertCache(slots, rate)).predict(reading(**{**CARD, **fields}))
    assert isinstance(answer, Prediction), answer
    return answer


@given(
    st.integers(1, 4).flatmap(
        lambda k: st.tuples(st.integers(k + 1, 20), st.just(k), st.integers(1, 5))
    ),
    st.data(),
)
def test_lru_hits_as_often_as_is_stated(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    experts, top_k, layers = sizes
    slots = data.draw(st.integers(top_k, experts - 1))
    outside = experts - slots  # a token's misses are at most these
    rate = data.draw(st.floats(max(0, 1 - outside / top_k), 1))
    trace = ExpertCache(slots, rate).routing(Sizes(layers, experts, top_k))
    rows = len(trace.expert_ids) // 2
    hits = 0
    held = [OrderedDict[int, None]() for _ in range(layers)]
    for row, used in enumerate(trace.expert_ids[:].tolist()):
        if row in (0, rows):  # prompts are not run
            continue
        for lru, ids in zip(held, used, strict=True):
            assert len(set(ids)) == top_k
            for expert in ids:  # all of a token are needed together
                hits += row > rows and expert in lru
            for expert in ids:
                lru.pop(expert, None)
                lru[expert] = None
            while len(lru) > slots:
                lru.popitem(last=False)
    accesses = (rows - 1) * layers * top_k
    assert abs(hits - rate * accesses) <= 1


@pytest.mark.parametrize("slots", [5, 64])
def test_slots_that_make_no_cache_are_refused(slots: int) -> None:
    with pytest.raises(UsageError, match=f"6 to 63 slots a layer, not {slots}"):
        ExpertCache(slots, 0.5).routing(V2_LITE)


@cache
def real(slots: int) -> tuple[float, float]:
    """Return the hit rate of LRU on published routing, and the seconds of a decode step."""
    from moesim.scenario import Scenario
    from moesim.simulate.build import prepare, serve
    from moesim.trace.importers import from_esft

    case = Simulated(cache=ExpertCache(slots, 0.5)).case_of(reading(**CARD))
    workload = {"requests": 1, "prefill": "skip", "lengths": {"prompt": 1024, "output": 300}}
    scenario = Scenario.model_validate({**case.scenario, "workload": workload})
    server, _ = serve(prepare(scenario, from_esft(LAW)))
    steps = server.ledger.steps[40:]  # the cache is full
    hits, misses = sum(row[8] + row[9] for row in steps), sum(row[10] for row in steps)
    return hits / (hits + misses), (steps[-1][2] - steps[0][1]) / len(steps) / 1e9


@pytest.mark.skipif(not LAW.exists(), reason="the shared routing is not there")
@pytest.mark.parametrize("slots", [8, 16, 32, 48])
def test_a_step_takes_as_long_as_on_real_routing_that_hits_as_often(slots: int) -> None:
    rate, seconds = real(slots)
    assert 1 / predicted(slots, rate).value == pytest.approx(seconds, rel=0.05)


def test_more_hits_are_faster_and_all_hits_move_no_expert() -> None:
    rates = [predicted(32, rate).value for rate in (0.5, 0.6, 0.9, 1.0)]
    assert rates == sorted(rates)
    case = Simulated(cache=ExpertCache(32, 1.0)).case_of(reading(**CARD))
    ledger = timeline_of(case)
    warm = 26 * 6 * -(-32 // 6)  # tokens of six until no slot is empty
    assert sum(ledger.demand_copies) == warm


def test_the_time_that_fills_the_cache_does_not_count() -> None:
    # With all hits, only the GPU's reads of six experts a layer count.
    assert predicted(16, 1.0).value == pytest.approx(predicted(48, 1.0).value, rel=0.01)


def test_a_batch_has_no_published_hit_rate() -> None:
    answer = Simulated(cache=ExpertCache(32, 0.5)).predict(reading(**{**CARD, "batch": 4}))
    assert isinstance(answer, Declined)
    assert "one sequence at a time" in answer.reason


def test_prompts_copy_the_experts_that_have_no_slot() -> None:
    prompt = {"metric": "prefill_tok_s", "prompt": 512}
    few, many = predicted(8, 0.5, **prompt).value, predicted(56, 0.5, **prompt).value
    assert few < many


def test_both_causes_of_error_widen_the_interval() -> None:
    low, middle, high = (Prediction(v, v / 1.5, v * 1.5) for v in (8.0, 10.0, 11.0))
    both = over_hit_rates(low, middle, high)
    assert both.value == 10
    assert both.low == pytest.approx(10 / exp(sqrt(log(1.5) ** 2 + log(10 / 8) ** 2)))
    assert both.high == pytest.approx(10 * exp(sqrt(log(1.5) ** 2 + log(11 / 10) ** 2)))
    same = over_hit_rates(middle, middle, middle)
    assert (same.low, same.high) == pytest.approx((middle.low, middle.high))
