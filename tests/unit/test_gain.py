"""Prefetch by gain copies what shortens a later layer most, while the link is idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.gain import Seen, gains
from priced_experts import PricedExperts

from moesim.errors import UsageError
from moesim.policies import View, find, parse_options
from moesim.policies.prefetch import PrefetchContext

LAYERS, EXPERTS, TOP_K = 5, 4, 2


class Shown(View):
    """A view of one recorded call."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.layer, tuple(seen.rows), tuple(seen.rows.values()))
        self.seen = seen

    def predicted(self, depth: int) -> Sequence[int]:
        return tuple(self.seen.predicted[depth - 1])

    def predicted_tokens(self, depth: int) -> Sequence[int]:
        return tuple(self.seen.predicted[depth - 1].values())

    def resident(self, key: int) -> bool:
        return key in self.seen.residents


def answers(calls: Sequence[Seen], prices: PricedExperts, depth: Any = 3) -> list[list[int]]:
    kind = find("prefetch", "gain")
    policy = kind(parse_options(kind, {"depth": depth}))
    rng = np.random.default_rng(0)
    policy.prepare(PrefetchContext(LAYERS, EXPERTS, TOP_K, rng, recorded_depth=2, prices=prices))
    return [list(policy.wanted(Shown(call))) for call in calls]


small = st.integers(0, 12)
PRICES = st.builds(
    PricedExperts,
    cpu_call_ns=small,
    gpu_call_ns=small,
    cpu_row=small,
    gpu_row=small,
    copy=small,
    copies=st.dictionaries(st.integers(0, 19), small),
    reads=st.dictionaries(st.integers(0, 19), small),
    has_cpu=st.booleans(),
    front=st.integers(0, 6),
)


@st.composite
def runs(draw: st.DrawFn) -> list[Seen]:
    """Draw the calls of two steps; residents change at will."""

    def loads(layer: int) -> dict[int, int]:
        first = layer * EXPERTS
        keys = st.integers(first, first + EXPERTS - 1)
        return draw(st.dictionaries(keys, st.integers(1, 5), max_size=EXPERTS))

    calls = []
    for layer in [*range(-1, LAYERS)] * 2:
        residents = draw(st.sets(st.integers(0, LAYERS * EXPERTS - 1)))
        ahead = [loads(layer + depth) if 0 <= layer < LAYERS - depth else {} for depth in (1, 2, 3)]
        calls.append(Seen(layer, loads(layer) if layer >= 0 else {}, ahead, residents))
    return calls


def one_event(
    rows: dict[int, int], *predicted: dict[int, int], residents: Sequence[int] = ()
) -> list[Seen]:
    """Return the start of a step whose first layer wants resident experts, and its event."""
    ahead = [*predicted, {}, {}, {}][:3]
    everything = {*rows, *residents}
    return [Seen(-1, {}, [{}, {}, {}], everything), Seen(0, rows, ahead, everything)]


def test_of_two_guesses_the_one_that_saves_more_is_copied_first() -> None:
    # 20 ns of experts, and (front) 10 ns more before the next layer: room for one copy.
    prices = PricedExperts(cpu_row=10, gpu_row=1, copy=20)
    calls = one_event({0: 20}, {4: 1, 5: 3})
    assert answers(calls, prices, 1) == [[], [5]]


def test_a_guess_that_is_resident_or_saves_nothing_is_not_copied() -> None:
    prices = PricedExperts(cpu_row=10, gpu_row=1, copy=15)
    assert answers(one_event({0: 20}, {5: 3}, residents=[5]), prices, 1) == [[], []]
    free_cpu = PricedExperts(cpu_row=0, gpu_row=1, copy=15)
    assert answers(one_event({0: 20}, {5: 3}), free_cpu, 1) == [[], []]


def test_a_copy_that_does_not_fit_into_the_idle_time_is_left_out() -> None:
    # 10 ns of experts, and (front) 10 rows more before the next layer.
    calls = one_event({0: 10, 1: 10}, {4: 3})
    assert answers(calls, PricedExperts(copy=30), 1) == [[], [4]]
    assert answers(calls, PricedExperts(copy=31), 1) == [[], []]


def test_a_later_layer_leaves_more_time() -> None:
    calls = one_event({0: 10, 1: 10}, {4: 10, 5: 10}, {8: 3})
    calls[1].residents.update({4, 5})
    assert answers(calls, PricedExperts(copy=31, cpu_row=40), 1) == [[], []]
    assert answers(calls, PricedExperts(copy=31, cpu_row=40), 2) == [[], [8]]


@pytest.mark.parametrize(("copy", "fits"), [(15, True), (16, False)])
def test_a_queued_copy_takes_the_time_of_the_next_one(copy: int, fits: bool) -> None:
    there = {0, 1, 4, 5}
    calls = [
        Seen(-1, {}, [{}, {}, {}], there),
        Seen(0, {0: 10, 1: 10}, [{4: 10, 5: 10}, {8: 3}, {}], there),
        Seen(1, {4: 10, 5: 10}, [{8: 3, 9: 3}, {}, {}], there | {8}),
    ]
    # Each layer leaves 30 ns. So 15 of the 45 ns of expert 8 are left when layer 1 is computed.
    prices = PricedExperts(cpu_row=40, copies={8: 45, 9: copy})
    assert answers(calls, prices, 2) == [[], [8], [9] if fits else []]


def test_as_many_layers_as_are_recorded_are_looked_at() -> None:
    calls = one_event({0: 50}, {4: 1}, {8: 1}, {12: 1})
    prices = PricedExperts(cpu_row=10, gpu_row=1, copy=15)
    assert answers(calls, prices, 3)[-1] == [4, 8, 12]
    assert answers(calls, prices, "recorded")[-1] == [4, 8]


@pytest.mark.parametrize("depth", [0, 4, "all"])
def test_a_depth_beyond_three_layers_is_refused(depth: Any) -> None:
    with pytest.raises(UsageError, match="option depth"):
        parse_options(find("prefetch", "gain"), {"depth": depth})


def test_gain_needs_estimated_durations() -> None:
    policy = find("prefetch", "gain")()
    with pytest.raises(UsageError, match="gain needs estimated durations"):
        policy.prepare(PrefetchContext(LAYERS, EXPERTS, TOP_K, np.random.default_rng(0)))


def test_a_copy_that_would_delay_another_one_too_much_is_left_out() -> None:
    # 30 ns until layer 1, where 5 takes 20 ns on the CPU, and 60 ns until layer 2.
    calls = one_event({0: 10, 1: 10}, {4: 1, 5: 2}, {8: 5}, residents=[4])
    prices = PricedExperts(copies={5: 20, 8: 50})
    assert answers(calls, prices, 1) == [[], [5]]
    assert answers(calls, prices, 2) == [[], [8]]


def test_a_copy_takes_the_time_of_all_later_layers() -> None:
    # 30 ns until layer 1, whose own copy of 5 leaves 6 ns, and 46 ns until layer 2.
    calls = one_event({0: 10, 1: 10}, {4: 1, 5: 6}, {8: 1}, residents=[4])
    prices = PricedExperts(copies={5: 20, 8: 30})
    assert answers(calls, prices, 2) == [[], [5]]


@settings(max_examples=150, deadline=None)
@given(calls=runs(), prices=PRICES, depth=st.integers(1, 3))
def test_the_choice_equals_that_of_the_plain_version(
    calls: list[Seen], prices: PricedExperts, depth: int
) -> None:
    expected = gains(calls, prices, LAYERS, EXPERTS, TOP_K, depth)
    assert answers(calls, prices, depth) == expected
