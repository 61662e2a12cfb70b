"""Runs so small that their time is a sum one can write down, to the nanosecond.

Each expectation is spelled in prices of operations and copies, in the order in which lanes work
through them; one is followed down to the digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from round_figures import same_experts
from watched_machines import watch
from workloads import REFACTORED_CONFIG, everything, plan_of, run_on, tiny_scenario, tiny_trace

from moesim.cost.roofline import CostModel
from moesim.hardware import BatchShape
from moesim.machine.events import EventMachine
from moesim.results.metrics import latency_summary
from moesim.serving.request import Request
from moesim.simulate import Outcome, Plan
from moesim.trace import Trace

LAYERS, TOP_K = 4, 2
both_configs = pytest.mark.parametrize("dense", [(), (0, 3)], ids=["all MoE", "two dense layers"])


def serve(trace: Trace, **changes: Any) -> tuple[Plan, Outcome]:
    """Run on both simulated machines, which must agree."""
    plan = plan_of(tiny_scenario(timeline={"steps": 1000}, **changes), trace)
    outcome = run_on(plan)
    assert everything(outcome) == everything(run_on(plan, EventMachine))
    return plan, outcome


class Bill:
    """Prices by their short names."""

    def __init__(self, plan: Plan) -> None:
        self.cost: CostModel = plan.cost
        self.hardware = plan.cost.hardware
        self.dense = plan.cost.shape.dense_layers
        self.routed = plan.cost.shape.moe_layers[0]

    def back(self, count: int) -> int:
        """Return the time until `count` ids of 4 bytes reach the host."""
        return self.hardware.readback_latency_ns + self.cost.copy_ns("d2h", 4 * count)

    def resident_step(self, tokens: int, entries: int, pairs: int, experts: int = 2) -> int:
        """Return the time of a step whose experts are all resident: its operations run in a row."""
        cost, batch = self.cost, BatchShape(tokens, entries, pairs, 1)
        layer = (
            cost.front_ns(self.routed, batch)
            + self.back(tokens * TOP_K)
            + cost.experts_ns((tokens,) * experts)
        )
        denses = sum(cost.dense_ns(model_layer, batch) for model_layer in self.dense)
        return LAYERS * layer + denses + cost.tail_ns(batch) + self.back(1)

    def cold_step(self, tokens: int, entries: int, pairs: int) -> int:
        """Return the time of a step that copies two experts a layer.

        The first expert is computed while the second is copied.
        """
        cost, batch = self.cost, BatchShape(tokens, entries, pairs, 1)
        copy, work = cost.copy_ns("h2d", cost.expert_bytes), cost.experts_ns((tokens,))
        layer = cost.front_ns(self.routed, batch) + self.back(tokens * TOP_K)
        layer += copy + max(copy, work) + work
        denses = sum(cost.dense_ns(model_layer, batch) for model_layer in self.dense)
        return LAYERS * layer + denses + cost.tail_ns(batch) + self.back(1)


@both_configs
def test_a_request_whose_experts_stay_is_one_cold_step_and_then_resident_ones(
    dense: tuple[int, ...],
) -> None:
    """A prompt of 3, 4 answers: one prefill step, then 3 decode steps of 4, 5, 6 entries."""
    plan, outcome = serve(costed_trace(same_experts(6), prompt=3, dense=dense))
    bill = Bill(plan)
    expected = [bill.cold_step(3, 3, 6)]
    for entries in (4, 5, 6):
        expected.append(expected[-1] + bill.resident_step(1, entries, entries))
    assert outcome.requests[0].token_ns == expected
    assert outcome.now_ns == expected[-1]


def test_the_first_step_down_to_the_digits() -> None:
    """A prompt of one token on an RTX 4090 with round figures.

    1 byte a picosecond is reached in GPU memory, 20 GB/s on the link, arithmetic is cheap:
    - an expert has 3 * 512 * 1024 weights of 2 bytes = 3,145,728 B: 3146 ns to read, and
      157,287 ns to copy after 10,000 ns of latency;
    - a front has 4 * 512 * 512 weights of attention, 512 * 8 of router, 2 * 512 of norms:
      2,107,392 B, one entry read and one written (2 * 2 * 8 * 64 * 2 = 4096 B): 2112 ns;
    - the tail reads one embedding row and the head: 1024 + 1,024,000 B: 1026 ns;
    - two ids of 4 bytes come back in 1000 + 10,000 + 1 ns, a token in as much;
    - each operation has an overhead of 5000 ns.
    """
    hardware = {
        "profile": "rtx-4090",
        "memory_bandwidth": 10**12,
        "memory_efficiency": "100%",
        "flops": 10**15,
        "kernel_overhead": "5us",
        "h2d": {"bandwidth": "20GB/s", "latency": "10us"},
        "d2h": {"bandwidth": "20GB/s", "latency": "10us"},
        "readback_latency": "1us",
    }
    _, outcome = serve(costed_trace(same_experts(1)), hardware=hardware)
    front, back, copy, expert = 2112 + 5000, 1000 + 10_000 + 1, 10_000 + 157_287, 3146 + 5000
    layer = front + back + 2 * copy + expert
    assert outcome.now_ns == 4 * layer + (1026 + 5000) + back == 1_460_359


@pytest.mark.parametrize(
    ("requests", "prompt", "budget", "tokens", "sampled"),
    [(1, 5, 2, [2, 2, 1, 1], [0, 0, 1, 1]), (3, 1, 8, [3, 3], [3, 3])],
    ids=["chunks", "crowd"],
)
def test_ids_and_sampled_tokens_come_back_at_four_bytes_each(
    requests: int, prompt: int, budget: int, tokens: list[int], sampled: list[int]
) -> None:
    """Of each row its top-k ids, layer by layer; then a token for each sequence that emits one. A
    step that samples none sends one back all the same, to say that it is over."""
    trace = tiny_trace(requests=requests, prompt_tokens=prompt, output_tokens=2)
    plan, outcome = serve(trace, batching={"token_budget": budget})
    asked = [work.nbytes for work in watch(plan)[1].log if work.kind == "readback"]
    expected = [
        size
        for rows, emitted in zip(tokens, sampled, strict=True)
        for size in (*[4 * rows * TOP_K] * LAYERS, 4 * max(1, emitted))
    ]
    assert asked == expected
    assert outcome.ledger.moved_bytes["readback"] == sum(expected)


@pytest.mark.parametrize("flops", ["165.2TFLOPS", "1GFLOPS"], ids=["memory-bound", "arithmetic"])
def test_chunked_prefill_adds_its_steps_up(flops: str) -> None:
    """A prompt of 5 in steps of 2, 2 and 1: only the last one samples a token.

    Where arithmetic is what takes time, each pair of a row and one at or before it counts."""
    plan, outcome = serve(
        costed_trace(same_experts(5)),
        hardware={"profile": "rtx-4090", "flops": flops},
        batching={"token_budget": 2},
        cache={"slots": "100%"},
    )
    cost, bill = plan.cost, Bill(plan)
    batches = [BatchShape(2, 2, 3, 0), BatchShape(2, 4, 7, 0), BatchShape(1, 5, 5, 1)]
    expected = 0
    for number, batch in enumerate(batches):
        layer = cost.front_ns(0, batch) + bill.back(batch.tokens * TOP_K)
        work = cost.experts_ns((batch.tokens,))
        copy = cost.copy_ns("h2d", cost.expert_bytes)
        cold = copy + max(copy, work) + work
        experts = cost.experts_ns((batch.tokens,) * 2) if number else cold
        expected += LAYERS * (layer + experts) + cost.tail_ns(batch) + bill.back(1)
    assert outcome.requests[0].token_ns == [expected]


def test_a_decoupled_router_is_paid_once_a_step_and_no_layer_pays_for_one() -> None:
    """A prompt of 3, 2 answers, all experts resident from the second step on: the tail has the
    router over the rows of the step, the fronts have none, and no ids come back."""
    trace = costed_trace(same_experts(4), prompt=3, model_config=REFACTORED_CONFIG)
    plan, outcome = serve(trace.with_meta(router="decoupled"))
    layerwise, _ = serve(costed_trace(same_experts(4), prompt=3))
    cost, without, bill = plan.cost, layerwise.cost, Bill(plan)
    copy, work = cost.copy_ns("h2d", cost.expert_bytes), cost.experts_ns((3,))
    cold, warm = BatchShape(3, 3, 6, 1), BatchShape(1, 4, 4, 1)
    steps = [(cold, copy + max(copy, work) + work), (warm, cost.experts_ns((1, 1)))]
    times = []
    for batch, experts in steps:
        saved = without.front_ns(0, batch) - cost.front_ns(0, batch)
        assert saved == pytest.approx(2 * 512 * 8 / (0.8 * 1008), abs=1)  # bytes a nanosecond
        assert cost.tail_ns(batch) == without.tail_ns(batch) + cost.router_ns(batch)
        layers = LAYERS * (cost.front_ns(0, batch) + experts)
        times.append(layers + cost.tail_ns(batch) + bill.back(1))
    assert outcome.requests[0].token_ns == [times[0], sum(times)]


def test_two_requests_in_one_step_share_it() -> None:
    """Two prompts of one row with different experts: four are loaded, one after another."""
    rows = np.array([[[0, 1]] * LAYERS, [[2, 3]] * LAYERS])
    trace = costed_trace(rows, seq_len=[1, 1])
    plan, outcome = serve(trace)
    cost, bill, batch = plan.cost, Bill(plan), BatchShape(2, 2, 2, 2)
    copy, work = cost.copy_ns("h2d", cost.expert_bytes), cost.experts_ns((1,))
    assert copy > work
    layer = cost.front_ns(0, batch) + bill.back(4) + 4 * copy + work
    expected = LAYERS * layer + cost.tail_ns(batch) + bill.back(2)
    assert [request.token_ns for request in outcome.requests] == [[expected], [expected]]


def test_without_slots_two_staging_buffers_alternate() -> None:
    """Three experts through two buffers: the third copy waits until the first is computed."""
    rows = np.array([[[0, 1]] * LAYERS, [[0, 2]] * LAYERS])
    slow = {"profile": "rtx-4090", "memory_bandwidth": "2GB/s"}  # computing outlasts copying
    plan, outcome = serve(
        costed_trace(rows), hardware=slow, cache={"slots": 0}, memory={"staging": 2}
    )
    cost, bill, batch = plan.cost, Bill(plan), BatchShape(2, 2, 3, 1)
    copy = cost.copy_ns("h2d", cost.expert_bytes)
    first, second = cost.experts_ns((2,)), cost.experts_ns((1,))
    assert second > copy
    first_done = copy + first
    second_done = first_done + second
    third_done = max(second_done, first_done + copy) + second
    layer = cost.front_ns(0, batch) + bill.back(4) + third_done
    assert outcome.now_ns == LAYERS * layer + cost.tail_ns(batch) + bill.back(1)
    assert outcome.ledger.waves_max == 2


def test_a_late_hit_waits_for_the_rest_of_its_copy_only() -> None:
    """Oracle prefetch of one layer ahead on a slow link: all but the first layer's experts are on
    their way when they are wanted, right behind the copies before them."""
    slow = {"profile": "rtx-4090", "h2d": {"bandwidth": "1GB/s", "latency": "10us"}}
    plan, outcome = serve(
        costed_trace(same_experts(1)), hardware=slow, prefetch={"policy": "oracle"}
    )
    cost, bill, batch = plan.cost, Bill(plan), BatchShape(1, 1, 1, 1)
    copy, work = cost.copy_ns("h2d", cost.expert_bytes), cost.experts_ns((1,))
    front = cost.front_ns(0, batch) + bill.back(2)
    assert copy > front + work
    # The oracle asks at the start of the step, for layer 0: at once its copies begin.
    landed = [copy * number for number in range(1, 2 * LAYERS + 1)]
    clock = 0
    for layer in range(LAYERS):
        asked = clock + front
        if layer == 0:
            assert asked < landed[0]
        first = max(asked, landed[2 * layer]) + work
        clock = max(first, landed[2 * layer + 1]) + work
    assert outcome.now_ns == clock + cost.tail_ns(batch) + bill.back(1)
    ledger = outcome.ledger
    assert (sum(ledger.hits), sum(ledger.late_hits)) == (0, 2 * LAYERS)
    assert ledger.prefetch_late == 2 * LAYERS


def test_a_prefetch_that_lands_in_time_costs_nothing() -> None:
    """With computing slower than copying, only the first layer waits for its experts."""
    slow = {"profile": "rtx-4090", "memory_bandwidth": "1GB/s"}
    plan, outcome = serve(
        costed_trace(same_experts(1)), hardware=slow, prefetch={"policy": "oracle"}
    )
    cost, bill, batch = plan.cost, Bill(plan), BatchShape(1, 1, 1, 1)
    copy = cost.copy_ns("h2d", cost.expert_bytes)
    front = cost.front_ns(0, batch) + bill.back(2)
    assert 2 * copy < front
    step = LAYERS * (front + cost.experts_ns((1, 1))) + cost.tail_ns(batch) + bill.back(1)
    assert outcome.now_ns == step
    assert sum(outcome.ledger.hits) == 2 * LAYERS
    assert outcome.ledger.prefetch_useful == 2 * LAYERS


def test_a_demand_copy_overtakes_a_queued_prefetch_at_its_chunk() -> None:
    """Layer 0's experts are wanted while predictions for layer 1 are being copied in chunks.

    Layer 1's true experts are not those predicted: their copies go at the first chunk boundary
    after they were asked for."""
    rows = np.array([[[0, 1], [0, 1], [0, 1], [0, 1]]])
    guesses = np.full((1, LAYERS, 1, TOP_K), -1)
    guesses[0, 0, 0] = [6, 7]
    trace = costed_trace(rows, predictions=guesses)
    chunk = 500_000
    slow = {
        "profile": "rtx-4090",
        "h2d": {"bandwidth": "1GB/s", "latency": "10us", "chunk": chunk},
    }
    plan, outcome = serve(trace, hardware=slow, prefetch={"policy": "predicted"})
    cost, bill, batch = plan.cost, Bill(plan), BatchShape(1, 1, 1, 1)
    copy, work = cost.copy_ns("h2d", cost.expert_bytes), cost.experts_ns((1,))
    front = cost.front_ns(0, batch) + bill.back(2)
    landed = front + 2 * copy  # layer 0, both missing
    prefetched = landed  # when the link starts on the prediction for layer 1
    asked = landed + work + front  # layer 1 is known, and its experts are missing
    boundary = prefetched + cost.copy_ns("h2d", chunk)
    while boundary < asked:
        boundary += cost.copy_ns("h2d", 2 * chunk) - cost.copy_ns("h2d", chunk)
    clock = boundary + 2 * copy + work
    for _ in range(2):  # layers 2 and 3: the rest of the prefetches lies between
        asked = clock + front
        demands = [row for row in outcome.ledger.timeline if row[1] == "demand"]
        start = min(row[2] for row in demands if row[2] >= asked)
        assert start - asked < cost.copy_ns("h2d", 2 * chunk) - cost.copy_ns("h2d", chunk)
        clock = start + 2 * copy + work
    assert outcome.now_ns == clock + cost.tail_ns(batch) + bill.back(1)
    starts = sorted(row[2] for row in outcome.ledger.timeline if row[1] == "demand")
    assert starts[2] == boundary


def test_a_request_that_arrives_later_starts_when_it_arrives(tmp_path: Any) -> None:
    """Two requests far apart never meet: the second costs a resident step from its arrival."""
    (tmp_path / "far.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n0.001,1,1\n5,1,1\n", encoding="utf-8"
    )
    path = str(tmp_path / "far.csv")
    trace = costed_trace(same_experts(1))
    workload = {"arrivals": {"kind": "csv", "path": path}}
    plan, outcome = serve(trace, workload=workload, cache={"slots": "100%"})
    bill = Bill(plan)
    first, second = outcome.requests
    # Times of a file count from its first arrival.
    assert first.token_ns == [bill.cold_step(1, 1, 1)]
    assert second.token_ns == [4_999_000_000 + bill.resident_step(1, 1, 1)]


def test_normalised_latency_is_end_to_end_time_by_generated_tokens() -> None:
    requests: list[Request] = []
    for arrival_ns, token_ns in ((0, [4_000_000, 6_000_000]), (2_000_000, [9_000_000])):
        request = Request(
            len(requests),
            arrival_ns=arrival_ns,
            prompt_tokens=1,
            output_tokens=len(token_ns),
            rows=np.zeros(len(token_ns), np.int64),
        )
        request.token_ns, request.status = token_ns, "finished"
        requests.append(request)
    summary = latency_summary(requests)
    assert summary["normalised_mean_ms"] == (6 / 2 + 7 / 1) / 2
    assert summary["normalised_p50_ms"] == 5.0
