"""The CPU does the GPU's work at its own rates; each sum can be computed by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_shapes import three_layers

from moesim.cost.cpu import Call, CpuCost, cpu_rates, missing_figures, topology_of
from moesim.cost.roofline import CostModel
from moesim.cost.slowest import slowest_figures
from moesim.errors import UsageError
from moesim.hardware import BatchShape, Dense, Experts, Front, Hardware, Link, Tail, load_hardware
from moesim.hardware.hardware import Disk
from moesim.hardware.ops import Op
from moesim.hardware.topology import CPU, DISK, GPU, HOST, HOST_BANDWIDTH, Topology
from moesim.model.shapes import DecoupledRouter, named_shape

# The CPU reaches 10 operations and 1 byte a nanosecond, the GPU ten times as many.
HARDWARE = Hardware(
    name="by hand",
    vram_bytes=10**9,
    flops_per_s=100 * 10**9,
    memory_bytes_per_s=10 * 10**9,
    compute_efficiency=1.0,
    memory_efficiency=1.0,
    kernel_overhead_ns=1000,
    h2d=Link(50, 3 * 10**9, 10**9),
    d2h=Link(70, 2 * 10**9, 10**9),
    readback_latency_ns=10,
    host_memory_bytes_per_s=4 * 10**9,
    host_memory_efficiency=0.25,
    cpu_flops_per_s=20 * 10**9,
    cpu_efficiency=0.5,
    cpu_overhead_ns=300,
    cpu_cores=4,
    disk=Disk(latency_ns=900, bytes_per_s=10**9, queue_depth=4),
)
# Attention 8 * 4 * 2 * (2 + 1) = 192 weights, router 8 * 4 = 32, shared 3 * 8 * 5 = 120, norms 16.
SHAPE = three_layers()
CPU_COST = CpuCost(HARDWARE, SHAPE)


def changed(**figures: Any) -> CpuCost:
    return CpuCost(dataclasses.replace(HARDWARE, **figures), SHAPE)


def test_a_call_takes_its_overhead_and_the_longer_of_reading_and_computing_each_expert() -> None:
    # An expert has 3 * 8 * 10 = 240 weights, 480 bytes: 480 ns to read, 48 ns of work a row.
    assert CPU_COST.experts((1,)) == Call(300, 480, 480)
    assert CPU_COST.experts((1,)).duration_ns == 780
    assert CPU_COST.experts((10,)) == Call(300, 480, 480)
    assert CPU_COST.experts((20,)) == Call(300, 960, 480)  # 20 rows: compute-bound
    assert CPU_COST.experts((20, 1, 2)) == Call(300, 960 + 480 + 480, 3 * 480)
    assert CPU_COST.experts((0, 1)) == Call(300, 480, 480)  # no rows, nothing to read
    assert CPU_COST.experts(()) == Call(0, 0, 0)
    assert CPU_COST.call(Experts(1, (0, 3), (1, 20))) == CPU_COST.experts((1, 20))


def test_a_mixtral_expert_on_the_cpu_takes_what_the_figures_say() -> None:
    cpu = CpuCost(load_hardware("rtx-4090", {"cpu_overhead": "15us"}), named_shape("mixtral-8x7b"))
    # 352321536 bytes / 60 GB/s; one row takes 2 * 176160768 operations / 700 GFLOPS = 0.5 ms.
    assert cpu.experts((1,)).duration_ns == 15_000 + 5_872_026
    # 12 rows take 6.04 ms of arithmetic: 12 * 352321536 / 700 GFLOPS.
    assert cpu.experts((12,)).duration_ns == 15_000 + 6_039_798


def test_experts_are_read_as_they_are_stored() -> None:
    # 240 weights of 4.5 bits are 135 bytes; the arithmetic stays.
    quantised = CpuCost(HARDWARE, SHAPE.with_bits(expert_bits=4.5))
    assert quantised.experts((1,)) == Call(300, 135, 135)
    assert quantised.experts((5,)) == Call(300, 240, 135)
    # Experts of one call may differ: 480 and 135 bytes, with 1 and 5 rows.
    assert CPU_COST.experts((1, 5), (480, 135)) == Call(300, 480 + 240, 480 + 135)
    assert CPU_COST.experts((1, 5), (480, 480)) == CPU_COST.experts((1, 5))


def test_layers_read_their_weights_and_kv_entries_from_host_memory() -> None:
    # 360 weights = 720 bytes; KV 2 * 1 * 4 * 2 = 16 bytes an entry, (10 + 1) entries = 176 bytes.
    one = BatchShape(1, 10, 10, 1)
    assert CPU_COST.call(Front(1, one)) == Call(300, 720 + 176, 720 + 176)
    # Layer 2 has a window of 3: (3 + 1) * 16 bytes.
    assert CPU_COST.call(Front(2, one)) == Call(300, 720 + 64, 720 + 64)
    # 192 + 3 * 8 * 20 + 16 = 688 weights = 1376 bytes.
    assert CPU_COST.call(Dense(0, one)) == Call(300, 1376 + 176, 1376 + 176)
    # 100 rows: 2 * 100 * 360 = 72000 operations, and 4 * 5050 * 8 = 161600 for attention.
    many = CPU_COST.call(Front(1, BatchShape(100, 100, 5050, 1)))
    assert many == Call(300, 23360, 720 + 200 * 16)


def test_the_end_of_a_step_reads_the_head_and_a_decoupled_router_is_a_call_of_its_own() -> None:
    batch = BatchShape(4, 10, 12, 1)
    # Head 800 weights = 1600 bytes; an embedding row 16 bytes.
    assert CPU_COST.call(Tail(batch)) == Call(300, 1600 + 64, 1600 + 64)
    shape = dataclasses.replace(SHAPE, router=DecoupledRouter(hidden=4, heads=2, ffn=6))
    # 170 weights = 340 bytes, rows of 4 * 2 bytes, and 2 * 4 * 2 bytes of KV an entry.
    router = 340 + 4 * 8 + (10 + 4) * 16
    call = CpuCost(HARDWARE, shape).call(Tail(batch))
    assert call == Call(2 * 300, 1664 + router, 1664 + router)


def test_threads_take_their_share_of_the_operations() -> None:
    assert changed(cpu_threads=2).experts((20,)) == Call(300, 1920, 480)
    assert changed(cpu_threads=2).experts((1,)) == Call(300, 480, 480)
    assert changed(cpu_threads=4).experts((20,)) == CPU_COST.experts((20,))


def test_threads_read_what_a_core_reads_each_and_at_most_the_whole_bandwidth() -> None:
    core = {"core_memory_bytes_per_s": 3 * 10**8}
    assert changed(**core, cpu_threads=1).experts((1,)).moving_ns == 1600  # 0.3 bytes a ns
    assert changed(**core, cpu_threads=2).experts((1,)).moving_ns == 800
    assert changed(**core).experts((1,)).moving_ns == 480  # 4 cores: 1.2, host memory gives 1
    assert changed(core_memory_bytes_per_s=10**8).experts((1,)).moving_ns == 1200  # all 4 cores
    # Without the number of cores, what one core reads bounds nothing.
    assert changed(**core, cpu_cores=None).experts((1,)).moving_ns == 480


def test_absent_figures_stand_for_what_is_reached_and_no_overhead() -> None:
    plain = Hardware(
        **{
            field.name: getattr(HARDWARE, field.name)
            for field in dataclasses.fields(Hardware)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        },
        host_memory_bytes_per_s=10**9,
        cpu_flops_per_s=10**10,
    )
    assert cpu_rates(plain) == cpu_rates(HARDWARE)
    assert CpuCost(plain, SHAPE).experts((1,)) == Call(0, 480, 480)


RATES = st.integers(1, 10**12)
BATCHES = st.builds(
    BatchShape, *[st.integers(0, 3000)] * 2, st.integers(0, 10**6), st.integers(0, 9)
)
OPS = st.one_of(
    st.builds(lambda t: Experts(1, tuple(range(len(t))), t), st.tuples(*[st.integers(0, 99)] * 3)),
    st.builds(Front, st.integers(1, 2), BATCHES),
    st.builds(Dense, st.just(0), BATCHES),
    st.builds(Tail, BATCHES),
)


@given(OPS, RATES, RATES, st.integers(1, 8), RATES)
def test_more_of_a_rate_never_takes_longer(
    op: Op, flops: int, nbytes: int, threads: int, core: int
) -> None:
    figures = {
        "cpu_flops_per_s": flops,
        "host_memory_bytes_per_s": nbytes,
        "core_memory_bytes_per_s": core,
        "cpu_threads": threads,
        "cpu_cores": 16,
    }
    duration_ns = changed(**figures).call(op).duration_ns
    for key in figures.keys() - {"cpu_cores"}:
        faster = changed(**{**figures, key: 2 * figures[key]}).call(op)
        assert faster.duration_ns <= duration_ns, key


@given(OPS)
def test_a_cpu_with_the_rates_of_the_gpu_takes_as_long(op: Op) -> None:
    """The oracle is the GPU's cost model, whose sums are checked by hand elsewhere."""
    gpu = CostModel(HARDWARE, SHAPE)
    cpu = changed(
        cpu_flops_per_s=100 * 10**9,
        cpu_efficiency=1.0,
        host_memory_bytes_per_s=10 * 10**9,
        host_memory_efficiency=1.0,
        cpu_overhead_ns=1000,
    )
    assert cpu.call(op).duration_ns == gpu.compute_ns(op)


