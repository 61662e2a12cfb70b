"""A plan served by torch: the decisions of the simulation, whatever the device and the policies."""

from __future__ import annotations

from typing import Any

import pytest
from paths import ROOT
from workloads import (
    TINY_CONFIG,
    decisions,
    plan_of,
    random_case,
    run_on,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import BudgetError, ScenarioError
from moesim.simulate import Plan, finish
from moesim.trace import Trace, load_trace

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")

from moesim.executor import run as real  # noqa: E402
from moesim.executor.device import Device, open_device  # noqa: E402

SMALL = {**TINY_CONFIG, "hidden_size": 32, "head_dim": 4, "intermediate_size": 64, "vocab_size": 96}
TRACES = ROOT / "traces"
BITS = {"shape": "trace", "expert_bits": 32, "weight_bits": 32, "kv_bits": 32}


pytestmark = pytest.mark.usefixtures("one_thread")


def small_plan(scenario: dict[str, Any], trace: Trace) -> Plan:
    return plan_of({**scenario, "model": BITS}, trace.with_meta(model_config=SMALL))


def run(plan: Plan, device: Device) -> real.RealRun:
    executor = real.executor_for(plan, device)
    try:
        return real.run_real(plan, executor, device, patience_s=20)
    finally:
        executor.close()


@pytest.mark.parametrize("seed", range(6))
def test_torch_decides_as_the_simulation_does(seed: int, device: Device) -> None:
    plan = small_plan(*random_case(8000 + seed, at_once=True))
    done = run(plan, device)
    assert decisions(finish(plan, done.server, done.now_ns)) == decisions(run_on(plan))


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("seed", range(3))
def test_torch_decides_as_the_simulation_does_by_what_a_decoupled_router_reveals(
    seed: int, scope: str, device: Device
) -> None:
    """Expert-aware batching, look-ahead eviction and prefetch, with a resident first layer."""
    scenario = tiny_scenario(
        batching={"policy": "expert_aware", "token_budget": 3, "max_sequences": 4},
        cache={
            "policy": "lookahead",
            "scope": scope,
            "initial_layers": 1,
            "slots": 8 + 10,
            "options": {"recent_rows": seed},
        },
        prefetch="layer_ahead",
    )
    trace = tiny_trace(requests=5, prompt_tokens=4, output_tokens=5, seed=seed, stickiness=0.3)
    plan = small_plan(scenario, trace.with_meta(router="decoupled"))
    done = run(plan, device)
    outcome = finish(plan, done.server, done.now_ns)
    assert decisions(outcome) == decisions(run_on(plan))
    assert outcome.ledger.demand_copies[0] == outcome.ledger.prefetch_copies[0] == 0
    assert sum(outcome.ledger.prefetch_copies) > 0


def test_a_shipped_trace_is_executed_with_the_shape_in_its_header() -> None:
    scenario = tiny_scenario(
        model=BITS,
        workload={"requests": 3, "lengths": {"prompt": 8, "output": 4}},
        cache={"policy": "lfu", "slots": "4/layer"},
        prefetch={"policy": "predicted"},
    )
    plan = plan_of(scenario, load_trace(TRACES / "shallow"))
    done = run(plan, open_device("cpu"))
    assert decisions(finish(plan, done.server, done.now_ns)) == decisions(run_on(plan))
    works = [issued.work for issued in done.works if issued.work.lane == "gpu"]
    assert all(work.finish_ns > work.start_ns > 0 for work in works)


def test_one_executor_serves_again_and_again() -> None:
    plan = small_plan(*random_case(8100, at_once=True))
    device = open_device("cpu")
    executor = real.executor_for(plan, device)
    runs = [real.run_real(plan, executor, device) for _ in range(2)]
    first, second = (decisions(finish(plan, r.server, r.now_ns)) for r in runs)
    assert first == second


def test_weights_of_several_types_are_refused() -> None:
    scenario, trace = tiny_scenario(model={**BITS, "expert_bits": 4}), tiny_trace()
    plan = plan_of(scenario, trace.with_meta(model_config=SMALL))
    with pytest.raises(ScenarioError, match="experts have 4 and other weights 32"):
        real.executor_for(plan, open_device("cpu"))


def test_too_little_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(tiny_scenario(), tiny_trace())
    monkeypatch.setattr(real, "free_memory", lambda: 1000)
    with pytest.raises(BudgetError, match=r"buffers of 24576 bytes need .*has 1000 B"):
        real.executor_for(plan, open_device("cpu"))
