"""Costs are whole nanoseconds that a person can compute by hand."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_shapes import three_layers

from moesim.cost.roofline import CostModel
from moesim.cost.slowest import slowest_figures
from moesim.hardware import BatchShape, Dense, Experts, Front, Hardware, Link, Tail, load_hardware
from moesim.hardware.ops import Op
from moesim.model.shapes import DecoupledRouter, Mla, named_shape

# 10 operations and 1 byte a nanosecond are reached.
HARDWARE = Hardware(
    name="by hand",
    vram_bytes=10**9,
    flops_per_s=20 * 10**9,
    memory_bytes_per_s=4 * 10**9,
    compute_efficiency=0.5,
    memory_efficiency=0.25,
    kernel_overhead_ns=1000,
    h2d=Link(latency_ns=50, pinned_bytes_per_s=3 * 10**9, pageable_bytes_per_s=10**9),
    d2h=Link(latency_ns=70, pinned_bytes_per_s=2 * 10**9, pageable_bytes_per_s=10**9),
    readback_latency_ns=10,
    host_memory_bytes_per_s=10**9,
    cpu_flops_per_s=10**9,
)
# Attention 8 * 4 * 2 * (2 + 1) = 192 weights, router 8 * 4 = 32, shared 3 * 8 * 5 = 120, norms 16.
SHAPE = three_layers()
COST = CostModel(HARDWARE, SHAPE)


@pytest.mark.parametrize(
    ("change", "slowest"),
    [
        ({"kernel_overhead_ns": 10**17}, ["hardware.kernel_overhead is 100000000 s"]),
        (
            {"flops_per_s": 1},
            ["hardware.flops is 1 FLOPS at compute_efficiency 0.5, so one expert takes 480 s"],
        ),
        (
            {"memory_efficiency": 1e-9},
            [
                "hardware.memory_bandwidth is 3.73 GiB/s at memory_efficiency 1e-09, "
                "so one expert takes 120 s"
            ],
        ),
        (
            {"h2d": Link(50, 2, 10**9), "readback_latency_ns": 30 * 10**9},
            [
                "hardware.h2d.pinned_bandwidth is 2 B/s, so one expert takes 240 s",
                "hardware.readback_latency is 30 s",
            ],
        ),
    ],
)
def test_the_slowest_figures_are_those_within_a_factor_of_ten(
    change: dict[str, Any], slowest: list[str]
) -> None:
    cost = CostModel(dataclasses.replace(HARDWARE, **change), SHAPE)
    assert [text for _, text in slowest_figures(cost)] == slowest


def test_an_expert_call_sums_the_roofline_of_each_expert() -> None:
    # An expert has 3 * 8 * 10 = 240 weights, 480 bytes: 480 ns to read, 48 ns of work a row.
    assert COST.expert_bytes == 480
    assert COST.compute_ns(Experts(1, (0,), (1,))) == 480 + 1000
    assert COST.compute_ns(Experts(1, (0, 3), (1, 1))) == 960 + 1000
    assert COST.compute_ns(Experts(1, (2,), (20,))) == 960 + 1000  # 20 rows: compute-bound
    assert COST.compute_ns(Experts(2, (1, 2), (20, 10))) == 960 + 480 + 1000
    assert COST.compute_ns(Experts(1, (), ())) == 0


def test_a_front_reads_weights_and_kv_and_works_on_every_row() -> None:
    # 360 weights = 720 bytes; KV 2 * 1 * 4 * 2 = 16 bytes an entry, (10 + 1) entries = 176 bytes.
    assert COST.compute_ns(Front(1, BatchShape(1, 10, 10, 1))) == 720 + 176 + 1000
    # 100 rows: 2 * 100 * 360 = 72000 operations, and 4 * 5050 * 8 = 161600 for attention.
    assert COST.compute_ns(Front(1, BatchShape(100, 100, 5050, 1))) == 23360 + 1000


def test_a_window_bounds_what_a_token_reads_and_attends() -> None:
    # At most 3 entries for the one token: (3 + 1) * 16 bytes instead of (10 + 1) * 16.
    assert COST.compute_ns(Front(2, BatchShape(1, 10, 10, 1))) == 720 + 64 + 1000
    # Two first rows see 3 pairs, and not the 6 of two full windows.
    assert COST.loads.attention(2, BatchShape(2, 0, 3, 1)) == (4 * 3 * 8, 2 * 16)
    # 100 rows: 72000 operations and 4 * 300 * 8 = 9600 for attention.
    assert COST.compute_ns(Front(2, BatchShape(100, 100, 5050, 1))) == 8160 + 1000


def test_a_dense_layer_has_its_ffn_instead_of_router_and_shared_experts() -> None:
    # 192 + 3 * 8 * 20 + 16 = 688 weights = 1376 bytes, and 176 bytes of KV.
    assert COST.compute_ns(Dense(0, BatchShape(1, 10, 10, 1))) == 1376 + 176 + 1000


def test_a_tail_reads_the_head_only_where_rows_are_sampled() -> None:
    # Head 800 weights = 1600 bytes; an embedding row 16 bytes.
    assert COST.compute_ns(Tail(BatchShape(4, 10, 10, 1))) == 1600 + 64 + 1000
    assert COST.compute_ns(Tail(BatchShape(4, 10, 10, 0))) == 64 + 1000
    assert COST.compute_ns(Tail(BatchShape(50, 50, 50, 50))) == 8000 + 1000  # 80000 operations


# Block: attention 4 * (16 + 4) = 80, MLP 2 * (4 * 6) + 6 + 4 = 58, output 4 * 4 + 4 = 20, norms 12.
ROUTED = dataclasses.replace(SHAPE, router=DecoupledRouter(hidden=4, heads=2, ffn=6))


def test_a_decoupled_router_runs_over_every_row_in_the_tail() -> None:
    """340 bytes of weights; a row of 4 * 2 bytes; KV 2 * 4 * 2 = 16 bytes an entry."""
    cost = CostModel(HARDWARE, ROUTED)
    batch = BatchShape(4, 10, 12, 1)
    router = 340 + 4 * 8 + (10 + 4) * 16 + 1000
    assert cost.router_ns(batch) == router
    assert cost.compute_ns(Tail(batch)) == 1600 + 64 + 1000 + router
    # 100 rows: 2 * 100 * 170 = 34000 operations, and 4 * 5050 * 4 = 80800 for attention.
    many = BatchShape(100, 100, 5050, 0)
    assert cost.router_ns(many) == 11480 + 1000
    assert cost.compute_ns(Tail(many)) == 1600 + 1000 + 11480 + 1000
    assert COST.router_ns(batch) == 0


def test_layers_before_which_a_router_stands_read_none() -> None:
    """A front is 8 * 4 weights of its router shorter, a dense layer is what it was."""
    cost, batch = CostModel(HARDWARE, ROUTED), BatchShape(1, 10, 10, 1)
    assert COST.compute_ns(Front(1, batch)) - cost.compute_ns(Front(1, batch)) == 64
    assert COST.compute_ns(Dense(0, batch)) == cost.compute_ns(Dense(0, batch))
    assert ROUTED.kv_bytes_per_token == SHAPE.kv_bytes_per_token + 16
    assert ROUTED.fixed_params == SHAPE.fixed_params - 2 * 32 + 100 * 4 + 170


def test_latent_attention_takes_the_cheaper_of_folding_and_expanding() -> None:
    mla = Mla(kv_rank=6, rope_dim=2, nope_dim=3, value_dim=4)
    shape = dataclasses.replace(SHAPE, mla=mla, dense_layers=(), windowed_layers=(), window=None)
    cost = CostModel(dataclasses.replace(HARDWARE, memory_bytes_per_s=4 * 10**15), shape)
    # Query 8 * 10, down 8 * 8, up 6 * 14, output 8 * 8 = 292; router 32, shared 120, norms 16.
    assert shape.front_params == 460
    # Decode: folded 2 * 100 * 2 * 14 = 5600; expanded 2 * 100 * 84 + 2 * 100 * 2 * 9 = 20400.
    assert cost.compute_ns(Front(0, BatchShape(1, 100, 100, 1))) == (5600 + 920) // 10 + 1000
    # Prefill: folded 2 * 5050 * 28 = 282800; expanded 16800 + 2 * 5050 * 18 = 198600.
    assert cost.compute_ns(Front(0, BatchShape(100, 100, 5050, 1))) == (198600 + 92000) // 10 + 1000


def test_a_copy_costs_latency_and_bytes_rounded_up() -> None:
    assert COST.copy_ns("h2d", 0) == 50
    assert COST.copy_ns("h2d", 3000) == 50 + 1000
    assert COST.copy_ns("h2d", 3001) == 50 + 1001
    assert COST.copy_ns("d2h", 3000) == 70 + 1500
    assert CostModel(HARDWARE, SHAPE, pinned=False).copy_ns("h2d", 3000) == 50 + 3000


def test_a_mixtral_expert_over_pcie_3_takes_what_the_figures_say() -> None:
    cost = CostModel(load_hardware("t4"), named_shape("mixtral-8x7b"))
    assert cost.copy_ns("h2d", cost.expert_bytes) == 10_000 + 28_644_028  # 352321536 / 12.3 GB/s
    # Read at 0.8 * 320 GB/s: 1376256 ns.
    assert cost.compute_ns(Experts(0, (1,), (1,))) == 1_376_256 + 20_000


def test_chunks_are_the_links() -> None:
    hardware = load_hardware("t4", {"h2d": {"chunk": "4MiB"}})
    cost = CostModel(hardware, SHAPE)
    assert cost.chunk_bytes("h2d") == 4 * 2**20
    assert cost.chunk_bytes("d2h") is None


@given(st.integers(0, 2**45), st.integers(1, 2**45))
def test_copies_round_up_exactly_and_never_get_cheaper_with_size(size: int, rate: int) -> None:
    link = Link(7, rate, rate)
    cost = CostModel(dataclasses.replace(HARDWARE, h2d=link), SHAPE)
    exact = Fraction(size * 10**9, rate)
    spent = cost.copy_ns("h2d", size) - 7
    assert isinstance(spent, int)
    assert 0 <= spent - exact < 1
    assert cost.copy_ns("h2d", size + 1) - 7 >= spent


@pytest.mark.parametrize("shape", ["mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_asking_twice_or_elsewhere_gives_the_same_price(shape: str) -> None:
    first = CostModel(load_hardware("rtx-4090"), named_shape(shape))
    second = CostModel(load_hardware("rtx-4090"), named_shape(shape))
    batch = BatchShape(7, 900, 2000, 3)
    ops: list[Op] = [Front(1, batch), Experts(1, (0, 1), (3, 4)), Tail(batch), Dense(0, batch)]
    prices = [first.compute_ns(op) for op in ops]
    assert prices == [first.compute_ns(op) for op in ops]
    assert prices[::-1] == [second.compute_ns(op) for op in ops[::-1]]
    assert all(type(price) is int for price in prices)


def test_a_full_memo_starts_afresh_and_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.cost.roofline._MEMO_LIMIT", 2)
    cost = CostModel(HARDWARE, SHAPE)
    for _ in range(2):
        for rows in range(1, 6):
            assert cost.experts_ns((rows,)) == COST.experts_ns((rows,))
    assert len(cost._experts_memo) <= 2
