"""In unified memory nothing is copied, and the GPU shares the bandwidth with the CPU."""

from __future__ import annotations

import dataclasses

import pytest
import simpy

from moesim.cost.cpu import CpuCost, cpu_rates, topology_of
from moesim.cost.estimate import CostEstimate
from moesim.cost.prices import SimPrices
from moesim.cost.roofline import CostModel
from moesim.hardware import BatchShape, Dense, Experts, Front, Hardware, Link, Tail
from moesim.hardware.ops import Copy, Op, Readback, States
from moesim.hardware.topology import CPU, D2H, GPU, H2D, HOST_BANDWIDTH, Topology
from moesim.machine.events import EventMachine
from moesim.machine.protocol import Wait
from moesim.machine.sim import SimMachine
from moesim.machine.work import Cost, Work
from moesim.model.shapes import ModelShape

# The GPU and the CPU each read up to 10 bytes a nanosecond of the one memory.
UNIFIED = Hardware(
    name="one memory",
    vram_bytes=10**9,
    flops_per_s=100 * 10**12,
    memory_bytes_per_s=10 * 10**9,
    compute_efficiency=1.0,
    memory_efficiency=1.0,
    kernel_overhead_ns=1000,
    h2d=Link(50, 3 * 10**9, 10**9, chunk_bytes=100),
    d2h=Link(70, 2 * 10**9, 10**9),
    readback_latency_ns=10,
    host_memory_bytes_per_s=10 * 10**9,
    cpu_flops_per_s=100 * 10**12,
    unified=True,
)
APART = dataclasses.replace(UNIFIED, unified=False)
# An expert has 3 * 80 * 100 = 24,000 weights, 48,000 bytes: 4,800 ns.
SHAPE = ModelShape(
    name="small",
    num_layers=3,
    hidden=80,
    expert_ffn=100,
    num_experts=4,
    top_k=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=40,
    vocabulary=1000,
    dense_layers=(0,),
    dense_ffn=200,
)
BATCH = BatchShape(7, 90, 200, 3)
COMPUTATIONS: list[Op] = [
    Experts(1, (0, 2), (3, 30)),
    Front(1, BATCH),
    Dense(0, BATCH),
    Tail(BATCH),
]


def shared(hardware: Hardware) -> SimPrices:
    return SimPrices(
        CostModel(hardware, SHAPE), topology=topology_of(hardware, cpu=True, disk=False)
    )


@pytest.mark.parametrize("op", COMPUTATIONS, ids=lambda op: type(op).__name__)
def test_work_on_the_gpu_moves_its_bytes_and_takes_alone_as_long_as_before(op: Op) -> None:
    cost = CostModel(UNIFIED, SHAPE)
    (piece,) = shared(UNIFIED).pieces(GPU, op)
    assert piece.uses == ((HOST_BANDWIDTH, cost.loads.nbytes(op)),)
    assert piece.nbytes > 0
    assert piece.rate <= 10 * 10**9
    assert piece.alone_ns == cost.compute_ns(op)
    (apart,) = shared(APART).pieces(GPU, op)
    assert apart == Cost(cost.compute_ns(op))


def test_a_layer_s_bytes_are_its_own() -> None:
    cost = CostModel(UNIFIED, SHAPE)
    assert cost.loads.nbytes(Experts(1, (0, 2), (3, 30))) == 2 * 48_000
    assert cost.loads.nbytes(Experts(1, (0, 2), (3, 30)), (100, 50)) == 150
    assert cost.loads.nbytes(Experts(1, (0, 2), (0, 30))) == 48_000


def test_without_a_cpu_lane_nothing_is_shared() -> None:
    prices = SimPrices(CostModel(UNIFIED, SHAPE), topology=Topology.single_gpu())
    op = Experts(1, (0, 2), (3, 30))
    assert prices.pieces(GPU, op) == (Cost(CostModel(UNIFIED, SHAPE).compute_ns(op)),)


@pytest.mark.parametrize("lane", [H2D, D2H])
def test_copies_between_host_and_gpu_take_no_time(lane: str) -> None:
    prices = shared(UNIFIED)
    assert sum(piece.alone_ns for piece in prices.pieces(lane, Copy(0, 48_000))) == 0
    assert sum(piece.alone_ns for piece in prices.pieces(lane, States(1, 2, 320))) == 0
    assert not any(piece.uses for piece in prices.pieces(lane, Copy(0, 48_000)))
    cost = CostModel(UNIFIED, SHAPE)
    assert CostEstimate(cost, CpuCost(UNIFIED, SHAPE)).copy_ns(0) == 0
    # The host still waits for the router's ids.
    assert prices.pieces(D2H, Readback(8)) == (Cost(10),)


@pytest.mark.parametrize("machine", [SimMachine, EventMachine])
def test_the_gpu_and_the_cpu_halve_each_other_s_rate(machine: type[SimMachine]) -> None:
    env = simpy.Environment()
    topology = topology_of(UNIFIED, cpu=True, disk=False)
    prices = SimPrices(CostModel(UNIFIED, SHAPE), topology=topology)
    built = machine(env, prices, topology)
    on_gpu, on_cpu = (Work(lane, Experts(1, (0,), (1,))) for lane in (GPU, CPU))

    def serve() -> Wait:
        built.submit(on_gpu)
        built.submit(on_cpu)
        for work in (on_cpu, on_gpu):
            while not built.done(work):
                yield from built.wait_any([work])

    env.run(env.process(serve()))
    # The CPU starts at 0, the GPU after its overhead of 1,000 ns; each has 48,000 bytes.
    # The CPU has 38,000 left then, and reads them at 5 bytes/ns: 7,600 ns more.
    assert on_cpu.finish_ns == 1000 + 7600
    assert on_gpu.finish_ns == 1000 + 7600 + 1000


def test_the_shared_memory_has_the_faster_reader_s_bandwidth() -> None:
    slow_cpu = dataclasses.replace(UNIFIED, host_memory_efficiency=0.5)
    topology = topology_of(slow_cpu, cpu=True, disk=False)
    assert topology.resources[HOST_BANDWIDTH] == 10 * 10**9
    apart = topology_of(dataclasses.replace(slow_cpu, unified=False), cpu=True, disk=False)
    assert apart.resources[HOST_BANDWIDTH] == 5 * 10**9


def test_links_between_dies_limit_the_cpu_and_not_the_memory() -> None:
    one_die = dataclasses.replace(UNIFIED, cpu_memory_bytes_per_s=4 * 10**9)
    assert cpu_rates(one_die).bytes_per_s == 4 * 10**9
    assert cpu_rates(UNIFIED).bytes_per_s == 10 * 10**9
    assert topology_of(one_die, cpu=True, disk=False).resources[HOST_BANDWIDTH] == 10 * 10**9
