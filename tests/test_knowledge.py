"""What each kind of router reveals, and what that is good for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workloads import (
    decisions,
    everything,
    plan_of,
    random_case,
    run_on,
    shuffled,
    tiny_scenario,
    tiny_trace,
)

from moesim.machine.events import EventMachine
from moesim.serving.knowledge import KNOWLEDGE
from moesim.simulate import Outcome
from moesim.trace import Trace

AHEAD = {"policy": "oracle", "options": {"depth": 1}}


def run(router: str, **changes: Any) -> Outcome:
    trace = tiny_trace(requests=4, prompt_tokens=6, output_tokens=6).with_meta(router=router)
    batching = {"token_budget": 4, "max_sequences": 3}
    return run_on(plan_of(tiny_scenario(batching=batching, **changes), trace))


def readback_ns(outcome: Outcome) -> int:
    return sum(outcome.ledger.readback_stall_ns[: outcome.plan.trace.num_layers])


def test_nobody_waits_for_ids_that_were_known_beforehand() -> None:
    waits = {router: readback_ns(run(router)) for router in KNOWLEDGE}
    assert waits["layerwise"] > waits["pregated"] > 0
    assert waits["decoupled"] == waits["static"] == 0


def test_knowing_beforehand_changes_times_and_no_decision() -> None:
    layerwise, decoupled = run("layerwise"), run("decoupled")
    assert decisions(layerwise) == decisions(decoupled)
    assert decoupled.now_ns < layerwise.now_ns


@pytest.mark.parametrize("router", ["pregated", "decoupled"])
@pytest.mark.parametrize("seed", range(10))
def test_the_machines_agree_whatever_is_known(seed: int, router: str) -> None:
    scenario, trace = random_case(9000 + seed)
    scenario["cache"] = {"policy": "lookahead", "slots": 3 + 2 * seed}
    plan = plan_of(scenario, trace.with_meta(router=router))
    folded = everything(run_on(plan))
    assert everything(run_on(plan, lambda env, prices: EventMachine(env, prices))) == folded
    assert everything(run_on(plan, shuffled(seed))) == folded


def changed_after(trace: Trace, row: int) -> Trace:
    """Another future: from a row on, the experts of all tokens are others."""
    ids = np.array(trace.expert_ids[:], np.int64)
    ids[row:] = (ids[row:] + 3) % trace.num_experts
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
        num_experts=trace.num_experts,
        router=trace.meta.router,
        model_config=trace.meta.model_config,
    )


def misses_by_step(trace: Trace, **changes: Any) -> list[int]:
    one = tiny_scenario(
        batching={"token_budget": 2, "max_sequences": 1},
        cache={"policy": "lookahead", "slots": "2/layer"},
        **changes,
    )
    return list(run_on(plan_of(one, trace)).ledger.step_columns()["misses"])


def test_look_ahead_sees_queued_prompts_and_no_token_that_is_not_sampled() -> None:
    trace = tiny_trace(requests=1, prompt_tokens=8, output_tokens=8, stickiness=0.0)
    trace = trace.with_meta(router="decoupled")
    before = misses_by_step(trace)
    decoded = misses_by_step(changed_after(trace, 12))  # rows 8.. are decoded, one a step
    assert decoded[:8] == before[:8]  # four steps of prompt, then rows 8 to 11


def test_look_ahead_in_a_layerwise_model_is_lru_less_the_event_itself() -> None:
    trace = tiny_trace(requests=3, prompt_tokens=6, output_tokens=6)
    outcomes = [
        run_on(plan_of(tiny_scenario(cache={"policy": policy, "slots": "3/layer"}), trace))
        for policy in ("lookahead", "lru")
    ]
    first, second = (sum(outcome.ledger.hits) for outcome in outcomes)
    assert first == second


def test_look_ahead_hits_more_often_the_more_is_queued() -> None:
    trace = tiny_trace(requests=40, prompt_tokens=12, output_tokens=1, stickiness=0.0)
    trace = trace.with_meta(router="decoupled")

    def hits(policy: str) -> int:
        scenario = tiny_scenario(
            batching={"token_budget": 1, "max_sequences": 1},
            cache={"policy": policy, "slots": "3/layer"},
        )
        return sum(run_on(plan_of(scenario, trace)).ledger.hits)

    lru, ahead, least = hits("lru"), hits("lookahead"), hits("min")
    assert lru < ahead <= least
    assert ahead > 0.9 * least
