"""Limits and laws of machines with a CPU and a disk, held by runs of whole scenarios.

Where a figure becomes extreme, or a feature changes nothing, the run must equal a simpler one to
the nanosecond, or differ from it by a sum that is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from costed_traces import costed_trace
from random_lanes import QUIET, random_lanes_case
from round_figures import FIGURES, same_experts
from workloads import (
    decisions,
    everything,
    plan_of,
    random_case,
    run_on,
    tiny_scenario,
    tiny_trace,
)

from moesim.hardware import BatchShape
from moesim.machine.sim import SimMachine
from moesim.simulate import Outcome, Plan
from moesim.trace import Trace

LAYERS, EXPERTS = 4, 8
BLOCKS = 4
FAST_CPU = {
    "profile": "rtx-4090",
    "cpu_flops": 10**18,
    "cpu_overhead": 0,
    "host_memory_bandwidth": 10**18,
    "host_memory_efficiency": "100%",
}
"""A CPU on which a call takes 1 ns for each expert, since times are rounded up."""
SLOW_CPU = {
    "cpu_flops": 10**6,
    "cpu_cores": 8,
    "host_memory_bandwidth": 10**15,
    "host_memory_efficiency": "100%",
}
"""A CPU on which an expert takes a second or more, and host memory that limits no copy."""


def decode_trace(requests: int = 1, seed: int = 1, output_tokens: int = 8) -> Trace:
    """Return a trace whose prompts are one token, so that a lone request's steps have one row."""
    return tiny_trace(
        requests=requests, prompt_tokens=1, output_tokens=output_tokens, seed=seed, stickiness=0.3
    )


def run(trace: Trace, make: Any = SimMachine, **changes: Any) -> Outcome:
    return run_on(plan_of(tiny_scenario(**changes), trace), make)


def events_by_step(outcome: Outcome) -> list[list[list[int]]]:
    """Return the unions of each step, by layer."""
    events = outcome.ledger.layer_events()
    return [events[start : start + LAYERS] for start in range(0, len(events), LAYERS)]


def step_ns(outcome: Outcome) -> list[int]:
    return [row[2] - row[1] for row in outcome.ledger.steps]


def timeless(outcome: Outcome) -> tuple[Any, ...]:
    """Return all that a run records but the time of lanes that another machine does not have."""
    busy = {lane: ns for lane, ns in outcome.ledger.busy_ns.items() if lane in ("gpu", "h2d")}
    return (*(part for part in everything(outcome) if part is not outcome.ledger.busy_ns), busy)


# --- the CPU: infinitely fast, infinitely slow, alone ---------------------------------------------


@pytest.mark.parametrize("slots", [0, 11, 20, 32])
@pytest.mark.parametrize("free_link", [True, False], ids=["free link", "link"])
def test_with_an_infinitely_fast_cpu_a_step_is_that_of_resident_experts(
    slots: int, free_link: bool
) -> None:
    """But for two terms, both stated: the calls of resident experts, and the states' copies.

    An event with c experts on the CPU takes the longer of the residents' call and of
    c ns + two copies of states. Where all are resident it takes one call of all experts.
    """

    def on(plan: Plan) -> Any:
        return lambda env, _, topology=None: SimMachine(
            env, plan.prices(free_link=free_link), topology
        )

    def served(name: str, **changes: Any) -> tuple[Plan, Outcome]:
        plan = plan_of(tiny_scenario(hardware=FAST_CPU, **changes), decode_trace())
        return plan, run_on(plan, on(plan))

    cache = {"policy": "static", "slots": slots}
    plan, outcome = served("cost", placement={"policy": "cost"}, cache=cache)
    _, resident = served("copy", cache={"policy": "static", "slots": "100%"})
    held = {key for each in outcome.caches for key in each.slots}
    assert len(held) == slots
    cost, states = plan.cost, 0 if free_link else plan.cost.copy_ns("h2d", 2 * 512)
    for step, alone_ns, unions in zip(
        step_ns(outcome), step_ns(resident), events_by_step(outcome), strict=True
    ):
        changed = 0
        for union in unions:
            away = sum(key not in held for key in union)
            on_gpu = cost.experts_ns((1,) * (len(union) - away))
            event = max(on_gpu, away + 2 * states) if away else on_gpu
            changed += event - cost.experts_ns((1,) * len(union))
        assert step == alone_ns + changed
    ledger = outcome.ledger
    assert (sum(ledger.elsewhere) > 0) == (slots < 32)
    assert sum(ledger.demand_copies) == 0


