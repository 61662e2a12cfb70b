"""Advice on an expert cache: its slots, its interval, and where there is none."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from advice_questions import question

from moesim.advice.advice import Advice, advise
from moesim.advice.cached import Cached, cached_of, slots_of
from moesim.advice.choice import Choice, memory_of
from moesim.advice.price import Pricer
from moesim.advice.question import Question
from moesim.advice.tables import cache_lines
from moesim.measured.cached import ExpertCache
from moesim.measured.predict import Declined, Prediction
from moesim.trace.localities import Sizes, hit_rates_like

EVERY = 16  # MoE layers of OLMoE, which has 64 experts of which 8 are used


@cache
def advice(**fields: Any) -> Advice:
    return advise(question(formats=("Q4_K_M",), **fields))


def cached(**fields: Any) -> Cached:
    found = cached_of(advice(**fields))
    assert isinstance(found, Cached), found
    return found


def reason(asked: Advice) -> str:
    found = cached_of(asked)
    assert isinstance(found, Declined), found
    return found.reason


def test_the_slots_fit_and_one_more_does_not() -> None:
    asked = advice().question
    choice = Choice("llama.cpp", "Q4_K_M", EVERY)
    slots = slots_of(asked, choice)
    sizes = sum(asked.model.weights("Q4_K_M").experts)
    left = memory_of(asked, choice).gpu_left
    assert sizes * slots / 64 <= left < sizes * (slots + 1) / 64


def test_the_memory_of_a_cache_is_that_of_its_slots_beside_all_experts_in_host_memory() -> None:
    found = cached()
    memory, experts = found.priced.memory, sum(advice().question.model.weights("Q4_K_M").experts)
    assert memory.gpu["experts"] == -(-experts * found.slots // 64)
    assert memory.host["experts"] == experts
    assert memory.fits


def test_the_interval_holds_the_speeds_at_both_ends_of_the_hit_rate() -> None:
    found = cached()
    choice, question = found.priced.choice, advice().question
    ends = [
        Pricer(question, ExpertCache(found.slots, rate)).decode(choice)
        for rate in (found.hits.low, found.hits.high)
    ]
    for end in ends:
        assert isinstance(end, Prediction)
        assert found.priced.decode.low < end.value < found.priced.decode.high
    middle = Pricer(question, ExpertCache(found.slots, found.hits.value)).decode(choice)
    assert isinstance(middle, Prediction)
    assert found.priced.decode.value == middle.value
    assert found.priced.decode.low < middle.low < middle.high < found.priced.decode.high


def test_hits_are_those_of_the_model_and_share() -> None:
    found = cached()
    assert found.hits == hit_rates_like("olmoe-1b-7b", found.slots / 64, Sizes(EVERY, 64, 8))


def test_the_lines_and_plain_data_say_the_same() -> None:
    found = cached()
    line, source = cache_lines(found)
    assert f"slots for {found.slots} of 64 experts" in line
    assert f"{found.hits.value:.0%} (" in line
    assert found.hits.source in source
    plain = found.plain()
    assert plain["slots_per_layer"] == found.slots
    assert plain["decode_tok_s"] == found.priced.decode.plain()
    assert plain["hit_rate"]["low"] <= plain["hit_rate"]["value"] <= plain["hit_rate"]["high"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (question(vram=None, formats=("Q4_K_M",)), "all experts are in GPU memory"),
        (question(gpu="strix-halo", cpu="", ram="", vram=None), "all experts are in GPU memory"),
        (question(gpu="none", vram=None, formats=("Q4_K_M",)), "nothing of the model is on a GPU"),
        (question(load=2, formats=("Q4_K_M",)), "one sequence at a time"),
        (question(vram=21 * 10**8, formats=("Q4_K_M",)), "a token wants 8"),
    ],
)  # fmt: skip
def test_where_there_is_no_cache_the_reason_is_said(asked: Question, why: str) -> None:
    given = advise(asked)
    assert why in reason(given)
    (line,) = cache_lines(cached_of(given))
    assert line == f"expert cache: none, because {reason(given)}"
