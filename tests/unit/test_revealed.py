"""Routers reveal the experts of tokens that exist, and of no others.

A decoupled router reveals every queued token whose id exists. A static router reveals the experts
of all tokens of a request; no row is read for it whose token does not exist.

A token exists once the host knows its id: prompt tokens from arrival, and output tokens from the
time that the request records for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simpy
from workloads import plan_of, static_trace, tiny_scenario, tiny_trace

from moesim.machine.sim import SimMachine
from moesim.policies.view import Key
from moesim.serving.request import Request
from moesim.serving.routing import TraceRouting
from moesim.serving.step import Step
from moesim.simulate import Plan, SimPrices, build_server
from moesim.trace import Trace

Rows = npt.NDArray[np.int64]


class Questions(TraceRouting):
    """A routing source that records which rows are read, and which rows exist at that time.

    `requests` are those of the server.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.static = trace.meta.router == "static"
        self.requests: Sequence[Request] = ()
        self.queued: list[tuple[list[int], list[int]]] = []
        self.batched: list[tuple[list[int], list[int]]] = []
        self.ahead: list[tuple[list[int], list[int]]] = []
        self.passed_over = 0
        self.read: list[int] = []  # before their tokens existed
        self.continuing: list[list[int]] = []
        self.guessed: list[int] = []  # computed rows that were read once more
        self._step: Step | None = None

    def existing(self, request: Request) -> list[int]:
        """Return the rows of a request whose tokens exist and that no step has taken."""
        sampled = len(request.token_ns)
        rows = request.rows[: request.prompt_tokens + sampled]
        return [int(row) for row in rows[request.position :]] if not request.finished else []

    def rows_that_exist(self) -> set[int]:
        """Return all rows whose tokens exist."""
        return {
            row
            for request in self.requests
            for row in request.rows[: request.prompt_tokens + len(request.token_ns)].tolist()
        }

    def computed(self) -> set[int]:
        """Return all rows that this step or an earlier one computed."""
        return {row for r in self.requests for row in r.rows[: r.position].tolist()}

    def unfinished(self) -> list[int]:
        """Return the first row of each request that has arrived and continues after this step."""
        return [int(request.rows[0]) for request in self.requests if not request.finished]

    def step(self, step: Step) -> Any:
        self._step = step
        return super().step(step)

    def first_uses(self, rows: Rows) -> Mapping[Key, int]:
        there = [row for request in self.requests for row in self.existing(request)]
        guessed = [row for row in rows.tolist() if row in self.computed()]
        self.guessed += guessed
        self.read += [row for row in rows.tolist() if row not in self.rows_that_exist()]
        revealed = [row for row in rows.tolist() if self.static or row not in guessed]
        self.queued.append((sorted(revealed), sorted(there)))
        self.continuing.append(self.unfinished())
        assert self._step is not None
        served = {id(request) for request, *_ in self._step.parts}
        self.passed_over += sum(r.decoding and id(r) not in served for r in self.requests)
        return super().first_uses(rows)

    def experts(self, request: Request, tokens: int) -> Sequence[Sequence[int]]:
        self.batched.append((request.next_rows(tokens).tolist(), self.existing(request)[:tokens]))
        return super().experts(request, tokens)

    def unions(self, rows: Rows) -> Any:
        if self._step is not None and rows is self._step.known_ahead:
            there = {row for request in self.requests for row in self.existing(request)}
            self.ahead.append((sorted(rows.tolist()), sorted(there.intersection(rows.tolist()))))
        self.read += [row for row in rows.tolist() if row not in self.rows_that_exist()]
        return super().unions(rows)


def served(plan: Plan) -> Questions:
    env = simpy.Environment()
    questions = Questions(plan.trace)
    server = build_server(plan, SimMachine(env, SimPrices(plan.cost)), routing=questions)
    questions.requests = server.requests
    env.run(until=env.process(server.run()))
    assert all(request.finished for request in server.requests)
    return questions