@pytest.mark.parametrize("policy", ["cost", "two_queue"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_with_an_infinitely_slow_cpu_all_experts_are_copied(policy: str, block: int) -> None:
    """To the nanosecond, on any case, if host memory limits no copy.

    `two_queue` copies experts with more rows first, then lower keys. So its copies are in another
    order, and steps must have one row, in which all experts take the same time.
    """
    elsewhere = 0
    for seed in range(7000 + block, 7040, BLOCKS):
        scenario, trace = random_case(seed)
        scenario["hardware"] |= SLOW_CPU
        if policy == "two_queue":
            scenario["batching"] |= {"token_budget": 1, "chunked_prefill": True}
        copied = run_on(plan_of(scenario, trace))
        scenario["placement"] = {"policy": policy}
        placed = run_on(plan_of(scenario, trace))
        if policy == "two_queue":
            for outcome in (placed, copied):
                outcome.ledger.timeline.clear()
        else:
            assert decisions(placed) == decisions(copied), seed
        assert timeless(placed) == timeless(copied), seed
        elsewhere += sum(placed.ledger.elsewhere) + placed.ledger.busy_ns["cpu"]
    assert elsewhere == 0


@pytest.mark.parametrize("flops", ["700GFLOPS", "3GFLOPS"], ids=["memory-bound", "arithmetic"])
@pytest.mark.parametrize("cores", [8, 2])
def test_with_all_experts_on_the_cpu_a_step_is_a_sum_in_closed_form(flops: str, cores: int) -> None:
    """Of each layer: front, ids, states in, the CPU's call, states out; then the tail.

    The call takes its overhead and, of each expert, the longer of bytes / bandwidth and
    operations / rate. The GPU holds no expert.
    """
    hardware = {
        "profile": "rtx-4090",
        "cpu_flops": flops,
        "cpu_overhead": "7us",
        "cpu_cores": 8,
        "cpu_threads": cores,
        "core_memory_bandwidth": "9GB/s",
        "host_memory_bandwidth": "60GB/s",
    }
    trace = tiny_trace(requests=1, prompt_tokens=5, output_tokens=6, seed=3)
    placement = {"policy": "cpu_layers", "options": {"layers": "all", "copy_rows": None}}
    plan = plan_of(tiny_scenario(hardware=hardware, placement=placement), trace)
    outcome = run_on(plan)
    cost, params = plan.cost, 3 * 512 * 1024
    bandwidth = min(60, 9 * cores) * 10**9
    rate = {"700GFLOPS": 700, "3GFLOPS": 3}[flops] * 10**9 * cores // 8

    def expert_ns(rows: int) -> int:
        return max(-(-2 * params * 10**9 // bandwidth), -(-2 * rows * params * 10**9 // rate))

    expected = []
    for step, unions in enumerate(events_by_step(outcome)):
        tokens = 5 if step == 0 else 1
        batch = BatchShape(tokens, 5 + step, 15 if step == 0 else 5 + step, 1)
        ids = trace.expert_ids[:5] if step == 0 else trace.expert_ids[4 + step : 5 + step]
        states = cost.copy_ns("h2d", tokens * 2 * 512)
        assert states == cost.copy_ns("d2h", tokens * 2 * 512)
        total = cost.tail_ns(batch) + cost.readback_ns(4)
        for layer, union in enumerate(unions):
            rows = [int((ids[:, layer] == key % EXPERTS).sum()) for key in union]
            assert sum(rows) == 2 * tokens
            total += cost.front_ns(layer, batch) + cost.readback_ns(4 * 2 * tokens)
            total += 2 * states + 7000 + sum(map(expert_ns, rows))
        expected.append(total)
    assert step_ns(outcome) == expected
    assert outcome.now_ns == sum(expected)
    assert sum(outcome.ledger.hits) == outcome.plan.budget.slots == 0


# --- the affine law -------------------------------------------------------------------------------


def differences(values: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(values)]


def tokens_ns(option: str, number: int, engine: str = "ideal") -> list[int]:
    """Return the durations of the steps of one request with this many layers on the CPU."""
    placement = {"policy": "cpu_layers", "options": {option: number}}
    if option == "whole_layers":
        placement["options"]["layers"] = number  # their experts, and no others
    outcome = run(decode_trace(), placement=placement, cache={"slots": "100%"}, engine=engine)
    return step_ns(outcome)


def test_the_time_of_a_token_is_a_straight_line_in_the_layers_whose_experts_are_on_the_cpu() -> (
    None
):
    """To the nanosecond, for a lone request: each layer on the CPU adds the same.

    All layers of the model are alike, each token wants two experts in each layer, and the KV
    entries are the same for all n. The line has its slope from prices alone.
    """
    plan = plan_of(
        tiny_scenario(placement={"policy": "cpu_layers", "options": {"layers": 2}}), decode_trace()
    )
    cost, bandwidth = plan.cost, 60 * 10**9
    on_cpu = 2 * -(-2 * 3 * 512 * 1024 * 10**9 // bandwidth)  # no overhead in this profile
    slope = 2 * cost.copy_ns("h2d", 2 * 512) + on_cpu - cost.experts_ns((1, 1))
    lines = zip(*[tokens_ns("layers", n) for n in range(LAYERS + 1)], strict=True)
    for by_n in lines:
        assert differences(by_n) == [slope] * LAYERS
    assert slope > 0


def test_the_line_holds_under_an_engine_that_sorts_on_the_device() -> None:
    """Each layer on the CPU adds a readback of its ids too, and a switch in both directions."""
    placement = {"policy": "cpu_layers", "options": {"layers": 2}}
    plan = plan_of(tiny_scenario(placement=placement, engine=QUIET), decode_trace())
    cost, cpu, engine = plan.cost, plan.prices().cpu, plan.engine
    assert cpu is not None
    # 2 experts of 3 * 512 * 1024 weights of 2 bytes, at the engine's share of 60 GB/s.
    nbytes = 2 * 3 * 512 * 1024
    # Each of 7 kernels waits for 8 threads.
    on_cpu = 7 * (8_000 + 8 * 150)
    on_cpu += 2 * ceil(nbytes / (60 * 0.95))
    assert cpu.experts((1, 1)).duration_ns == on_cpu
    states = cost.copy_ns("h2d", 2 * 512) + engine.switch_ns
    slope = 2 * states + on_cpu + cost.readback_ns(4 * 2) - cost.experts_ns((1, 1))
    lines = [tokens_ns("layers", n, QUIET) for n in range(LAYERS + 1)]
    for by_n in zip(*lines, strict=True):
        assert differences(by_n) == [slope] * LAYERS
    assert slope > 0


def test_the_time_of_a_token_is_a_straight_line_in_the_whole_layers_on_the_cpu() -> None:
    """From the first layer on: its hidden states are copied to the GPU once, whatever n is.

    The slope grows with the KV entries, which the CPU reads more slowly than the GPU.
    """
    slopes = []
    for by_n in zip(*[tokens_ns("whole_layers", n) for n in range(LAYERS + 1)], strict=True):
        first, *others = differences(by_n)
        assert len(set(others)) == 1
        assert first == others[0] + 10_041  # 10 us, and 1024 B at 25 GB/s
        slopes.append(others[0])
    assert slopes == sorted(slopes)
    assert slopes[0] < slopes[-1]


# --- memories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(BLOCKS))
def test_host_memory_that_holds_all_is_as_good_as_unlimited(block: int) -> None:
    for seed in range(7200 + block, 7240, BLOCKS):
        scenario, trace = random_lanes_case(seed)
        scenario["memory"]["host"] = "unlimited"
        plan = plan_of(scenario, trace)
        host = plan.places.host
        unlimited = run_on(plan)
        needed = host.weights_bytes + host.kv_bytes + host.experts_bytes
        for nbytes in (needed, 2 * needed):
            scenario["memory"]["host"] = nbytes
            assert everything(run_on(plan_of(scenario, trace))) == everything(unlimited), seed


@pytest.mark.parametrize("unit", ["expert", "page"])
@pytest.mark.parametrize("placement", ["copy", "cpu_experts", "cpu_layers"])
def test_more_host_memory_never_reads_more_from_disk(unit: str, placement: str) -> None:
    """Least recently used has the inclusion property: a larger memory holds what a smaller does.

    Placements by estimates choose other uses where more is in host memory, and are left out.
    """
    nbytes = 3 * 512 * 1024 * 2
    for seed in range(7300, 7304):
        trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=6, seed=seed)
        read = []
        for sixths in (6, 13, 30, 31, 60, 61, 100, 140, 185, 192):
            outcome = run(
                trace,
                hardware={"profile": "rtx-4090", "disk": {"latency": "80us", "bandwidth": "3GB/s"}},
                memory={"host": sixths * nbytes // 6, "host_cache": unit},
                placement={"policy": placement},
                cache={"slots": 8},
            )
            read.append(outcome.ledger.moved_bytes["read"])
        assert read == sorted(read, reverse=True), seed
        assert read[0] > 0 == read[-1]


def test_uses_read_what_the_least_recent_of_so_many_experts_reads() -> None:
    """By a list of the experts in host memory, the most recent last."""
    nbytes = 3 * 512 * 1024 * 2
    for capacity in (1, 5, 12, 17):
        outcome = run(
            tiny_trace(requests=3, prompt_tokens=4, output_tokens=6, seed=capacity),
            hardware={"profile": "rtx-4090", "disk": {"latency": "80us", "bandwidth": "3GB/s"}},
            memory={"host": capacity * nbytes, "host_cache": "expert"},
            placement={"policy": "cpu_experts"},
            cache={"slots": 8},
        )
        resident = {key for each in outcome.caches for key in each.slots}
        held, reads = list(range(LAYERS * EXPERTS))[-capacity:], 0
        for union in outcome.ledger.layer_events():
            for key in [key for key in union if key not in resident]:
                reads += key not in held
                held = [*(other for other in held if other != key), key][-capacity:]
        assert outcome.ledger.moved_bytes["read"] == reads * nbytes > 0


BANDWIDTHS = (3, 6, 12, 24, 48, 96)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_doubling_the_bandwidth_of_host_memory_never_makes_a_run_longer(block: int) -> None:
    """On cases whose decisions are the same for any bandwidth.

    All requests arrive at once, and the placement estimates no durations. This is found and not
    proved: a faster work may start another one sooner, which then shares with a third.
    """
    faster = 0
    for seed in range(7500 + block, 7540, BLOCKS):
        scenario, trace = random_lanes_case(seed, at_once=True)
        if scenario["placement"]["policy"] in ("cost", "two_queue"):
            continue
        times = []
        for bandwidth in BANDWIDTHS:
            scenario["hardware"]["host_memory_bandwidth"] = bandwidth * 10**9
            times.append(run_on(plan_of(scenario, trace)).now_ns)
        assert times == sorted(times, reverse=True), seed
        faster += times[0] > times[-1]
    assert faster > 0


def test_faster_host_memory_can_make_a_run_longer_where_durations_are_estimated() -> None:
    """Of each layer, expert 2 is in GPU memory, and 5 is missing.

    With 30 GB/s the CPU takes 70,000 + 104,858 ns, so `cost` copies the expert: 10,000 + 104,858 ns
    and 8146 on the GPU. With 60 GB/s it takes 122,429 < 123,004 ns, and gets the expert. But inputs
    and outputs are copied as well, 10,035 ns each, which the estimate leaves out.
    """
    link = {"bandwidth": "30GB/s", "latency": "10us"}
    figures = FIGURES | {"h2d": link, "d2h": link, "cpu_overhead": "70us"}
    del figures["core_memory_bandwidth"]
    times = [
        run(
            costed_trace(same_experts(1)),
            hardware=figures | {"host_memory_bandwidth": bandwidth},
            placement={"policy": "cost"},
            cache={"policy": "static", "slots": "1/layer"},
        ).now_ns
        for bandwidth in ("30GB/s", "60GB/s")
    ]
    assert times[1] - times[0] == LAYERS * (122_429 + 2 * 10_035 - 123_004) > 0


# --- the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(BLOCKS))
def test_an_engine_without_issue_times_changes_nothing(block: int) -> None:
    for seed in range(7400 + block, 7440, BLOCKS):
        scenario, trace = random_lanes_case(seed)
        del scenario["engine"]
        plain = everything(run_on(plan_of(scenario, trace)))
        scenario["engine"] = {"launch": 0, "copy_launch": "0s", "layer_event": "0us"}
        assert everything(run_on(plan_of(scenario, trace))) == plain, seed


RESIDENT = {"policy": "static", "slots": "100%"}


@pytest.mark.parametrize("issue_us", [1, 10, 19])
def test_launches_that_kernels_hide_delay_the_first_kernel_of_a_step_alone(issue_us: int) -> None:
    """Without readbacks within a step; each kernel takes 20 us or more, and hides what follows.

    The host decides no layer event here, so `layer_event` adds nothing.
    """
    trace = decode_trace(requests=2)
    engine = {"sorting": "device"}
    free = run(trace, engine=engine, cache=RESIDENT)
    times = dict.fromkeys(("launch", "copy_launch", "layer_event"), f"{issue_us}us")
    busy = run(trace, engine=engine | times, cache=RESIDENT)
    assert step_ns(busy) == [ns + issue_us * 1000 for ns in step_ns(free)]


def test_launches_that_kernels_do_not_hide_delay_more() -> None:
    """So the test above can fail."""
    trace = decode_trace()
    free, busy = (
        run(trace, engine={"sorting": "device", "launch": launch}, cache=RESIDENT)
        for launch in (0, "40us")
    )
    assert all(
        slow > fast + 40_000 for fast, slow in zip(step_ns(free), step_ns(busy), strict=True)
    )


def test_sorting_on_the_device_removes_exactly_the_readbacks_of_resident_layers() -> None:
    trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=2)
    timed = partial(run, trace, cache=RESIDENT, memory={"kv_block_tokens": 1})
    host, device = timed(engine={"sorting": "host"}), timed(engine={"sorting": "device"})
    cost = host.plan.cost
    rows = [row[3] for row in host.ledger.steps]
    ids_ns = [LAYERS * cost.readback_ns(4 * 2 * count) for count in rows]
    assert [
        slow - fast for slow, fast in zip(step_ns(host), step_ns(device), strict=True)
    ] == ids_ns
    ids_bytes = sum(LAYERS * 4 * 2 * count for count in rows)
    moved = [outcome.ledger.moved_bytes["readback"] for outcome in (host, device)]
    assert moved[0] - moved[1] == ids_bytes
    assert decisions(host) == decisions(device)


@pytest.mark.parametrize("sorting", ["host", "device"])
def test_layers_with_missing_experts_read_their_ids_back_wherever_tokens_are_sorted(
    sorting: str,
) -> None:
    """Layers 0 and 1 are in GPU memory, the others have one expert on the CPU or more."""
    trace = tiny_trace(requests=2, prompt_tokens=4, output_tokens=5, seed=2)
    placement = {"policy": "cpu_experts", "options": {"by": "front"}}
    slots = {"slots": 3 * EXPERTS - 1}
    outcome = run(trace, engine={"sorting": sorting}, placement=placement, cache=slots)
    rows = [row[3] for row in outcome.ledger.steps]
    tokens = 4 * sum(len(request.token_ns) for request in outcome.requests)
    layers = 2 if sorting == "device" else LAYERS
    assert outcome.ledger.moved_bytes["readback"] == layers * 4 * 2 * sum(rows) + tokens
