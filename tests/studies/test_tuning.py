"""All gates are tuned alike: the same learning rates, and the same number of trials at each."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from study_scripts import study

tuning = study("dselect", "tuning")
BOUNDS = (1e-3, 1e-1)
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "none": {},
    "few": {"balance": (0.0, 0.1)},
    "many": {"gamma": (0.1, 1.0, 10.0), "ramp": (False, True)},
}
FACTORS = {"gate_factor": (1.0, 10.0, 100.0)}


def settings(gate: str, draws: int, strata: int = 4, **changes: Any) -> list[dict[str, Any]]:
    options = {"strata": strata, "draws": draws, "shared": FACTORS} | changes
    return tuning.draw_settings(gate, SPACES[gate], BOUNDS, **options)


@pytest.mark.parametrize("draws", [1, 2, 3, 7])
def test_every_gate_has_the_same_rates_and_as_many_trials_at_each(draws: int) -> None:
    shared = [
        [(each["lr"], each["gate_factor"]) for each in settings(gate, draws)] for gate in SPACES
    ]
    assert shared[0] == shared[1] == shared[2]
    assert Counter(Counter(rate for rate, _ in shared[0]).values()) == {draws: 4}


@pytest.mark.parametrize("middles", [False, True])
def test_each_part_of_the_range_has_one_rate(middles: bool) -> None:
    every = settings("none", 1, strata=5, middles=middles)
    width = math.log(BOUNDS[1] / BOUNDS[0]) / 5
    parts = [math.log(each["lr"] / BOUNDS[0]) / width for each in every]
    assert [math.floor(part) for part in parts] == list(range(5))
    assert (parts == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5])) == middles


@pytest.mark.parametrize("gate", sorted(SPACES))
def test_settings_are_repeatable_and_first_draws_do_not_depend_on_the_count(gate: str) -> None:
    whole = settings(gate, 9)
    assert settings(gate, 9) == whole
    assert settings(gate, 2) == whole[: 2 * 4]


def test_within_a_rate_no_option_repeats_before_all_were_drawn() -> None:
    for gate, space in SPACES.items():
        count = math.prod(map(len, space.values()))
        for space_of, number in ((space, count), (FACTORS, 3)):
            every = settings(gate, 2 * number)
            for rate in {each["lr"] for each in every}:
                at = [tuple(e[key] for key in space_of) for e in every if e["lr"] == rate]
                assert len(set(at[:number])) == len(set(at[number:])) == number


def test_gates_draw_options_from_streams_of_their_own() -> None:
    SPACES["twin"] = SPACES["many"]
    try:
        own = [[each["gamma"] for each in settings(gate, 6)] for gate in ("many", "twin")]
    finally:
        del SPACES["twin"]
    assert own[0] != own[1]
    assert sorted(own[0]) == sorted(own[1])


def test_a_gate_without_options_has_equal_settings_and_as_many_of_them() -> None:
    alone = settings("none", 3, shared=None)
    assert alone == [{"lr": each["lr"]} for each in settings("none", 1)] * 3