# --- topology -------------------------------------------------------------------------------------


def test_a_machine_without_cpu_lane_and_disk_is_one_gpu_that_shares_nothing() -> None:
    bare = dataclasses.replace(HARDWARE, host_memory_bytes_per_s=None, cpu_flops_per_s=None)
    assert topology_of(bare, cpu=False, disk=False) == Topology.single_gpu()


def test_lanes_share_the_bandwidth_at_which_host_memory_is_read() -> None:
    topology = topology_of(HARDWARE, cpu=True, disk=True)
    assert topology.names == ("gpu", "cpu", "h2d", "d2h", "disk")
    assert topology.resources == {HOST_BANDWIDTH: 10**9}
    assert [lane.name for lane in topology.lanes if lane.computes] == [GPU, CPU]
    assert topology.memory_of(CPU) == HOST
    assert topology.route(DISK, HOST) == DISK
    assert topology.memory_of(GPU) == GPU
    assert topology_of(HARDWARE, cpu=True, disk=False).names == ("gpu", "cpu", "h2d", "d2h")
    assert topology_of(HARDWARE, cpu=False, disk=True).names == ("gpu", "h2d", "d2h", "disk")


@pytest.mark.parametrize(
    ("absent", "cpu", "disk", "missing"),
    [
        (("cpu_flops_per_s",), True, False, ("cpu_flops",)),
        (("cpu_flops_per_s",), False, True, ()),
        (("host_memory_bytes_per_s",), False, True, ("host_memory_bandwidth",)),
        (("disk",), True, False, ()),
        (
            ("disk", "cpu_flops_per_s", "host_memory_bytes_per_s"),
            True,
            True,
            ("host_memory_bandwidth", "cpu_flops", "disk"),
        ),
    ],
)
def test_lanes_need_the_figures_of_what_they_stand_for(
    absent: tuple[str, ...], cpu: bool, disk: bool, missing: tuple[str, ...]
) -> None:
    unknown: dict[str, Any] = dict.fromkeys(absent)
    hardware = dataclasses.replace(HARDWARE, **unknown)
    assert missing_figures(hardware, cpu=cpu, disk=disk) == missing
    if not missing:
        topology_of(hardware, cpu=cpu, disk=disk)
        return
    with pytest.raises(UsageError, match=f"by hand lacks {' and '.join(missing)}; give"):
        topology_of(hardware, cpu=cpu, disk=disk)


