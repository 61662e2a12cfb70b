"""Swept values as text: whole, on one line, and never the same for two values."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from awkward import VALUES

from moesim.config.spelling import exact, shortest_tails, spelled
from moesim.sweep.points import slug


@pytest.mark.parametrize("write", [spelled, exact])
def test_no_two_values_are_spelt_alike(write: Any) -> None:
    texts = [(value, write(value)) for value in VALUES]
    twins = [(a, b) for (a, x), (b, y) in itertools.combinations(texts, 2) if x == y]
    assert twins == []


@pytest.mark.parametrize("write", [spelled, exact])
def test_a_value_is_one_line_of_what_can_be_printed(write: Any) -> None:
    assert [value for value in VALUES if not write(value).isprintable() or not write(value)] == []


def test_a_value_is_shown_whole() -> None:
    for text in (value for value in VALUES if isinstance(value, str) and value.isprintable()):
        assert text.replace("\\", "\\\\").replace('"', '\\"') in spelled(text) or text == spelled(
            text
        )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("25GB/s", "25GB/s"),
        ("../traces/deep", "../traces/deep"),
        ("25%", "25%"),
        (4, "4"),
        ("4", '"4"'),
        (None, "null"),
        (True, "true"),
        ("two words", '"two words"'),
        ([1, "a"], "[1, a]"),
        ({"kind": "gamma", "rate": 2.5}, "{kind gamma rate 2.5}"),
    ],
)
def test_values_are_spelt_as_a_scenario_spells_them(value: Any, text: str) -> None:
    assert spelled(value) == text


def test_folders_of_different_values_are_different() -> None:
    pairs = [{"x": a, "y": b} for a, b in itertools.product(("a", "a,y=b", "b,y=a", "b"), repeat=2)]
    assert len({slug(pair) for pair in pairs}) == len(pairs)
    assert len({slug({"key": value}) for value in VALUES}) == len(VALUES)


def test_keys_are_named_by_as_few_parts_as_tell_them_apart() -> None:
    assert shortest_tails(["cache.policy", "hardware.h2d.bandwidth"]) == {
        "cache.policy": "cache",
        "hardware.h2d.bandwidth": "bandwidth",
    }
    assert shortest_tails(["hardware.h2d.bandwidth", "hardware.d2h.bandwidth"]) == {
        "hardware.h2d.bandwidth": "h2d.bandwidth",
        "hardware.d2h.bandwidth": "d2h.bandwidth",
    }
    assert len(set(shortest_tails(["cache.slots", "cache.options.slots", "slots"]).values())) == 3
