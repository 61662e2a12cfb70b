"""Durations under an engine: kernel by kernel, each a sum that a person can compute by hand."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_lanes import QUIET
from tiny_shapes import three_layers

from moesim.cost.choice import cost_of, cpu_cost_of
from moesim.cost.cpu import Call
from moesim.cost.engine import EngineCost, EngineCpuCost, KernelTimes, Peaks
from moesim.cost.estimate import CostEstimate
from moesim.cost.parts import Part, family_of
from moesim.cost.prices import SimPrices
from moesim.cost.roofline import CostModel
from moesim.cost.slowest import slowest_figures
from moesim.engines.engine import IDEAL, Engine, Kernels, load_engine
from moesim.engines.profile_schema import FAMILIES, KV
from moesim.errors import UsageError
from moesim.hardware import BatchShape, Dense, Experts, Front, Hardware, Link, Tail, load_hardware
from moesim.hardware.ops import Copy, States
from moesim.hardware.topology import CPU, GPU, H2D, Topology
from moesim.model.formats import block_named, block_names
from moesim.model.layers import LayerKind, Mla
from moesim.model.shapes import DecoupledRouter, named_shape

# Peaks of the GPU: 10 operations and 2 bytes a nanosecond; of the CPU: 20 and 1.
HARDWARE = Hardware(
    name="by hand",
    vram_bytes=10**9,
    flops_per_s=10 * 10**9,
    memory_bytes_per_s=2 * 10**9,
    compute_efficiency=0.01,
    memory_efficiency=0.01,
    kernel_overhead_ns=10**6,
    h2d=Link(latency_ns=50, pinned_bytes_per_s=3 * 10**9, pageable_bytes_per_s=10**9),
    d2h=Link(latency_ns=70, pinned_bytes_per_s=2 * 10**9, pageable_bytes_per_s=10**9),
    readback_latency_ns=10,
    host_memory_bytes_per_s=2 * 10**9,
    host_memory_efficiency=0.5,
    cpu_flops_per_s=20 * 10**9,
    cpu_efficiency=0.01,
    cpu_overhead_ns=10**6,
    cpu_cores=4,
)
# Attention 8 * 4 * 2 * (2 + 1) = 192 weights, router 8 * 4 = 32, shared 3 * 8 * 5 = 120, norms 16,
# dense FFN 3 * 8 * 20 = 480, an expert 3 * 8 * 10 = 240. Two bytes each.
SHAPE = three_layers()
NUMBERS = {
    "attention": 10,
    "router": 3,
    "experts": 5,
    "each_expert": 2,
    "shared": 4,
    "dense": 6,
    "tail": 7,
}
GPU_KERNELS = Kernels(
    kernel_ns=100,
    numbers=MappingProxyType(NUMBERS),
    bandwidth=MappingProxyType({"float": 0.5, "kv": 0.25, "other": 0.5}),
    compute=MappingProxyType({"kv": 0.1, "other": 0.5}),
    padding=6,
    vector_rows=4,
    vector_row=0.5,
)
CPU_KERNELS = dataclasses.replace(
    GPU_KERNELS,
    kernel_ns=1000,
    bandwidth=MappingProxyType({"other": 0.5}),
    compute=MappingProxyType({"other": 0.25}),
    padding=0,
    vector_rows=1,
    vector_row=0,
)
ENGINE = Engine(
    "by hand",
    step_ns=33,
    switch_ns=17,
    gpu=MappingProxyType({"cuda": GPU_KERNELS}),
    cpu=CPU_KERNELS,
)
COST = EngineCost(HARDWARE, SHAPE, ENGINE)
CPU_COST = EngineCpuCost(HARDWARE, SHAPE, CPU_KERNELS, ENGINE)
ONE = BatchShape(1, 10, 10, 1)
"""One row that sees 10 entries of the KV cache, and is sampled."""


def test_a_front_takes_its_kernels_one_after_another_without_overlap() -> None:
    # Attention, router and shared: 17 kernels. 240 weights of the front and 120 shared ones at
    # 1 byte/ns; (10 + 1) KV entries of 16 bytes at 0.5 bytes/ns, whatever the weights take.
    assert COST.compute_ns(Front(1, ONE)) == 17 * 100 + 480 + 240 + 352
    # In a window of 3, 4 entries.
    assert COST.compute_ns(Front(2, ONE)) == 17 * 100 + 480 + 240 + 128


def test_few_rows_are_vectors_and_many_rows_are_padded_tiles() -> None:
    four = BatchShape(4, 4, 10, 1)
    # Three more rows of half the traffic each; 4 * 10 * 8 operations of attention take longer than
    # its 8 entries of 16 bytes.
    assert COST.compute_ns(Front(1, four)) == 1700 + 2.5 * (480 + 240) + 320
    # 94 + 6 rows of 2 operations a weight at 5 a nanosecond; 4 * 5000 * 8 operations of attention
    # at 1 a nanosecond.
    many = BatchShape(94, 94, 5000, 1)
    assert COST.compute_ns(Front(1, many)) == 1700 + 200 * (240 + 120) / 5 + 160_000


def test_a_dense_layer_has_its_ffn_in_place_of_router_and_experts() -> None:
    # 208 weights of attention and norms, 480 of the FFN; 16 kernels.
    assert COST.compute_ns(Dense(0, ONE)) == 16 * 100 + 416 + 960 + 352


def test_each_kind_of_mixer_has_kernels_of_its_own() -> None:
    """Layers with attention, latent attention, a state, and routed experts alone."""
    numbers = {**NUMBERS, "latent": 20, "linear": 30, "norm": 2}

    def fixed_ns(numbers: dict[str, int]) -> list[int]:
        kernels = dataclasses.replace(GPU_KERNELS, numbers=MappingProxyType(numbers))
        engine = dataclasses.replace(ENGINE, gpu={"cuda": kernels})
        cost = EngineCost(HARDWARE, shape, engine)
        parts = [cost.parts.layer(layer, ONE) for layer in range(4)]
        moving_ns = [sum(map(cost.times.moving_ns, each)) for each in parts]
        found = [cost.front_ns(layer, ONE) for layer in range(4)]
        return [each - moving for each, moving in zip(found, moving_ns, strict=True)]

    shape = dataclasses.replace(
        SHAPE, num_layers=4, dense_layers=(), dense_ffn=0, windowed_layers=(), window=None,
        kinds=(
            LayerKind(100, heads=2, key_dim=4, value_dim=4, kv_numbers=8),
            LayerKind(100, heads=2, key_dim=4, value_dim=4, kv_numbers=4, mla=Mla(3, 1, 3, 4)),
            LayerKind(100, state_bytes=64, state_flops=32),
            LayerKind(100),
        ),
        layer_kinds=(0, 1, 2, 3),
    )  # fmt: skip
    rest = 3 + 4  # router and shared experts
    assert fixed_ns(numbers) == [100 * (number + rest) for number in (10, 20, 30, 2)]
    # Where a profile does not tell them apart, attention's stand for them.
    assert fixed_ns({**NUMBERS, "norm": 2}) == [100 * (number + rest) for number in (10, 10, 10, 2)]


def test_experts_take_one_call_and_in_large_steps_kernels_of_their_own() -> None:
    assert COST.call_ns == 500
    assert COST.compute_ns(Experts(1, (0, 3), (1, 1))) == 500 + 2 * 480
    # 8 rows for 2 experts a token: a step of 4. The second expert's row 2 and 3 take half each.
    assert COST.compute_ns(Experts(1, (0, 1, 2), (1, 3, 4))) == 500 + 480 * (1 + 2 + 2.5)
    # A step of 7 rows: padded, 2 kernels more an expert; 2 * 240 * (10 + 6) / 5 = 1536.
    assert COST.compute_ns(Experts(1, (0, 1), (10, 4))) == 500 + 2 * 200 + 1536 + 960
    assert COST.compute_ns(Experts(1, (), ())) == 0
    # Stored sizes of the experts, where they differ.
    assert COST.experts_ns((1, 1), (100, 300)) == 500 + 100 + 300


def test_the_tail_reads_the_head_once_and_takes_the_hosts_time_of_a_step() -> None:
    # A row of 16 bytes and the head of 1600.
    assert COST.compute_ns(Tail(ONE)) == 7 * 100 + 1616 + 33
    assert COST.compute_ns(Tail(BatchShape(3, 0, 6, 0))) == 7 * 100 + 48 + 33


def test_a_decoupled_router_adds_kernels_of_attention_to_the_tail() -> None:
    routed = dataclasses.replace(SHAPE, router=DecoupledRouter(hidden=4, heads=1, ffn=8))
    cost = EngineCost(HARDWARE, routed, ENGINE)
    load = cost.loads.router(ONE)
    assert load is not None
    assert cost.tail_ns(ONE) == COST.tail_ns(ONE) + 10 * 100 + load.nbytes
    on_cpu = EngineCpuCost(HARDWARE, routed, CPU_KERNELS, ENGINE)
    fixed_ns = on_cpu.call(Tail(ONE)).fixed_ns
    assert fixed_ns == CPU_COST.call(Tail(ONE)).fixed_ns + 10 * 1000


def test_quantised_weights_are_multiplied_at_the_peak_of_integers() -> None:
    times = KernelTimes(GPU_KERNELS, Peaks(10e9, 40e9, 2e9))
    rows = 94

    def of(family: str) -> int:
        return times.moving_ns(Part("", family, rows, 2 * rows * 1000, 0, rows))

    assert of("float") == 2 * 100 * 1000 / 5
    assert of("k-quant") == of("8-bit") == 2 * 100 * 1000 / 20
    # Attention computes on floats, at its own share, and has no tiles to fill.
    assert of(KV) == 2 * 94 * 1000 / 1


@pytest.mark.parametrize(
    ("bits", "family"),
    [(32, "float"), (16, "float"), (8.5, "8-bit"), (8, "8-bit"), (4.85, "k-quant"), (2, "k-quant")],
)
def test_bits_name_a_family_of_formats(bits: float, family: str) -> None:
    assert family_of(bits) == family


def test_the_format_of_a_model_says_the_family_where_it_is_known() -> None:
    shares = MappingProxyType({"i-quant": 0.125, "mxfp4": 0.25, "kv": 0.25, "other": 0.5})
    engine = dataclasses.replace(
        ENGINE, gpu={"cuda": dataclasses.replace(GPU_KERNELS, bandwidth=shares)}
    )

    def expert_ns(**stored: Any) -> int:
        shape = dataclasses.replace(SHAPE, expert_bits=4, **stored)
        return EngineCost(HARDWARE, shape, engine).experts_ns((1,)) - 500

    assert expert_ns() == 120 / (2 * 0.5)
    assert expert_ns(expert_family="i-quant") == 120 / (2 * 0.125)
    assert expert_ns(expert_family="mxfp4") == 120 / (2 * 0.25)
    weights = dataclasses.replace(SHAPE, weight_family="i-quant")
    # Shared experts are weights of a layer too; KV entries have a share of their own.
    cost = EngineCost(HARDWARE, weights, engine)
    assert cost.front_ns(1, ONE) == 1700 + 720 / (2 * 0.125) + 352
    # The head is a part of its own only where it has bits of its own.
    assert cost.tail_ns(ONE) == 733 + 1616 / (2 * 0.125)
    head = dataclasses.replace(weights, head_bits=16)
    assert EngineCost(HARDWARE, head, engine).tail_ns(ONE) == 733 + 1616 / (2 * 0.5)


def test_profiles_have_the_families_of_all_formats() -> None:
    assert set(FAMILIES) == {block_named(name).family for name in block_names()}


def test_the_cpu_runs_the_same_parts_with_kernels_of_its_own() -> None:
    # 0.5 bytes/ns (half of 1), 5 operations/ns (a quarter of 20).
    assert CPU_COST.call(Front(1, ONE)) == Call(17_000, 960 + 480 + 352, 720 + 176)
    assert CPU_COST.call(Dense(0, ONE)) == Call(16_000, 832 + 1920 + 352, 1376 + 176)
    assert CPU_COST.call(Experts(1, (0, 1), (1, 1))) == Call(5_000, 2 * 960, 960)
    # 20 rows in all, a step of 10: 2 kernels more an expert, no padding; 480 operations a row.
    assert CPU_COST.experts((18, 2)) == Call(9_000, 1728 + 960, 960)
    assert CPU_COST.experts((1,), (100,)) == Call(5_000, 200, 100)
    assert CPU_COST.experts(()) == Call(0, 0, 0)
    assert CPU_COST.call(Tail(ONE)) == Call(7_033, 2 * 1616, 1616)
    assert CPU_COST.call_ns == 5_000


def test_fewer_threads_compute_and_read_less() -> None:
    def cost(**figures: Any) -> EngineCpuCost:
        return EngineCpuCost(dataclasses.replace(HARDWARE, **figures), SHAPE, CPU_KERNELS, ENGINE)

    # One thread of four: 1.25 operations/ns; memory is as fast, unless a core reads less.
    assert cost(cpu_threads=1).experts((18,)).moving_ns == 480 * 18 / 1.25
    assert cost(cpu_threads=1).experts((1,)).moving_ns == 960
    slow = cost(cpu_threads=2, core_memory_bytes_per_s=200_000_000)
    assert slow.experts((1,)).moving_ns == 480 / (0.4 * 0.5)
    # All four together read no more than the links between dies carry.
    linked = cost(cpu_memory_bytes_per_s=250_000_000)
    assert linked.experts((1,)).moving_ns == 480 / (0.25 * 0.5)


def test_each_thread_adds_to_the_time_of_a_kernel_on_the_cpu() -> None:
    kernels = dataclasses.replace(CPU_KERNELS, thread_ns=30)

    def fixed_ns(kernels: Kernels, **figures: Any) -> int:
        hardware = dataclasses.replace(HARDWARE, **figures)
        cost = EngineCpuCost(hardware, SHAPE, kernels, ENGINE)
        assert cost.call_ns == cost.experts((1,)).fixed_ns
        return cost.call_ns

    assert fixed_ns(kernels) == 5 * (1000 + 4 * 30)
    assert fixed_ns(kernels, cpu_threads=2) == 5 * (1000 + 2 * 30)
    assert fixed_ns(CPU_KERNELS) == 5 * 1000
    # A GPU has no threads of this kind.
    on_gpu = dataclasses.replace(ENGINE, gpu={"cuda": dataclasses.replace(kernels, thread_ns=30)})
    assert EngineCost(HARDWARE, SHAPE, on_gpu).call_ns == 5 * 1000


def test_several_sockets_are_read_at_the_engines_share() -> None:
    def moving_ns(sockets: int, share: float) -> int:
        hardware = dataclasses.replace(HARDWARE, cpu_sockets=sockets)
        kernels = dataclasses.replace(CPU_KERNELS, sockets=share)
        return EngineCpuCost(hardware, SHAPE, kernels, ENGINE).experts((1,)).moving_ns

    assert moving_ns(1, 0.5) == moving_ns(2, 1) == 960
    assert moving_ns(2, 0.5) == 2 * 960


def test_an_engine_without_kernels_there_is_ideal_there() -> None:
    host_only = Engine("host only", step_ns=33, switch_ns=17)
    cost, ideal = cost_of(HARDWARE, SHAPE, engine=host_only), cost_of(HARDWARE, SHAPE)
    assert type(cost) is CostModel
    assert cost.front_ns(1, ONE) == ideal.front_ns(1, ONE)
    assert cost.tail_ns(ONE) == ideal.tail_ns(ONE) + 33
    assert cost.pageable().tail_ns(ONE) == cost.tail_ns(ONE)
    assert cost.states_ns(H2D, 3000) == ideal.states_ns(H2D, 3000) + 17
    cpu, ideal_cpu = cpu_cost_of(cost), cpu_cost_of(ideal)
    tail, ideal_tail = cpu.call(Tail(ONE)), ideal_cpu.call(Tail(ONE))
    assert tail == ideal_tail._replace(fixed_ns=ideal_tail.fixed_ns + 33)
    # An engine with kernels on the CPU alone still has them.
    on_cpu = Engine("on the CPU", step_ns=33, cpu=CPU_KERNELS)
    chosen = cpu_cost_of(cost_of(HARDWARE, SHAPE, engine=on_cpu))
    assert chosen.experts((18, 2)) == CPU_COST.experts((18, 2))
    assert chosen.call(Tail(ONE)) == CPU_COST.call(Tail(ONE))


def test_the_costs_on_both_processors_are_those_of_one_engine() -> None:
    cost = cost_of(HARDWARE, SHAPE, engine=ENGINE, interface="cuda")
    assert cost.compute_ns(Front(1, ONE)) == COST.compute_ns(Front(1, ONE))
    assert cpu_cost_of(cost).experts((18, 2)) == CPU_COST.experts((18, 2))
    pageable = cost.pageable()
    assert pageable.compute_ns(Front(1, ONE)) == COST.compute_ns(Front(1, ONE))
    assert pageable.copy_ns(H2D, 3000) == 50 + 3000
    with pytest.raises(
        UsageError, match="the engine by hand has no figures for vulkan; it has cud"
    ):
        cost_of(HARDWARE, SHAPE, engine=ENGINE, interface="vulkan")
    with pytest.raises(UsageError, match="the engine ideal has no figures of kernels on a GPU"):
        EngineCost(HARDWARE, SHAPE, IDEAL)


def test_states_take_a_switch_that_no_free_link_saves() -> None:
    op = States(0, 1, 3000)
    topology = Topology.single_gpu()
    (price,) = SimPrices(COST, topology=topology).pieces(H2D, op)
    assert price.fixed_ns == 50 + 1000 + 17
    (free,) = SimPrices(COST, free_link=True, topology=topology).pieces(H2D, op)
    assert free.fixed_ns == 17


@pytest.mark.parametrize("rows", [1, 4, 5, 50])
def test_estimates_of_placements_are_the_prices_of_work_alone(rows: int) -> None:
    cpu = cpu_cost_of(COST)
    estimate = CostEstimate(COST, cpu)
    prices = SimPrices(COST)
    (computed,) = prices.pieces(GPU, Experts(1, (3,), (rows,)))
    assert estimate.gpu_ns(3, rows) == computed.fixed_ns
    assert estimate.cpu_ns(3, rows) == cpu.call(Experts(1, (3,), (rows,))).duration_ns
    copied = prices.pieces(H2D, Copy(3, COST.expert_bytes))
    assert estimate.copy_ns(3) == sum(piece.fixed_ns for piece in copied)
    # `two_queue` adds experts up: each without the fixed time of its call.
    assert (estimate.gpu_call_ns, estimate.cpu_call_ns) == (500, 5_000)
    if rows in (1, 50):  # alone and together, these steps have the same kernels
        both, alone = cpu.experts((rows, rows)), cpu.experts((rows,))
        pair_ns = both.duration_ns - estimate.cpu_call_ns
        assert pair_ns == 2 * (alone.duration_ns - estimate.cpu_call_ns)


@pytest.mark.parametrize(
    ("engine", "key", "text"),
    [
        ({"step_ns": 10**17}, "engine", "host.step of the engine by hand is 100000000 s"),
        ({"switch_ns": 10**17}, "engine", "switch of the engine by hand is 100000000 s"),
    ],
)
def test_the_slowest_figures_name_those_of_the_engine(
    engine: dict[str, Any], key: str, text: str
) -> None:
    cost = EngineCost(HARDWARE, SHAPE, dataclasses.replace(ENGINE, **engine))
    assert slowest_figures(cost, (GPU, CPU, H2D)) == [(key, text)]


def test_the_slowest_figures_leave_out_what_the_engine_does_not_read() -> None:
    # Only the ideal engine reads kernel_overhead and the efficiencies.
    texts = dict(slowest_figures(COST, (GPU, CPU, H2D)))
    assert not {"hardware.kernel_overhead", "hardware.cpu_overhead"} & texts.keys()
    assert "cpu.kernel of the engine by hand is 1 us" in texts["engine"]
    slow = EngineCost(dataclasses.replace(HARDWARE, flops_per_s=4), SHAPE, ENGINE)
    ((key, text),) = slowest_figures(slow)
    assert key == "hardware.flops"
    assert text == (
        "hardware.flops is 4 FLOPS, with the share that by hand reaches, so one expert takes 240 s"
    )
    # Quantised experts are multiplied as integers.
    quantised = dataclasses.replace(SHAPE, expert_bits=4)
    integers = dataclasses.replace(HARDWARE, int8_ops_per_s=4)
    ((key, text),) = slowest_figures(EngineCost(integers, quantised, ENGINE))
    assert key == "hardware.int8_ops"
    assert text.startswith("hardware.int8_ops is 4 operations/s, with the share that by hand ")
    host = EngineCost(dataclasses.replace(HARDWARE, cpu_flops_per_s=8), SHAPE, ENGINE)
    ((key, text),) = slowest_figures(host, (GPU, CPU))
    assert key == "hardware.cpu_flops"
    assert text.endswith("so one expert takes 240 s")
    on_cpu = dataclasses.replace(HARDWARE, cpu_int8_ops_per_s=4)
    ((key, text),) = slowest_figures(EngineCost(on_cpu, quantised, ENGINE), (GPU, CPU))
    assert key == "hardware.cpu_int8_ops"
    # Threads count as often as a kernel waits for them.
    kernels = dataclasses.replace(CPU_KERNELS, kernel_ns=1000, thread_ns=10**17)
    waiting = EngineCost(HARDWARE, SHAPE, dataclasses.replace(ENGINE, cpu=kernels))
    ((key, text),) = slowest_figures(waiting, (GPU, CPU))
    assert (key, text) == ("engine", "cpu.thread of the engine by hand is 100000000 s")
    launched = ENGINE.with_times(launch_ns=10**17)
    ((key, _),) = slowest_figures(EngineCost(HARDWARE, SHAPE, launched))
    assert key == "engine.launch"


LARGE = cost_of(load_hardware("rtx-4090"), named_shape("mixtral-8x7b"), engine=load_engine(QUIET))
LARGE_CPU = cpu_cost_of(LARGE)
FEW = load_engine(QUIET).gpu["cuda"].vector_rows


@given(st.integers(0, 4000), st.integers(0, 10**6), st.integers(1, 400), st.integers(0, 10**5))
def test_more_rows_and_more_entries_never_take_less_time(
    tokens: int, entries: int, more: int, more_entries: int
) -> None:
    """Among steps of few rows, and among steps of many rows; each has kernels of its own."""
    small = BatchShape(1 + tokens % FEW, entries, entries, 1)
    for less in (small, BatchShape(FEW + 1 + tokens, entries, entries, 1)):
        rows = less.tokens + more
        if less is small:
            rows = min(FEW, rows)
        many = BatchShape(rows, entries + more_entries, entries + more_entries, 1)
        for cost in (LARGE.layers_ns, lambda batch: [LARGE.tail_ns(batch)]):
            assert all(a <= b for a, b in zip(cost(less), cost(many), strict=True))
        front = [LARGE_CPU.call(Front(1, batch)).duration_ns for batch in (less, many)]
        assert front[0] <= front[1]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 99))
def test_more_rows_and_more_bytes_of_an_expert_never_take_less_time(
    tokens: list[int], place: int, more: int
) -> None:
    tokens = [*tokens, 3 * FEW]  # a step of many rows
    place %= len(tokens)
    larger = (*tokens[:place], tokens[place] + more, *tokens[place + 1 :])
    sizes = tuple(10**6 + count for count in tokens)
    wider = (*sizes[:place], sizes[place] + more * 10**5, *sizes[place + 1 :])
    assert LARGE.experts_ns(tuple(tokens)) <= LARGE.experts_ns(larger)
    assert LARGE.experts_ns(tuple(tokens), sizes) <= LARGE.experts_ns(tuple(tokens), wider)
    on_cpu = [LARGE_CPU.experts(each).duration_ns for each in (tuple(tokens), larger)]
    assert on_cpu[0] <= on_cpu[1]


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_the_price_of_all_layers_is_that_of_each_under_an_engine(name: str) -> None:
    shape = named_shape(name)
    cost = cost_of(load_hardware("rtx-4090"), shape, engine=load_engine(QUIET))
    batch = BatchShape(3, 5000, 5000, 2)
    dense = set(shape.dense_layers)
    assert cost.layers_ns(batch) == [
        cost.compute_ns(Dense(layer, batch) if layer in dense else Front(layer, batch))
        for layer in range(shape.num_layers)
    ]