def test_a_cpu_cost_needs_the_figures_of_the_cpu() -> None:
    with pytest.raises(UsageError, match="lacks cpu_flops"):
        changed(cpu_flops_per_s=None)


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lanes", "slowest"),
    [
        (
            {"cpu_flops_per_s": 2},
            (CPU,),
            ["hardware.cpu_flops is 1 FLOPS, with efficiency and threads, so one expert takes "
             "480 s"],
        ),
        (
            {"host_memory_bytes_per_s": 16},
            (CPU,),
            ["hardware.host_memory_bandwidth is 4 B/s, with efficiency and threads, so one expert "
             "takes 120 s"],
        ),
        ({"cpu_overhead_ns": 10**11}, (CPU,), ["hardware.cpu_overhead is 100 s"]),
        (
            {"disk": Disk(30 * 10**9, 4)},
            (DISK,),
            [
                "hardware.disk.bandwidth is 4 B/s, so one expert takes 120 s",
                "hardware.disk.latency is 30 s",
            ],
        ),
        ({"cpu_flops_per_s": 2, "disk": Disk(1, 4)}, (), ["hardware.kernel_overhead is 1 us"]),
    ],
)  # fmt: skip
def test_the_slowest_figures_are_those_of_the_lanes(
    change: dict[str, Any], lanes: tuple[str, ...], slowest: list[str]
) -> None:
    cost = CostModel(dataclasses.replace(HARDWARE, **change), SHAPE)
    assert [text for _, text in slowest_figures(cost, lanes)][: len(slowest)] == slowest
