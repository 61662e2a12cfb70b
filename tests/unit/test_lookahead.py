"""The oracle sees to the end of the step, and further if the next tokens are known."""

from __future__ import annotations

import numpy as np
from workloads import TINY_CONFIG, plan_of, run_on, tiny_scenario

from moesim.serving.request import Request
from moesim.serving.routing import StepView, TracedStep, TraceRouting
from moesim.serving.step import Step
from moesim.trace import Trace

PROMPT, OUTPUT = 6, 3


def changing_trace() -> Trace:
    """Return a trace of one request; each row has new experts, the same in all four layers."""
    rows = PROMPT + OUTPUT - 1
    ids = np.repeat(np.array([[[(2 * r) % 8, (2 * r + 1) % 8]] for r in range(rows)]), 4, axis=1)
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=[rows],
        prompt_tokens=[PROMPT],
        num_experts=8,
        model_config=TINY_CONFIG,
    )


def test_rows_ahead_are_known_inside_a_prompt_and_nowhere_else() -> None:
    rows = np.arange(PROMPT + OUTPUT - 1)
    request = Request(0, arrival_ns=0, prompt_tokens=PROMPT, output_tokens=OUTPUT, rows=rows)
    known = [Step([(request, tokens)], 0, 0).known_ahead.tolist() for tokens in (4, 2, 1)]
    assert known == [[4, 5], [], []]


def test_the_view_wraps_into_the_next_step_as_far_as_it_is_known() -> None:
    source = TraceRouting(changing_trace())
    step, after = np.array([0]), np.array([1])
    view = StepView(TracedStep(source, step), 99, "oracle", source.unions(after)[0])
    view.move_to(3)
    assert list(view.exact(1)) == [2, 3]
    assert list(view.exact(2)) == [8 + 2, 8 + 3]
    assert list(view.exact(5)) == []


def test_predictions_are_the_distinct_experts_of_a_later_layer_without_unused_places() -> None:
    ids = np.tile([0, 1], (2, 3, 1))
    guesses = np.full((2, 3, 2, 2), -1)  # two rows, three layers, two depths, two places
    guesses[:, 0, 0] = [[5, 3], [3, 6]]
    guesses[:, 0, 1] = [[-1, 7], [2, -1]]
    guesses[:, 1, 0] = [4, -1]
    trace = Trace.from_arrays(
        expert_ids=ids,
        predictions=guesses,
        seq_len=[2],
        prompt_tokens=[2],
        num_experts=8,
        model_config={**TINY_CONFIG, "num_hidden_layers": 3},
    )
    step = TracedStep(TraceRouting(trace), np.array([0, 1]))
    predicted = [[step.predicted(layer, depth) for depth in (1, 2, 3)] for layer in range(3)]
    assert predicted[0] == [(8 + 5, 8 + 3, 8 + 6), (16 + 7, 16 + 2), ()]
    assert predicted[1] == [(16 + 4,), (), ()]
    assert predicted[2] == [(), (), ()]


def test_experts_of_the_next_chunk_of_a_prompt_are_fetched_in_the_step_before() -> None:
    scenario = tiny_scenario(
        hardware={"profile": "rtx-4090", "kernel_overhead": "1ms"},  # computing hides any copy
        batching={"token_budget": 1},
        cache={"policy": "lru", "slots": "4/layer"},
        prefetch={"policy": "oracle", "options": {"depth": 1}},
        timeline={"steps": 100},
    )
    ledger = run_on(plan_of(scenario, changing_trace())).ledger
    columns = ledger.timeline_columns()
    fetched = [
        start
        for kind, layer, start in zip(
            columns["kind"], columns["layer"], columns["start_ns"], strict=True
        )
        if (kind, layer) == ("prefetch", 0)
    ]
    begun = ledger.step_columns()["start_ns"].tolist()
    early = [start < begun[number // 2] for number, start in enumerate(fetched)]  # two a step
    # Of the first step nothing was known before; of a decoded token, only when its step begins.
    assert early == [False] * 2 + [True] * 2 * (PROMPT - 1) + [False] * 2 * (OUTPUT - 1)


def test_looking_further_than_there_are_layers_is_no_mistake() -> None:
    scenario = tiny_scenario(prefetch={"policy": "oracle", "options": {"depth": 40}})
    ledger = run_on(plan_of(scenario, changing_trace())).ledger
    assert ledger.step_columns()["misses"].sum() == 0
