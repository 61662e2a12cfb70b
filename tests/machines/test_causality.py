"""No prefetch is issued before the host knows what it is based on.

A policy that is not clairvoyant sees the ids and predictions of a layer when the layer's router has
run, wherever tokens are sorted. Only ids that a router reveals of queued tokens are known earlier.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from random_lanes import Walking, random_lanes_case
from workloads import decisions, everything, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.hardware.topology import GPU
from moesim.machine.events import EventMachine
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.run_log import Issued, RunLog
from moesim.simulate import Outcome, Plan
from moesim.trace import Trace

BLOCKS = 4


def case(seed: int, router: str = "layerwise") -> tuple[dict[str, Any], Trace]:
    """Return a random case whose first layers are on the GPU, and whose engine sorts there."""
    scenario, trace = random_lanes_case(seed)
    scenario["engine"]["sorting"] = "device"
    if scenario["placement"]["policy"] in ("cpu_layers", "cpu_experts"):
        scenario["placement"] = {"policy": "copy"}
    policy = "predicted" if router == "layerwise" else "layer_ahead"
    if trace.predictions is None or trace.meta.router != "layerwise":
        trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=5, seed=seed)
    scenario["prefetch"] = {"policy": policy}
    rng = random.Random(f"causality {seed}")
    scenario["cache"] = {
        "policy": rng.choice(["lru", "lfu", "fifo"]),
        "scope": "global",
        "slots": rng.randint(20, 31),
        "initial_layers": rng.randint(0, 2),
    }
    return scenario, trace.with_meta(router=router)


def logged(plan: Plan) -> tuple[Outcome, list[Issued]]:
    log = RunLog(Issued)
    outcome = run_on(plan, observers=[log])
    return outcome, log.of(Issued)


def check_prefetches(plan: Plan) -> int:
    """Check each prefetch of a step, and that none precedes the first front; return how many."""
    knowledge = KNOWLEDGE[plan.trace.meta.router]
    _, works = logged(plan)
    last: Issued | None = None
    checked = 0
    for it in works:
        if last is not None and it.step != last.step:
            last = None
        if it.kind == "front" or (it.kind == "readback" and it.layer < plan.trace.num_layers):
            last = it
        elif it.kind == "prefetch":
            assert last is not None, "a layer's ids are not known before its step"
            returned = last.kind == "readback" or last.work.lane != GPU
            assert returned or not knowledge.comes_back(last.layer)
            assert it.decided_ns >= last.work.finish_ns
            assert it.work.start_ns >= last.work.finish_ns
            checked += 1
    return checked


@pytest.mark.parametrize("router", ["layerwise", "pregated"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_prefetch_is_issued_before_its_ids_are_on_the_host(block: int, router: str) -> None:
    seeds = range(5600 + block, 5640, BLOCKS)
    checked = [check_prefetches(plan_of(*case(seed, router))) for seed in seeds]
    assert sum(checked) > 20


@pytest.mark.parametrize("seed", range(5700, 5708))
def test_machines_agree_where_prefetches_need_ids_of_layers_sorted_on_the_device(seed: int) -> None:
    plan = plan_of(*case(seed))
    simulated = run_on(plan)
    for machine in (EventMachine, Walking):
        other = run_on(plan, machine)
        assert everything(simulated) == everything(other)
        assert decisions(simulated) == decisions(other)


def test_a_clairvoyant_prefetch_waits_for_no_ids_of_a_layer_that_stays_on_the_device() -> None:
    """It is a bound, so it may be issued before the layer's router has run."""
    trace = tiny_trace(requests=1, prompt_tokens=1, output_tokens=6)
    cache = {"policy": "lru", "scope": "global", "slots": 24, "initial_layers": 2}
    returned = {}
    for policy in ("oracle", "predicted"):
        plan = plan_of(
            tiny_scenario(engine={"sorting": "device"}, cache=cache, prefetch={"policy": policy}),
            trace,
        )
        _, works = logged(plan)
        returned[policy] = {it.layer for it in works if it.kind == "readback"}
    assert returned == {"oracle": {2, 3, 4}, "predicted": {0, 1, 2, 3, 4}}
