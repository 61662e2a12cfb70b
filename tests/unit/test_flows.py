"""The rates of flows are max-min fair, and whole bytes per second."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.machine.flows import Flow, Sharing, fair_rates, shares
from moesim.machine.work import Cost


def flow(rate: int, *names: str, nbytes: int = 12, used: int | None = None) -> Cost:
    """Return the cost of a flow that moves `used` bytes, or all, through each resource."""
    return Cost(0, nbytes, rate, tuple((name, nbytes if used is None else used) for name in names))


def water_filling(owns: list[int], capacity: int) -> list[int]:
    """Return the rates on one resource: ascending own rate, then issue order, quotients floored."""
    rates, left = [0] * len(owns), capacity
    order = sorted(range(len(owns)), key=lambda number: owns[number])
    for place, number in enumerate(order):
        rates[number] = max(1, min(owns[number], left // (len(owns) - place)))
        left -= rates[number]
    return rates


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200))
def test_one_resource_is_filled_like_water(owns: list[int], capacity: int) -> None:
    costs = [flow(own, "dram") for own in owns]
    assert fair_rates(costs, {"dram": capacity}) == water_filling(owns, capacity)


@pytest.mark.parametrize(
    ("owns", "capacity", "rates"),
    [
        ([10], 4, [4]),
        ([10, 10], 30, [10, 10]),
        ([10, 2, 10], 12, [5, 2, 5]),
        ([9, 9, 9], 10, [3, 3, 4]),  # what division leaves goes to the last issued
        ([9, 8, 7], 10, [4, 3, 3]),  # or to the fastest
        ([5, 5, 5], 2, [1, 1, 1]),  # a flow never stands still
    ],
)
def test_rates_worked_out_by_hand(owns: list[int], capacity: int, rates: list[int]) -> None:
    assert fair_rates([flow(own, "dram") for own in owns], {"dram": capacity}) == rates


def test_a_flow_that_another_resource_limits_leaves_its_share_to_the_others() -> None:
    """Two flows on a root of 4 get 2 each; the third gets the rest of the memory's 20."""
    costs = [flow(50, "dram", "root"), flow(50, "dram"), flow(50, "dram", "root")]
    assert fair_rates(costs, {"dram": 20, "root": 4}) == [2, 16, 2]


def test_a_flow_uses_a_resource_in_proportion_to_its_bytes_there() -> None:
    """A byte of the first moves 3 through memory: both run at 5, and take 15 and 5 of 20."""
    costs = [flow(50, "dram", used=36), flow(50, "dram")]
    assert fair_rates(costs, {"dram": 20}) == [5, 5]
    # A byte of the first moves half a byte: both run at 20 / 1.5, rounded down.
    costs = [flow(50, "dram", used=6), flow(50, "dram")]
    assert fair_rates(costs, {"dram": 20}) == [13, 13]
    assert fair_rates([flow(50, "dram", used=5)], {"dram": 20}) == [48]


def test_bytes_that_use_nothing_run_at_their_own_rate() -> None:
    assert fair_rates([flow(7, "dram", used=0), flow(9, "dram")], {"dram": 9}) == [7, 9]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.dictionaries(st.sampled_from("ab"), st.integers(1, 30))),
        min_size=1,
        max_size=6,
    ),
    st.integers(40, 300),
    st.integers(40, 300),
)
def test_every_flow_is_held_back_by_its_own_rate_or_by_a_full_resource(
    flows: list[tuple[int, dict[str, int]]], a: int, b: int
) -> None:
    """No resource carries more than it can. A flow below its own rate uses a resource that could
    not carry one more byte/s of each of its flows."""
    capacities = {"a": a, "b": b}
    costs = [Cost(0, 12, own, tuple(used.items())) for own, used in flows]
    rates = fair_rates(costs, capacities)
    load = {
        name: sum(
            rate * Fraction(dict(cost.uses).get(name, 0), 12)
            for rate, cost in zip(rates, costs, strict=True)
        )
        for name in capacities
    }
    per_byte = {
        name: sum(Fraction(dict(cost.uses).get(name, 0), 12) for cost in costs)
        for name in capacities
    }
    carried = all(load[name] <= capacities[name] for name in capacities)
    assert carried or any(rate == 1 for rate in rates)
    for rate, cost in zip(rates, costs, strict=True):
        if rate < cost.rate:
            assert any(load[name] + per_byte[name] > capacities[name] for name, _ in cost.uses)


def test_extra_instants_change_no_finish() -> None:
    """7 bytes at 3 bytes/s, examined at any instants, are over after 2,333,333,334 ns."""
    one = Flow(flow(3, "dram", nbytes=7), 100)
    assert one.change_rate(100, 3) == 100 + 2_333_333_334
    for now_ns in (101, 333_333_434, 1_999_999_999, 2_333_333_433):
        assert one.change_rate(now_ns, 3) == 100 + 2_333_333_334


def test_rates_are_reported_to_an_observer_and_remembered() -> None:
    seen: list[tuple[int, ...]] = []
    sharing = Sharing({"dram": 10})
    sharing.observer = lambda costs, rates: seen.append(tuple(rates))
    for _ in range(2):
        flows = [Flow(flow(9, "dram"), 0), Flow(flow(3, "dram"), 0)]
        assert sharing.change_rates(flows, 0) == [12 * 10**9 // 7 + 1, 4 * 10**9]
    assert seen == [(7, 3), (7, 3)]


def test_only_bytes_through_a_resource_make_a_flow() -> None:
    assert shares(flow(1, "dram"))
    assert not shares(flow(1))
    assert not shares(flow(1, "dram", nbytes=0))
    with pytest.raises(ValueError, match="needs a rate"):
        shares(flow(0, "dram"))
