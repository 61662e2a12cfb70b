"""Each placement policy equals its naive version, and answers as its rule says by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import compress, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.two_queue import Absent, Loads, greedy, makespan, queue_of
from priced_experts import PricedExperts, context, event, placement

from moesim.errors import UsageError
from moesim.policies import find, names
from moesim.policies.guard import has_hindsight
from moesim.policies.placement import Placement
from moesim.policies.placement.base import ARRIVING


def on_cpu(answer: Mapping[int, str]) -> set[int]:
    return {key for key, lane in answer.items() if lane == "cpu"}


def place(policy: Placement, loads: Loads, absent: Absent, prices: PricedExperts) -> set[int]:
    """Return the keys that run on the CPU."""
    return on_cpu(policy.place(event(loads), absent, prices))


small = st.integers(0, 12)
prices = st.builds(
    PricedExperts,
    rows=st.integers(1, 64),
    cpu_call_ns=small,
    gpu_call_ns=small,
    cpu_row=small,
    gpu_row=small,
    copy=small,
    copies=st.dictionaries(st.integers(0, 7), small),
    reads=st.dictionaries(st.integers(0, 7), small),
)


@st.composite
def events(draw: st.DrawFn, most: int = 7) -> tuple[Loads, Absent]:
    """Draw the rows of the wanted keys, and the places of those that are absent."""
    loads = draw(st.dictionaries(st.integers(0, 7), st.integers(1, 6), max_size=most))
    places = st.sampled_from(["gpu", "host", "disk", ARRIVING])
    where = {key: draw(places) for key in loads}
    return loads, {key: place for key, place in where.items() if place != "gpu"}


# --- all policies ---------------------------------------------------------------------------------


@given(events(), prices, st.sampled_from(names("placement")))
def test_only_absent_keys_are_placed_and_only_on_declared_lanes(
    drawn: tuple[Loads, Absent], prices: PricedExperts, name: str
) -> None:
    loads, absent = drawn
    policy = placement(name)
    answer = policy.place(event(loads), absent, prices)
    assert absent.keys() >= answer.keys()
    assert {"gpu", *policy.lanes} >= set(answer.values())
    assert {policy.layer_lane(layer) for layer in range(5)} <= {"gpu", *policy.lanes}


@given(events(), prices, st.sampled_from(["cost", "two_queue"]))
def test_the_order_of_a_batch_decides_no_lane(
    drawn: tuple[Loads, Absent], prices: PricedExperts, name: str
) -> None:
    loads, absent = drawn
    turned = dict(reversed(loads.items()))
    policy = placement(name)
    assert place(policy, loads, absent, prices) == place(policy, turned, absent, prices)


def test_copy_places_nothing_on_the_cpu() -> None:
    assert place(placement("copy"), {0: 1}, {0: "host"}, PricedExperts()) == set()
    assert placement("copy").residents(8) is None


# --- cpu_layers -----------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 40), st.integers(0, 6))
def test_auto_leaves_the_fewest_layers_on_the_cpu_whose_others_fit(
    layers: int, experts: int, slots: int, whole: int
) -> None:
    whole = min(whole, layers)
    policy = placement("cpu_layers", context(layers, experts), whole_layers=whole)
    found = policy.residents(slots)
    fitting = [
        keys
        for first in range(whole, layers + 1)
        if len(keys := list(range(first * experts, layers * experts))) <= slots
    ]
    assert found is not None
    assert list(found) == max(fitting, key=len)
    everything = dict.fromkeys(range(layers * experts), 1)
    absent = dict.fromkeys(everything.keys() - set(found), "host")
    assert place(policy, everything, absent, PricedExperts()) == absent.keys()


def test_experts_of_the_first_layers_run_on_the_cpu_and_all_others_are_resident() -> None:
    policy = placement("cpu_layers", layers=1)  # of 4 layers with 8 experts
    assert list(policy.residents(24) or ()) == list(range(8, 32))
    assert place(policy, {3: 1, 7: 1}, {3: "host", 7: "disk"}, PricedExperts()) == {3, 7}
    assert {policy.layer_lane(layer) for layer in range(5)} == {"gpu"}


def test_slots_beyond_the_layers_that_fit_hold_nothing() -> None:
    assert list(placement("cpu_layers").residents(23) or ()) == list(range(16, 32))


@pytest.mark.parametrize(
    ("options", "on_the_cpu"), [({"layers": 2}, 2), ({"layers": 2, "whole_layers": 2}, 2)]
)
def test_layers_that_do_not_fit_are_refused_with_the_numbers(
    options: dict[str, Any], on_the_cpu: int
) -> None:
    policy = placement("cpu_layers", **options)
    with pytest.raises(UsageError) as refused:
        policy.residents(15)
    for part in (f"experts of {on_the_cpu} layers", "need 16 slots; there are 15", "layers: 3"):
        assert part in str(refused.value)
    assert list(policy.residents(16) or ()) == list(range(16, 32))


def test_with_all_layers_on_the_cpu_no_slot_is_needed() -> None:
    policy = placement("cpu_layers", layers="all")
    assert list(policy.residents(0) or ()) == []
    assert place(policy, {31: 1}, {31: "host"}, PricedExperts(rows=31)) == {31}
    assert policy.layer_lane(0) == "gpu"


@pytest.mark.parametrize(
    ("copy_rows", "rows", "copied"),
    [(32, 31, False), (32, 32, True), (1, 1, True), (None, 10**6, False)],
)
def test_a_large_step_copies_the_experts_of_cpu_layers(
    copy_rows: int | None, rows: int, copied: bool
) -> None:
    policy = placement("cpu_layers", layers=2, copy_rows=copy_rows)
    policy.residents(16)
    found = place(policy, {9: rows}, {9: "host"}, PricedExperts(rows=rows))
    assert found == (set() if copied else {9})


@pytest.mark.parametrize(("rows", "copied"), [(127, False), (128, True)])
def test_the_rows_of_an_expert_can_decide_instead(rows: int, copied: bool) -> None:
    # Each row uses 2 of 8 experts, so 128 rows are 32 an expert.
    policy = placement("cpu_layers", layers=2, copy_rows_of="expert")
    policy.residents(16)
    found = place(policy, {9: rows}, {9: "host"}, PricedExperts(rows=rows))
    assert found == (set() if copied else {9})


def test_without_a_gpu_nothing_is_copied_to_it() -> None:
    policy = placement("cpu_layers", context(has_gpu=False), layers="all", whole_layers="all")
    assert place(policy, {9: 32}, {9: "host"}, PricedExperts(rows=32)) == {9}


def test_whole_layers_run_on_the_cpu_and_their_experts_except_in_large_steps() -> None:
    # Model layer 0 is dense; trace layers 0 to 3 are model layers 1 to 4. So two whole layers
    # hold the experts of trace layer 0 alone, and `layers: 2` adds those of trace layer 1.
    policy = placement("cpu_layers", context(dense=1), layers=2, whole_layers=2)
    assert [policy.layer_lane(layer) for layer in range(6)] == ["cpu"] * 2 + ["gpu"] * 4
    policy.residents(16)
    loads, absent = {7: 1, 8: 1}, {7: "host", 8: "host"}
    assert place(policy, loads, absent, PricedExperts(rows=1)) == {7, 8}
    assert place(policy, loads, absent, PricedExperts(rows=32)) == set()


def test_only_all_whole_layers_include_the_end_of_a_step() -> None:
    lanes = {
        whole: [placement("cpu_layers", whole_layers=whole).layer_lane(at) for at in (3, 4)]
        for whole in (4, "all")
    }
    assert lanes == {4: ["cpu", "gpu"], "all": ["cpu", "cpu"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 5}, "layers is 5; it must be at most 4, the MoE layers"),
        ({"whole_layers": 6}, "whole_layers is 6; it must be at most 5, the layers of the model"),
    ],
)
def test_more_layers_than_there_are_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        placement("cpu_layers", context(dense=1), **options)
    last = {option: number - 1 for option, number in options.items()}
    placement("cpu_layers", context(dense=1), **last)


@pytest.mark.parametrize(("whole", "needed"), [(2, 1), (4, 3), ("all", 4)])
def test_fewer_layers_than_whole_layers_have_experts_are_refused(
    whole: int | str, needed: int
) -> None:
    """Model layer 0 is dense, so it needs no layer of experts on the CPU."""
    where = context(dense=1)
    said = rf"layers is {needed - 1}, and whole_layers: {whole} .*write layers: {needed} or more"
    with pytest.raises(UsageError, match=said):
        placement("cpu_layers", where, layers=needed - 1, whole_layers=whole)
    for layers in (needed, "auto", "all"):
        placement("cpu_layers", where, layers=layers, whole_layers=whole)


@pytest.mark.parametrize(
    "options", [{"layers": -1}, {"layers": "some"}, {"copy_rows": 0}, {"whole_layers": True}]
)
def test_options_of_another_kind_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"option {next(iter(options))}"):
        placement("cpu_layers", **options)


# --- cpu_experts ----------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 40),
    st.sampled_from(["uniform", "frequency", "front", "random"]),
)
def test_a_fixed_set_fills_the_slots_and_all_others_run_on_the_cpu(
    layers: int, experts: int, slots: int, by: str
) -> None:
    where = context(layers, experts, popularity=lambda profile: {})
    policy = placement("cpu_experts", where, by=by)
    found = list(policy.residents(slots) or ())
    assert len(set(found)) == len(found) == min(slots, layers * experts)
    assert set(range(layers * experts)) >= set(found)
    if by == "uniform":
        share = Counter(key // experts for key in found)
        counts = [share[layer] for layer in range(layers)]
        assert counts == sorted(counts, reverse=True)  # the first layers get one more
        assert max(counts) - min(counts) <= 1
    absent = dict.fromkeys(set(range(layers * experts)) - set(found), "host")
    loads = dict.fromkeys(absent, 100)
    assert place(policy, loads, absent, PricedExperts(rows=100)) == absent.keys()


def test_each_way_to_choose_the_experts_of_the_gpu_by_hand() -> None:
    # Two layers of three experts, and three slots. Keys 5 and 1 are used most, then 2 and 4 alike.
    counts = {5: 9, 1: 7, 2: 3, 4: 3}
    asked = []

    def popularity(profile: Path | None) -> dict[int, int]:
        asked.append(profile)
        return counts

    where = context(2, 3, popularity=popularity)
    sets = {
        by: placement("cpu_experts", where, by=by).residents(3)
        for by in ("uniform", "front", "frequency")
    }
    assert {by: list(keys or ()) for by, keys in sets.items()} == {
        "uniform": [0, 1, 3],
        "front": [0, 1, 2],
        "frequency": [5, 1, 2],
    }
    assert asked == [None]


def test_random_sets_differ_between_seeds_and_repeat_with_one() -> None:
    def drawn(seed: int) -> list[int]:
        where = context(rng=np.random.default_rng(seed))
        return list(placement("cpu_experts", where, by="random").residents(16) or ())

    assert drawn(1) == drawn(1) != drawn(2)


def test_frequency_counts_in_its_profile_and_is_hindsight_without_one(tmp_path: Path) -> None:
    policy = find("placement", "cpu_experts")
    where = context(popularity=lambda profile: {30: 1} if profile == tmp_path else {})
    learnt = placement("cpu_experts", where, by="frequency", profile=str(tmp_path))
    assert list(learnt.residents(3) or ()) == [30, 0, 1]
    options = policy.Options
    assert has_hindsight(policy, options(by="frequency"))
    assert not has_hindsight(policy, options(by="frequency", profile=tmp_path))
    assert not has_hindsight(policy, options(by="uniform"))


def test_nothing_is_counted_before_residents_are_asked_for() -> None:
    def never(profile: Any) -> dict[int, int]:
        raise AssertionError("counted")

    placement("cpu_experts", context(popularity=never), by="frequency")


def test_a_profile_that_is_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="profile is not read with by: front"):
        placement("cpu_experts", by="front", profile=str(tmp_path))


# --- cost -----------------------------------------------------------------------------------------


@given(events(), prices)
def test_each_expert_runs_where_it_is_done_sooner_by_itself(
    drawn: tuple[Loads, Absent], prices: PricedExperts
) -> None:
    loads, absent = drawn
    expected = set()
    for key, where in absent.items():
        read = prices.read_ns(key)
        ends = {
            "cpu": read + prices.cpu_ns(key, loads[key]),
            "gpu": read + prices.copy_ns(key) + prices.gpu_ns(key, loads[key]),
        }
        if where != ARRIVING and min(ends, key=ends.__getitem__) == "cpu":  # the first of equals
            expected.add(key)
    assert place(placement("cost"), loads, absent, prices) == expected


@pytest.mark.parametrize(("rows", "lane"), [(11, "cpu"), (12, "gpu")])
def test_the_rows_from_which_on_a_copy_pays_by_hand(rows: int, lane: str) -> None:
    # On the CPU 10 ns a row; on the GPU 99 ns of copy and 1 ns a row. 11 rows are done at 110 ns
    # on both, and a tie goes to the CPU. 12 rows take 120 ns or 111 ns.
    found = place(placement("cost"), {0: rows}, {0: "host"}, PricedExperts(copy=99))
    assert found == ({0} if lane == "cpu" else set())


def test_a_copy_under_way_is_used_whatever_it_costs() -> None:
    for name in ("cost", "two_queue"):
        slow = PricedExperts(copy=10**9)
        assert place(placement(name), {0: 1}, {0: ARRIVING}, slow) == set()
        assert place(placement(name), {0: 1}, {0: "host"}, slow) == {0}


# --- two_queue ------------------------------------------------------------------------------------


@given(events(), prices)
def test_two_queues_equal_the_greedy_rule_or_the_better_of_no_division(
    drawn: tuple[Loads, Absent], prices: PricedExperts
) -> None:
    loads, absent = drawn
    answer = placement("two_queue").place(event(loads), absent, prices)
    copied = [key for key, lane in answer.items() if lane == "gpu"]
    plans = [greedy(loads, absent, prices), [], queue_of(loads, absent)]
    ends = [makespan(loads, absent, prices, plan) for plan in plans]
    assert copied == plans[ends.index(min(ends))]


@given(events(most=6), prices)
def test_two_queues_lose_neither_to_the_cpu_nor_to_copies_and_never_beat_the_best_division(
    drawn: tuple[Loads, Absent], prices: PricedExperts
) -> None:
    loads, absent = drawn
    queue = queue_of(loads, absent)
    found = place(placement("two_queue"), loads, absent, prices)
    ends = {
        chosen: makespan(loads, absent, prices, list(compress(queue, chosen)))
        for chosen in product([True, False], repeat=len(queue))
    }
    own = ends[tuple(key not in found for key in queue)]
    assert min(ends.values()) <= own
    assert own <= ends[(True,) * len(queue)]
    assert own <= ends[(False,) * len(queue)]


def test_two_queues_meet_between_the_heaviest_and_the_lightest_by_hand() -> None:
    # CPU 10 ns a row, copies 40 ns. Keys 1 to 4 have 4, 3, 2 and 1 rows.
    #   CPU takes 4 (done 10 < 40), 3 (30 < 40); then key 2 would be done at 60, key 1 lands at 40:
    #   copied. For key 2 the CPU needs until 60, the link until 80: the CPU. So 1 is copied alone.
    loads, absent = {3: 2, 1: 4, 4: 1, 2: 3}, dict.fromkeys((1, 2, 3, 4), "host")
    prices = PricedExperts(copy=40)
    answer = placement("two_queue").place(event(loads), absent, prices)
    assert dict(answer) == {1: "gpu", 2: "cpu", 3: "cpu", 4: "cpu"}
    # Done at 60: the CPU computes six rows, the GPU has finished at 44.
    assert makespan(loads, absent, prices, [1]) == 60


def test_a_division_that_helps_nothing_is_not_made() -> None:
    # The copy of key 0 lands at 9, before the CPU is done at 10. But the GPU is busy until 20 with
    # key 1, and then needs 1 more: 21. The CPU alone leaves the end at 20.
    loads, absent = {0: 1, 1: 20}, {0: "host"}
    assert greedy(loads, absent, PricedExperts(copy=9)) == [0]
    assert place(placement("two_queue"), loads, absent, PricedExperts(copy=9)) == {0}


def test_of_equal_experts_the_lower_key_is_copied_first() -> None:
    loads, absent = dict.fromkeys((5, 2, 7), 1), dict.fromkeys((5, 2, 7), "host")
    prices = PricedExperts(copy=9, copies={})
    answer = placement("two_queue").place(event(loads), absent, prices)
    # The link lands key 2 at 9 (the CPU needs 10); the CPU takes key 7 until 10; key 5 lands at 18.
    assert list(answer.items()) == [(2, "gpu"), (5, "gpu"), (7, "cpu")]


def test_of_two_tasks_that_end_together_the_cpu_gets_its_own() -> None:
    # Copies of 10 and CPU tasks of 10. A tie: the CPU takes key 2 (10). Key 0 lands at 10, before
    # 20: copied. Key 1 would end at 20 on both: the CPU.
    loads, absent = dict.fromkeys((0, 1, 2), 1), dict.fromkeys((0, 1, 2), "host")
    assert place(placement("two_queue"), loads, absent, PricedExperts(copy=10)) == {1, 2}


def test_a_copy_under_way_delays_the_copies_behind_it() -> None:
    # Six experts take 30 each on the CPU, copies 50. Key 9 arrives until 50, so the first copy
    # lands at 100. The CPU takes keys 5, 4 and 3 until 90; key 0 lands at 100, before 120; then the
    # next copy would land at 150, and the CPU takes keys 2 and 1 until 150.
    loads = {9: 1, **dict.fromkeys(range(6), 3)}
    absent = {9: ARRIVING, **dict.fromkeys(range(6), "host")}
    found = place(placement("two_queue"), loads, absent, PricedExperts(copy=50))
    assert found == {1, 2, 3, 4, 5}


def test_disk_reads_delay_both_lanes() -> None:
    # Key 0 is on disk: read 50. Copied: 50 + 100 + 1 = 151. On the CPU: 50 + 10 = 60.
    prices = PricedExperts(reads={0: 50})
    loads, absent = {0: 1, 1: 12}, {0: "disk", 1: "host"}
    # Key 1: 120 on the CPU, or lands at 100. The greedy rule gives key 0 to the CPU (60 < 100),
    # then key 1 to the link (100 < 180).
    assert place(placement("two_queue"), loads, absent, prices) == {0}
    # With a read of 130, key 1 lands before the CPU has key 0 (100 < 140); then key 0 goes to the
    # CPU (140 < 330).
    later = PricedExperts(reads={0: 130})
    assert list(placement("two_queue").place(event(loads), absent, later)) == [1, 0]