@pytest.mark.parametrize("kv", ["auto", 40 * 16384], ids=["roomy", "preempting"])
@pytest.mark.parametrize("prefetch", ["none", "layer_ahead"])
@pytest.mark.parametrize("batching", ["expert_aware", "decode_first", "prefill_first"])
@pytest.mark.parametrize("recent_rows", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_only_tokens_that_exist_are_requested_of_the_router(
    seed: int, recent_rows: int, batching: str, prefetch: str, kv: Any
) -> None:
    trace = tiny_trace(requests=6, prompt_tokens=7, output_tokens=6, seed=seed, stickiness=0.3)
    cache = {"policy": "lookahead", "slots": "3/layer"}
    scenario = tiny_scenario(
        memory={"kv": kv, "kv_block_tokens": 4},
        batching={"policy": batching, "token_budget": 3, "max_sequences": 5},
        cache={**cache, "options": {"recent_rows": recent_rows}},
        prefetch=prefetch,
    )
    questions = served(plan_of(scenario, trace.with_meta(router="decoupled")))
    for asked, there in (*questions.queued, *questions.batched, *questions.ahead):
        assert asked == there
    assert questions.queued
    assert not questions.read
    assert bool(questions.guessed) == (recent_rows > 0)
    assert bool(questions.batched) == (batching == "expert_aware")
    assert bool(questions.ahead) == (prefetch == "layer_ahead")
    if batching != "decode_first":
        assert questions.passed_over  # sampled, and left for a later step


@pytest.mark.parametrize("kv", ["auto", 40 * 16384], ids=["roomy", "preempting"])
@pytest.mark.parametrize("batching", ["task_aware", "decode_first"])
@pytest.mark.parametrize("seed", range(4))
def test_a_static_router_reveals_all_requests_and_reads_no_token_that_does_not_exist(
    seed: int, batching: str, kv: Any
) -> None:
    trace = tiny_trace(requests=6, prompt_tokens=7, output_tokens=6, seed=seed, stickiness=0.3)
    scenario = tiny_scenario(
        memory={"kv": kv, "kv_block_tokens": 4},
        batching={"policy": batching, "token_budget": 3, "max_sequences": 5},
        cache={"policy": "lookahead", "slots": "3/layer"},
        prefetch="layer_ahead",
    )
    questions = served(plan_of(scenario, static_trace(trace, 3)))
    assert questions.queued
    assert not questions.read
    for (asked, _), there in zip(questions.queued, questions.continuing, strict=True):
        assert asked == sorted(there)
    assert any(len(there) < len(asked) for asked, there in questions.ahead)  # of decoded tokens


def test_layer_0_of_a_decoded_token_is_fetched_as_its_step_begins() -> None:
    """Not before, when the token did not exist, nor only once the layer asks for it."""
    trace = tiny_trace(requests=1, prompt_tokens=1, output_tokens=8, stickiness=0.0)
    plan = plan_of(
        tiny_scenario(cache={"slots": "2/layer"}, prefetch="layer_ahead", timeline={"steps": 100}),
        trace.with_meta(router="decoupled"),
    )
    env = simpy.Environment()
    server = build_server(plan, SimMachine(env, SimPrices(plan.cost)))
    env.run(until=env.process(server.run()))
    server.ledger.finish(int(env.now))
    begun = server.ledger.step_columns()["start_ns"].tolist()
    columns = server.ledger.timeline_columns()
    lines = zip(*(columns[key] for key in ("kind", "layer", "step", "start_ns")), strict=True)
    first: dict[int, int] = {}
    for kind, layer, step, start in lines:
        if kind == "prefetch" and layer == 0:
            first[step] = min(start, first.get(step, start))
    assert len(first) > 5
    assert all(start == begun[step] for step, start in first.items())
    assert sum(server.ledger.demand_copies) == 0
