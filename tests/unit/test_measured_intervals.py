"""Intervals are wider where a row leaves more open, and hold their prediction."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from measured_rows import reading

from moesim.measured.intervals import interval_of


def high(supposed: int = 0, *, fitted: bool = False, **fields: Any) -> float:
    """Return the factor of the upper end; the lower one is its inverse."""
    given = reading(**fields)
    low, factor = interval_of(given, ["a part"] * supposed, fitted=fitted)
    assert low == pytest.approx(1 / factor)
    return factor


def test_each_supposed_part_widens_an_interval_and_less_than_the_one_before() -> None:
    factors = [high(supposed) for supposed in range(4)]
    steps = [after / before for before, after in pairwise(factors)]
    assert all(step > 1 for step in steps)
    assert factors[0] == pytest.approx(1.38)


def test_a_supposed_speed_of_memory_counts_more_than_other_parts() -> None:
    memory = "host memory is DDR4-3200, the usual speed of a, because no text has its speed"
    wide, narrow = (interval_of(reading(), [note])[1] for note in (memory, "the link is PCIe"))
    assert wide > narrow > 1.38


def test_figures_of_one_machine_widen_prompts_more_than_decode() -> None:
    cards: Any = {"gpu": "RX 7900 XTX", "engine": "llama.cpp Vulkan"}
    prompt: Any = {"metric": "prefill_tok_s", "prompt": 512}
    assert high(**cards) / high() < high(**cards, **prompt) / high(**prompt)
    assert high(**prompt) == high()


def test_two_fitted_numbers_narrow_decode_and_nothing_else() -> None:
    assert high(2, fitted=True) == pytest.approx(1.25)
    prompt: Any = {"metric": "prefill_tok_s", "prompt": 512}
    assert high(2, fitted=True, **prompt) == high(2, **prompt)
