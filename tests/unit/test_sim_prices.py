"""Prices depend on the lane, and sharing host memory changes no time of a work that is alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured_profiles import random_times, tiny_shape
from tiny_shapes import three_layers

from moesim.cost.cpu import CpuCost, topology_of
from moesim.cost.estimate import CostEstimate
from moesim.cost.measured import OperationCost
from moesim.cost.prices import SimPrices, flow
from moesim.cost.roofline import CostModel
from moesim.hardware import BatchShape, Dense, Experts, Front, Hardware, Link, Tail
from moesim.hardware.hardware import Disk
from moesim.hardware.measurement import OperationTimes
from moesim.hardware.ops import Copy, Op, Readback, States
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D, HOST_BANDWIDTH
from moesim.machine.work import Cost
from moesim.policies.placement import Estimate

# The CPU reaches 10 operations and 1 byte a nanosecond, the GPU ten times as many.
HARDWARE = Hardware(
    name="by hand",
    vram_bytes=10**9,
    flops_per_s=100 * 10**9,
    memory_bytes_per_s=10 * 10**9,
    compute_efficiency=1.0,
    memory_efficiency=1.0,
    kernel_overhead_ns=1000,
    h2d=Link(50, 3 * 10**9, 10**9, chunk_bytes=1000),
    d2h=Link(70, 2 * 10**9, 10**9),
    readback_latency_ns=10,
    host_memory_bytes_per_s=10**9,
    cpu_flops_per_s=10 * 10**9,
    cpu_overhead_ns=300,
    disk=Disk(latency_ns=902, bytes_per_s=5 * 10**8, queue_depth=4),
)
# An expert has 3 * 8 * 10 = 240 weights, 480 bytes, and 480 operations a row.
SHAPE = dataclasses.replace(three_layers(), shared_ffn=0, windowed_layers=(), window=None)
COST = CostModel(HARDWARE, SHAPE)
TOPOLOGY = topology_of(HARDWARE, cpu=True, disk=True)
ALONE = SimPrices(COST)
SHARED = SimPrices(COST, topology=TOPOLOGY)
BATCH = BatchShape(7, 90, 200, 3)


def uses(nbytes: int) -> tuple[tuple[str, int], ...]:
    return ((HOST_BANDWIDTH, nbytes),)


def alone_ns(pieces: Sequence[Cost]) -> int:
    return sum(piece.alone_ns for piece in pieces)


# --- one GPU --------------------------------------------------------------------------------------

OPS: list[tuple[str, Op, int]] = [
    (GPU, Front(1, BATCH), COST.front_ns(1, BATCH)),
    (GPU, Dense(0, BATCH), COST.dense_ns(0, BATCH)),
    (GPU, Tail(BATCH), COST.tail_ns(BATCH)),
    (GPU, Experts(1, (0, 2), (3, 30)), COST.experts_ns((3, 30))),
    (D2H, Copy(1, 480), COST.copy_ns(D2H, 480)),
    (D2H, Readback(14), COST.readback_ns(14)),
    (D2H, States(1, 7, 112), COST.copy_ns(D2H, 112)),
    (H2D, States(1, 7, 2000), COST.copy_ns(H2D, 2000)),
    (H2D, Copy(1, 480), COST.copy_ns(H2D, 480)),
]


@pytest.mark.parametrize(("lane", "op", "duration_ns"), OPS)
def test_without_shared_bandwidths_a_work_takes_the_time_of_the_cost_model(
    lane: str, op: Op, duration_ns: int
) -> None:
    assert tuple(ALONE.pieces(lane, op)) == (Cost(duration_ns),)


def test_a_cut_copy_has_its_latency_in_the_first_piece() -> None:
    # 50 ns, and 333.3 ns for each 1000 bytes, rounded up from the start of the copy.
    pieces = ALONE.pieces(H2D, Copy(0, 2500))
    assert [piece.fixed_ns for piece in pieces] == [50 + 334, 333, 167]


def test_the_same_work_is_priced_once() -> None:
    for lane, op, _ in [*OPS, (H2D, Copy(1, 2500), 0)]:
        if not isinstance(op, States):
            assert ALONE.pieces(lane, op) is ALONE.pieces(lane, op)
    # Neither layer nor key decides, but the lane does.
    same = [SHARED.pieces(GPU, Experts(layer, (layer,), (4,))) for layer in (1, 2)]
    assert same[0] is same[1]
    assert SHARED.pieces(CPU, Experts(1, (0,), (4,))) != same[0]
    assert SHARED.pieces(H2D, Copy(0, 480)) != SHARED.pieces(D2H, Copy(0, 480))


# --- shared host memory ---------------------------------------------------------------------------


def test_experts_on_the_cpu_read_their_bytes_through_host_memory() -> None:
    # Two experts of 480 bytes at 1 byte a ns, after an overhead of 300 ns.
    memory_bound = SHARED.pieces(CPU, Experts(1, (0, 1), (1, 1)))
    assert memory_bound == (Cost(300, 960, 10**9, uses(960)),)
    # 20 rows take 960 ns of arithmetic, in which 480 bytes move: half the rate.
    assert SHARED.pieces(CPU, Experts(1, (0,), (20,))) == (Cost(300, 480, 5 * 10**8, uses(480)),)
    assert SHARED.pieces(GPU, Experts(1, (0,), (20,))) == (Cost(1000 + 96),)


def test_layers_on_the_cpu_read_weights_and_kv_through_host_memory() -> None:
    cpu = CpuCost(HARDWARE, SHAPE)
    for op in (Front(1, BATCH), Dense(0, BATCH), Tail(BATCH)):
        (piece,) = SHARED.pieces(CPU, op)
        assert piece.uses == uses(cpu.call(op).nbytes)
        assert piece.alone_ns == cpu.call(op).duration_ns


def test_copies_of_weights_use_host_memory_and_small_ones_do_not() -> None:
    assert SHARED.pieces(H2D, Copy(0, 900)) == [Cost(50, 900, 3 * 10**9, uses(900))]
    assert SHARED.pieces(D2H, Copy(0, 900)) == [Cost(70, 900, 2 * 10**9, uses(900))]
    for lane, op in ((H2D, States(1, 7, 900)), (D2H, States(1, 7, 900)), (D2H, Readback(14))):
        assert SHARED.pieces(lane, op) == ALONE.pieces(lane, op)


def test_each_chunk_is_a_flow_with_the_latency_in_the_first() -> None:
    first, second, third = SHARED.pieces(H2D, Copy(0, 2500))
    # 334 ns for 1000 bytes: ceil(10^12 / 334) = 2994011977 bytes a second, and so on.
    assert first == Cost(50, 1000, 2_994_011_977, uses(1000))
    assert second == Cost(0, 1000, 3_003_003_004, uses(1000))
    assert third == Cost(0, 500, 2_994_011_977, uses(500))
    assert [first.alone_ns, second.alone_ns, third.alone_ns] == [384, 333, 167]


def test_a_read_takes_a_share_of_the_latency_and_its_bytes_over_the_bandwidth() -> None:
    # 902 / 4 = 225.5 ns, rounded up; 2 ns a byte. The bytes are written to host memory.
    assert SHARED.pieces(DISK, Copy(0, 480)) == [Cost(226, 480, 5 * 10**8, uses(480))]
    deep = dataclasses.replace(HARDWARE, disk=Disk(902, 5 * 10**8))
    prices = SimPrices(CostModel(deep, SHAPE), topology=topology_of(deep, cpu=False, disk=True))
    assert alone_ns(prices.pieces(DISK, Copy(0, 480))) == 902 + 960
    # Reads are not cut, although copies to the GPU are.
    assert len(SHARED.pieces(DISK, Copy(0, 5000))) == 1


@given(st.sampled_from([H2D, D2H]), st.integers(0, 10**7), st.integers(500, 10**6))
def test_a_copy_that_is_alone_takes_as_long_as_without_sharing(
    lane: str, nbytes: int, chunk: int
) -> None:
    link = dataclasses.replace(HARDWARE.h2d, chunk_bytes=chunk)
    cost = CostModel(dataclasses.replace(HARDWARE, h2d=link), SHAPE)
    alone = SimPrices(cost).pieces(lane, Copy(0, nbytes))
    shared = SimPrices(cost, topology=TOPOLOGY).pieces(lane, Copy(0, nbytes))
    assert [piece.alone_ns for piece in shared] == [piece.fixed_ns for piece in alone]
    assert sum(piece.nbytes for piece in shared) == nbytes
    assert alone_ns(shared) == cost.copy_ns(lane, nbytes)


@given(st.integers(0, 9), st.integers(1, 10**8))
def test_measured_copies_that_are_alone_take_as_long_as_without_sharing(
    seed: int, nbytes: int
) -> None:
    shape = tiny_shape()
    times = OperationTimes.model_validate(random_times(seed, shape))
    cost = OperationCost(HARDWARE, shape, times)
    prices = SimPrices(cost, topology=TOPOLOGY)
    assert alone_ns(prices.pieces(H2D, Copy(0, nbytes))) == cost.copy_ns(H2D, nbytes)
    assert all(piece.uses for piece in prices.pieces(H2D, Copy(0, nbytes)))


@given(st.integers(0, 10**9), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_flow_that_is_alone_takes_its_fixed_time_and_its_moving_time(
    fixed_ns: int, moving_ns: int, nbytes: int
) -> None:
    cost = flow(fixed_ns, moving_ns, nbytes)
    assert cost.alone_ns == fixed_ns + moving_ns
    if cost.uses:
        assert cost.uses == uses(nbytes)
        assert cost.fixed_ns - fixed_ns <= 1 + moving_ns / cost.rate
        # One byte/s less would take longer than `moving_ns`.
        assert cost.rate == 1 or -(-nbytes * 10**9 // (cost.rate - 1)) > moving_ns
    else:
        assert not (moving_ns and nbytes)


# --- the bound of an infinite link ----------------------------------------------------------------


def test_an_infinite_link_carries_weights_and_states_in_no_time() -> None:
    for topology in (None, TOPOLOGY):
        free = SimPrices(COST, free_link=True, topology=topology)
        for lane in (H2D, D2H):
            assert list(free.pieces(lane, Copy(0, 480))) == [Cost(0)]
            assert list(free.pieces(lane, States(1, 7, 112))) == [Cost(0)]
        assert {*free.pieces(H2D, Copy(0, 2500))} == {Cost(0)}
        # The latency of ids is no bandwidth, and the disk is no part of the link.
        assert free.pieces(D2H, Readback(14)) == ALONE.pieces(D2H, Readback(14))
    assert free.pieces(DISK, Copy(0, 480)) == SHARED.pieces(DISK, Copy(0, 480))
    assert free.pieces(CPU, Experts(1, (0,), (1,))) == SHARED.pieces(CPU, Experts(1, (0,), (1,)))


# --- experts of unequal sizes ---------------------------------------------------------------------


def sized(key: int) -> int:
    return 480 if key else 1000


def test_a_call_reads_each_expert_as_large_as_it_is() -> None:
    prices = SimPrices(COST, topology=TOPOLOGY, bytes_of=sized)
    # 1480 bytes at 1 byte a ns on the CPU, and at 10 on the GPU.
    assert prices.pieces(CPU, Experts(1, (0, 1), (1, 1))) == (Cost(300, 1480, 10**9, uses(1480)),)
    assert prices.pieces(GPU, Experts(1, (0, 1), (1, 1))) == (Cost(1000 + 148),)
    # The same rows of other keys are another price.
    assert prices.pieces(GPU, Experts(1, (1, 2), (1, 1))) == (Cost(1000 + 96),)
    assert prices.pieces(CPU, Experts(1, (1, 2), (1, 1))) == (Cost(300, 960, 10**9, uses(960)),)


@pytest.mark.parametrize("tokens", [(), (1,), (3, 50, 0)])
def test_equal_sizes_given_for_each_expert_change_nothing(tokens: tuple[int, ...]) -> None:
    prices = SimPrices(COST, topology=TOPOLOGY, bytes_of=lambda key: 480)
    op = Experts(1, tuple(range(len(tokens))), tokens)
    for lane in (GPU, CPU):
        assert prices.pieces(lane, op) == SHARED.pieces(lane, op)


# --- estimates ------------------------------------------------------------------------------------


@given(st.integers(1, 200))
def test_an_estimate_is_the_time_of_the_work_alone(rows: int) -> None:
    estimate: Estimate = CostEstimate(COST, SHARED.cpu, unread_of=lambda key: 480 * (key == 3))
    assert estimate.copy_ns(0) == alone_ns(SHARED.pieces(H2D, Copy(0, 480)))
    assert estimate.gpu_ns(0, rows) == alone_ns(SHARED.pieces(GPU, Experts(1, (0,), (rows,))))
    assert estimate.cpu_ns(0, rows) == alone_ns(SHARED.pieces(CPU, Experts(1, (0,), (rows,))))
    assert estimate.read_ns(3) == alone_ns(SHARED.pieces(DISK, Copy(3, 480)))
    assert estimate.read_ns(0) == 0


def test_an_estimate_names_the_part_that_a_call_pays_once() -> None:
    estimate = CostEstimate(COST, SHARED.cpu)
    for call_ns, one in (
        (estimate.gpu_call_ns, estimate.gpu_ns),
        (estimate.cpu_call_ns, estimate.cpu_ns),
    ):
        lane = GPU if one == estimate.gpu_ns else CPU
        both = alone_ns(SHARED.pieces(lane, Experts(1, (0, 1), (2, 30))))
        assert both == call_ns + (one(0, 2) - call_ns) + (one(1, 30) - call_ns)


def test_an_estimate_knows_the_size_of_each_expert() -> None:
    estimate = CostEstimate(COST, SHARED.cpu, bytes_of=sized, unread_of=lambda key: 50 * key)
    assert [estimate.copy_ns(key) for key in (0, 1)] == [50 + 334, 50 + 160]
    assert [estimate.gpu_ns(key, 1) for key in (0, 1)] == [1000 + 100, 1000 + 48]
    assert [estimate.cpu_ns(key, 1) for key in (0, 1)] == [300 + 1000, 300 + 480]
    # Half of an expert may be on disk: only the bytes that are not in host memory are read.
    assert [estimate.read_ns(key) for key in (0, 1, 2)] == [0, 226 + 100, 226 + 200]


def test_a_machine_without_a_cpu_lane_still_estimates_copies() -> None:
    bare = dataclasses.replace(HARDWARE, cpu_flops_per_s=None, host_memory_bytes_per_s=None)
    estimate = CostEstimate(CostModel(bare, SHAPE), SimPrices(CostModel(bare, SHAPE)).cpu)
    assert estimate.copy_ns(0) == 50 + 160
    assert estimate.cpu_call_ns == 0
