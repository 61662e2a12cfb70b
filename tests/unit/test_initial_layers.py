"""Initial layers that are resident from the start: `cache.initial_layers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workloads import (
    TINY_CONFIG,
    decisions,
    everything,
    plan_of,
    random_case,
    run_on,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import BudgetError, ScenarioError
from moesim.machine.events import EventMachine
from moesim.simulate import Outcome, result_of, summarise
from moesim.trace import Trace

LAYERS, EXPERTS = 4, 8


def busy_trace(**knobs: Any) -> Trace:
    trace = tiny_trace(requests=5, prompt_tokens=7, output_tokens=6, stickiness=0.3, **knobs)
    return trace.with_meta(router="decoupled")


def run(trace: Trace, **cache: Any) -> Outcome:
    batching = {"token_budget": 2, "max_sequences": 2}
    return run_on(plan_of(tiny_scenario(cache=cache, batching=batching), trace))


def hits_of(outcome: Outcome) -> list[int]:
    return outcome.ledger.hits


def without_first(trace: Trace, count: int) -> Trace:
    """The same requests in a model that lacks its first layers."""
    return Trace.from_arrays(
        expert_ids=np.asarray(trace.expert_ids[:])[:, count:],
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        num_experts=EXPERTS,
        router="decoupled",
        model_config={**TINY_CONFIG, "num_hidden_layers": LAYERS - count},
    )


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("initial", [0, 1, 3, 4])
def test_slots_go_to_initial_layers_first(scope: str, initial: int) -> None:
    plan = plan_of(tiny_scenario(cache={"scope": scope, "initial_layers": initial}), busy_trace())
    slots = [EXPERTS] * initial
    few = plan_of(
        tiny_scenario(
            cache={"scope": scope, "initial_layers": initial, "slots": min(8 * initial + 2, 32)}
        ),
        busy_trace(),
    ).slots
    assert sum(plan.slots) == LAYERS * EXPERTS  # there is memory for all
    assert list(few[:initial]) == slots
    if initial == LAYERS:
        assert len(few) == LAYERS
    elif scope == "global":
        assert few[initial:] == (2,)
    else:
        assert list(few[initial:]) == ([1, 1, 0, 0][: 4 - initial] if initial < 3 else [2])


@pytest.mark.parametrize("policy", ["lru", "lookahead", "random", "static", "min", "lfu_decay"])
@pytest.mark.parametrize("initial", [1, 2])
def test_layers_with_slots_of_their_own_notice_nothing_of_them(policy: str, initial: int) -> None:
    """With three slots in each of the other layers, those hit as if all layers had three."""
    trace = busy_trace()
    slots = EXPERTS * initial + 3 * (LAYERS - initial)
    outcome = run(trace, policy=policy, initial_layers=initial, slots=slots)
    plain = run(trace, policy=policy, slots="3/layer")
    assert hits_of(outcome)[initial:] == hits_of(plain)[initial:]
    events, accesses = outcome.ledger.accesses_by_layer()
    assert hits_of(outcome)[:initial] == list(accesses[:initial])
    assert events[0] > 0
    assert sum(hits_of(plain)[:initial]) < sum(hits_of(outcome)[:initial])


@pytest.mark.parametrize("policy", ["lru", "lookahead", "static", "min"])
@pytest.mark.parametrize("initial", [1, 2])
def test_a_shared_cache_serves_the_others_as_if_the_model_began_there(
    policy: str, initial: int
) -> None:
    trace, cache = busy_trace(), {"policy": policy, "scope": "global"}
    outcome = run(trace, **cache, initial_layers=initial, slots=EXPERTS * initial + 13)
    rest = run(without_first(trace, initial), **cache, slots=13)
    assert hits_of(outcome)[initial:] == hits_of(rest)
    assert 0 < sum(hits_of(rest)) < sum(rest.ledger.accesses_by_layer()[1])


@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_what_is_loaded_beforehand_is_said_apart_and_never_moves_again(scope: str) -> None:
    plan = plan_of(
        tiny_scenario(
            cache={"scope": scope, "initial_layers": 2, "slots": 2 * EXPERTS + 4},
            prefetch={"policy": "layer_ahead"},
            bounds=True,
        ),
        busy_trace(),
    )
    outcome = run_on(plan)
    ledger, summary = outcome.ledger, summarise(outcome)
    assert summary["load_bytes"] == 2 * EXPERTS * plan.cost.expert_bytes
    assert ledger.demand_copies[:2] == ledger.prefetch_copies[:2] == [0, 0]
    assert sum(ledger.prefetch_copies) > 0
    assert [set(cache.slots) for cache in outcome.caches[:2]] == [
        set(range(EXPERTS)),
        set(range(EXPERTS, 2 * EXPERTS)),
    ]
    notes = "\n".join(result_of(plan).summary["notes"])
    assert "all experts of the first 2 MoE layers are resident from the start" in notes


@pytest.mark.parametrize("block", range(4))
def test_the_machines_agree_with_resident_layers(block: int) -> None:
    for seed in range(5200 + block, 5260, 4):
        scenario, trace = random_case(seed)
        initial = seed % 5
        scenario["cache"] |= {"initial_layers": initial}
        scenario["cache"]["slots"] = max(scenario["cache"]["slots"], EXPERTS * initial)
        plan = plan_of(scenario, trace)
        folded, lived = run_on(plan), run_on(plan, EventMachine)
        assert everything(folded) == everything(lived), seed
        assert decisions(folded) == decisions(lived), seed


def test_more_than_there_are_or_fit_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"of 2 initial layers take 16 slots; there are 15"):
        run(busy_trace(), initial_layers=2, slots=15)
    with pytest.raises(ScenarioError, match=r"initial_layers: is 5; the trace has 4"):
        run(busy_trace(), initial_layers=5)
