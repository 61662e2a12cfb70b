"""Measured costs answer exactly what was measured, and run wherever the roofline does."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_events import HandPrices, event_times
from measured_profiles import measured_profile, random_times, tiny_shape
from workloads import (
    REFACTORED_CONFIG,
    everything,
    plan_of,
    random_case,
    run_on,
    tiny_scenario,
    tiny_trace,
)

from moesim.cost.measured import OperationCost
from moesim.cost.roofline import CostModel
from moesim.errors import ScenarioError
from moesim.hardware import BatchShape, Dense, Experts, Front, Tail, load_hardware
from moesim.hardware.measurement import OperationTimes
from moesim.machine.events import EventMachine
from moesim.model.hf_config import shape_from_config
from moesim.simulate import summarise

COUNTS = st.integers(0, 5000)
BATCHES = st.builds(BatchShape, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)


def cost_with(**changes: Any) -> OperationCost:
    """Costs of the tiny shape from the times of one seed, changed."""
    shape = tiny_shape()
    times = OperationTimes.model_validate({**random_times(0, shape), **changes})
    return OperationCost(load_hardware("t4"), shape, times)


def random_cost(seed: int) -> OperationCost:
    shape = tiny_shape(sliding_window=7) if seed % 2 else tiny_shape()
    times = OperationTimes.model_validate(random_times(seed, shape))
    return OperationCost(load_hardware("t4"), shape, times)


def test_the_expert_table_is_read_between_and_beyond_its_points() -> None:
    table = {"call_ns": 100, "tokens": [2, 4, 8], "each_ns": [10, 20, 60]}
    cost = cost_with(experts=table)
    each = {0: 0, 1: 10, 2: 10, 3: 15, 4: 20, 5: 30, 8: 60, 9: 70, 18: 160}
    for count, expected in each.items():
        assert cost.experts_ns((count,)) == 100 + expected
        assert cost.experts_ns((count, 4)) == 100 + expected + 20
    assert cost.experts_ns(()) == 0
    assert cost.compute_ns(Experts(1, (8, 9), (2, 8))) == 100 + 10 + 60
    one = cost_with(experts={"call_ns": 0, "tokens": [4], "each_ns": [6]})
    assert [one.experts_ns((count,)) for count in (1, 4, 8, 9)] == [6, 6, 12, 14]


def test_layers_are_sums_over_their_work_and_the_first_costs_more() -> None:
    work = {"token_ns": 10, "sequence_ns": 100, "kv_token_ns": 2, "pair_ns": 0.25}
    cost = cost_with(
        front={"base_ns": 1000, **work},
        dense={"base_ns": 5000, **work},
        first={"base_ns": 300, "token_ns": 1},
        tail={"base_ns": 7, "token_ns": 1, "sequence_ns": 2, "sampled_ns": 3},
        readback={"base_ns": 50, "byte_ns": 0.5},
    )
    batch = BatchShape(tokens=4, kv_tokens=20, pairs=30, sampled=2, sequences=3)
    later = 1000 + 40 + 300 + 40 + 8  # 7.5 ns of pairs are rounded up
    first = 1000 + 40 + 300 + 40 + 7.5 + 304
    assert cost.compute_ns(Front(1, batch)) == later
    assert cost.compute_ns(Front(0, batch)) == ceil(first)
    assert cost.compute_ns(Dense(2, batch)) == later + 4000
    assert cost.layers_ns(batch) == [ceil(first), later, later, later]
    prefill = cost_with(
        front={"base_ns": 9, "prefill_ns": 40}, first={"base_ns": 0, "prefill_ns": 5000}
    )
    assert prefill.layers_ns(batch)[:2] == [5049, 49]
    assert prefill.layers_ns(batch._replace(tokens=3))[:2] == [9, 9]
    assert cost.compute_ns(Tail(batch)) == 7 + 4 + 6 + 6
    assert [cost.readback_ns(nbytes) for nbytes in (0, 1, 2)] == [50, 51, 51]


def test_a_window_bounds_what_a_layer_sees() -> None:
    shape = tiny_shape(sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2)
    front = {"base_ns": 0, "kv_token_ns": 1, "pair_ns": 1}
    times = {**random_times(0, shape), "front": front, "first": {"base_ns": 0}}
    cost = OperationCost(load_hardware("t4"), shape, OperationTimes.model_validate(times))
    batch = BatchShape(tokens=2, kv_tokens=100, pairs=200, sampled=2, sequences=2)
    assert cost.layers_ns(batch) == [32, 300, 32, 300]


@given(st.integers(0, 30), BATCHES, BATCHES, st.lists(COUNTS, max_size=9), COUNTS)
def test_prices_are_whole_never_negative_and_rise_with_the_work(
    seed: int, one: BatchShape, other: BatchShape, rows: list[int], more: int
) -> None:
    cost = random_cost(seed)
    larger = BatchShape(*map(max, one, other))
    for layer in range(4):
        assert 0 <= cost.front_ns(layer, one) <= cost.front_ns(layer, larger)
        assert 0 <= cost.dense_ns(layer, one) <= cost.dense_ns(layer, larger)
    assert 0 <= cost.tail_ns(one) <= cost.tail_ns(larger)
    assert 0 <= cost.readback_ns(one.tokens) <= cost.readback_ns(larger.tokens)
    assert cost.layers_ns(one) == [cost.front_ns(layer, one) for layer in range(4)]
    before = cost.experts_ns(tuple(rows))
    assert isinstance(before, int)
    assert before >= 0
    for place in range(len(rows)):
        grown = [count + more * (place == i) for i, count in enumerate(rows)]
        assert cost.experts_ns(tuple(grown)) >= before
    assert all(type(price) is int for price in cost.layers_ns(one))


@given(st.integers(0, 30), BATCHES)
def test_prices_are_exact_sums_rounded_up(seed: int, batch: BatchShape) -> None:
    cost = random_cost(2 * seed)
    front = cost.times.front
    exact = Fraction(front.base_ns) + sum(
        Fraction(each) * count
        for each, count in (
            (front.token_ns, batch.tokens),
            (front.sequence_ns, batch.sequences),
            (front.kv_token_ns, batch.kv_tokens),
            (front.pair_ns, batch.pairs),
        )
    )
    coarse = Fraction(sum(batch) + 1, 2 * 10**6)  # half a femtosecond a coefficient
    assert ceil(exact - coarse) <= cost.front_ns(1, batch) <= ceil(exact + coarse)


def test_a_scenario_takes_measured_costs_where_its_shape_was_measured(tmp_path: Path) -> None:
    trace = tiny_trace()
    shape = tiny_shape()
    times = {**random_times(3, shape), "copy_factor": 1.5}
    profile = str(measured_profile(tmp_path / "mine.yaml", times))
    plan = plan_of(tiny_scenario(hardware=profile), trace)
    assert isinstance(plan.cost, OperationCost)
    assert plan.cost.times == OperationTimes.model_validate(times)
    assert summarise(run_on(plan))["cost_kind"] == "measured"

    halved = tiny_scenario(hardware=profile, model={"shape": "trace", "expert_bits": 8})
    assert type(plan_of(halved, trace).cost) is CostModel
    faster = tiny_scenario(hardware={"profile": profile, "flops": "1TFLOPS"})
    other = plan_of(faster, trace)
    assert type(other.cost) is CostModel
    assert other.cost.hardware.cost_kind == "assumed"
    slower_link = tiny_scenario(hardware={"profile": profile, "h2d": {"bandwidth": "1GB/s"}})
    linked = plan_of(slower_link, trace)
    assert isinstance(linked.cost, OperationCost)
    assert linked.cost.hardware.cost_kind == "assumed"
    alone = 10**9 + linked.cost.hardware.h2d.latency_ns
    assert linked.cost.copy_ns("h2d", 10**9) == ceil(alone * Fraction(times["copy_factor"]))
    assert linked.cost.copy_ns("d2h", 0) == linked.cost.hardware.d2h.latency_ns


def test_costs_measured_with_a_decoupled_router_hold_for_that_shape_alone(tmp_path: Path) -> None:
    """What its tail took was measured with the router, and nothing is added to it."""
    shape = shape_from_config(REFACTORED_CONFIG)
    profile = measured_profile(tmp_path / "mine.yaml", random_times(3, shape))
    trace = tiny_trace().with_meta(router="decoupled")
    layerwise = plan_of(tiny_scenario(hardware=str(profile)), trace)
    assert type(layerwise.cost) is CostModel
    trace = trace.with_meta(model_config=REFACTORED_CONFIG)
    plan = plan_of(tiny_scenario(hardware=str(profile)), trace)
    assert isinstance(plan.cost, OperationCost)
    tail, batch = plan.cost.times.tail, BatchShape(4, 20, 30, 2, 3)
    counted = tail.base_ns + tail.token_ns * 4 + tail.sequence_ns * 3 + tail.sampled_ns * 2
    assert plan.cost.tail_ns(batch) == pytest.approx(counted, abs=1)
    assert everything(run_on(plan)) == everything(run_on(plan, EventMachine))


def test_the_names_of_shapes_do_not_matter_their_sizes_do(tmp_path: Path) -> None:
    shape = tiny_shape()
    times = [random_times(3, shape), random_times(4, replace(shape, hidden=1024))]
    hardware = load_hardware(measured_profile(tmp_path / "mine.yaml", *times))
    found = hardware.operations_of(replace(shape, name="else", source="elsewhere"))
    assert found == OperationTimes.model_validate(times[0])
    assert hardware.operations_of(replace(shape, hidden=1024)) == hardware.operations[1]
    for other in (replace(shape, num_layers=5), replace(shape, weight_bits=32)):
        assert hardware.operations_of(other) is None


@pytest.mark.parametrize("block", range(5))
def test_the_folded_machine_equals_one_event_per_chunk(block: int, tmp_path: Path) -> None:
    for seed in range(block, 60, 5):
        scenario, trace = random_case(5000 + seed)
        profile = measured_profile(tmp_path / f"{seed}.yaml", random_times(seed, tiny_shape()))
        link = scenario["hardware"]["h2d"]
        scenario["hardware"] = {"profile": str(profile), "h2d": link}
        plan = plan_of(scenario, trace)
        assert isinstance(plan.cost, OperationCost)
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


@pytest.mark.parametrize(("resident_ns", "start"), [(50, 107), (104, 107), (107, 107), (300, 300)])
def test_a_computation_that_waited_for_a_copy_begins_later_and_another_does_not(
    resident_ns: int, start: int
) -> None:
    """Copies take 100 ns; from a landing to the start of what has waited for it, 7 ns."""
    prices: dict[tuple[int, ...], int] = {(1,): resident_ns, (2,): 20}
    it = event_times((1, 2), (False, True), prices=HandPrices(7, prices.__getitem__))
    resident, copy, copied_in = (entry.work for entry in it.entries)
    assert (copy.start_ns, copy.finish_ns) == (0, 100)
    assert [resident.start_ns, copied_in.start_ns] == [0, start]
    assert it.duration_ns == start + 20


def test_the_last_call_after_a_copy_bears_what_the_copies_of_its_event_cost() -> None:
    it = event_times((1, 2, 3), (False, True, True))
    ops = [entry.work.op for entry in it.entries if isinstance(entry.work.op, Experts)]
    assert [(op.fresh, op.copied) for op in ops] == [(False, 0), (True, 0), (True, 2)]
    cost = cost_with(fetch={"call_ns": 7, "event_ns": 100, "copy_ns": 1000})
    alone = [cost.experts_ns(op.tokens) for op in ops]
    later = [cost.compute_ns(op) - ns for op, ns in zip(ops, alone, strict=True)]
    assert later == [0, 7, 2107]
    assert [CostModel(cost.hardware, cost.shape).fetch_ns(copied) for copied in (0, 2)] == [0, 0]


def test_a_profile_with_operations_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for seed in range(20):
        shape = tiny_shape(num_hidden_layers=3 + seed)
        times = random_times(seed, shape)
        hardware = load_hardware(measured_profile(tmp_path / "mine.yaml", times))
        assert hardware.operations == (OperationTimes.model_validate(times),)
        assert hardware.operations[0].shape.resolve() == replace(shape, source="")
        assert hardware.measured is not None
        assert hardware.measured.machine == {"cores": 2}
        assert hardware.overlap is not None
        assert hardware.overlap.compute == 1.25
        assert hardware.cost_kind == "measured"


def test_profiles_without_measurements_stay_as_they_were() -> None:
    hardware = load_hardware("rtx-4090")
    assert (hardware.measured, hardware.overlap, hardware.operations) == (None, None, ())
    assert hardware.operations_of(tiny_shape()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["experts"]["each_ns"].append(1e9), "durations"),
        (lambda t: t["experts"].update(tokens=[2, 2], each_ns=[1, 2]), "must rise: 2 follows 2"),
        (lambda t: t["experts"].update(tokens=[2, 3], each_ns=[2, 1]), "must rise: 1 follows 2"),
        (lambda t: t["experts"].update(tokens=[], each_ns=[]), "experts.tokens: must not be empty"),
        (lambda t: t["front"].update(token_ns=-1), "front.token_ns: must be at least 0"),
        (lambda t: t["front"].update(tokens_ns=1), "did you mean 'token_ns'?"),
        (lambda t: t["tail"].update(base_ns="5us"), "tail.base_ns: must be a finite number"),
        (lambda t: t.pop("readback"), "readback: is required and missing"),
        (lambda t: t["shape"].update(hidden=0), "shape.hidden: must be at least 1"),
        (
            lambda t: (t.pop("dense"), t["shape"].update(dense_layers=[0])),
            "has dense layers, but no `dense`",
        ),
    ],
)
def test_mistakes_in_operations_are_reported_with_their_line(
    change: Any, said: str, tmp_path: Path
) -> None:
    times = copy.deepcopy(random_times(1, tiny_shape()))
    change(times)
    path = measured_profile(tmp_path / "mine.yaml", times)
    with pytest.raises(ScenarioError) as caught:
        load_hardware(path)
    assert len(caught.value.problems) == 1
    assert f"{path}:" in str(caught.value)
    assert said in str(caught.value)


def test_one_shape_has_one_entry(tmp_path: Path) -> None:
    times = [random_times(seed, tiny_shape()) for seed in (1, 2)]
    times[1]["shape"]["name"] = "the same by another name"
    path = measured_profile(tmp_path / "mine.yaml", *times)
    with pytest.raises(
        ScenarioError, match=r"operations\[1\].*same sizes as operations\[0\]; keep one of the two$"
    ):
        load_hardware(path)


def test_measured_random_cases_differ() -> None:
    """Otherwise the tests above would try one case only."""
    rng = random.Random(0)
    batch = BatchShape(*(rng.randint(1, 50) for _ in range(5)))
    assert len({random_cost(seed).front_ns(1, batch) for seed in range(20)}) > 15
