"""A folded step is exactly the walk through its layers, and its times are checked all the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy
from costed_traces import costed_trace
from workloads import decisions, everything, plan_of, random_case, run_on, tiny_scenario

from moesim.errors import InvariantError
from moesim.hardware import CostModel, load_hardware, named_shape
from moesim.hardware.ops import BatchShape, Copy, Dense, Front
from moesim.hardware.topology import GPU, H2D
from moesim.machine.base import Folding
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.step_times import FREE, RESIDENTS, EventTimes, EventTimesMemo, StepBytes
from moesim.machine.work import Work
from moesim.serving.step_sums import check_event_times
from moesim.simulate import Outcome, Plan, SimPrices, build_server, finish, summarise
from moesim.trace import Trace

BLOCKS = 8


class Walking(SimMachine):
    """The simulated machine without its shortcut."""

    fold = None  # type: ignore[assignment]


def foldable(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case in which no copy is in flight when a layer event begins."""
    scenario, trace = random_case(seed)
    scenario |= {"prefetch": {"policy": "none"}, "replay": "atomic"}
    scenario["cache"].pop("write_back", None)
    scenario["timeline"] = {"steps": random.Random(seed).choice([0, 3, 1000])}
    if seed % 3 == 0 and scenario["cache"]["policy"] != "min":
        trace = with_gaps(trace, seed)
    return scenario, trace


def with_gaps(trace: Trace, seed: int) -> Trace:
    """Return such a case with unused places, sometimes all of a layer, and with dense layers."""
    rng = np.random.default_rng(seed)
    ids = np.asarray(trace.expert_ids[:]).astype(int)
    ids[rng.random(ids.shape) < 0.2] = -1
    ids[rng.random(ids.shape[:2]) < 0.3] = -1
    return costed_trace(
        ids,
        dense=(0, 3) if seed % 2 else (),
        seq_len=trace.requests["num_rows"],
        prompt_tokens=trace.requests["prompt_tokens"],
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_folded_step_equals_the_walk_through_its_layers(block: int) -> None:
    for seed in range(4000 + block, 4160, BLOCKS):
        plan = plan_of(*foldable(seed))
        folded = run_on(plan)
        walked = run_on(plan, Walking)
        assert everything(folded) == everything(walked), seed
        assert decisions(folded) == decisions(walked), seed
        assert summarise(folded) == summarise(walked), seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_folded_step_equals_one_event_per_chunk(block: int) -> None:
    for seed in range(4200 + block, 4260, BLOCKS):
        plan = plan_of(*foldable(seed))
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


def test_steps_are_folded_wherever_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would compare a walk with a walk."""
    folds = 0
    fold = SimMachine.fold

    def counted(*given: Any) -> Any:
        nonlocal folds
        folds += 1
        return fold(*given)

    monkeypatch.setattr(SimMachine, "fold", counted)
    scenario, trace = foldable(4001)
    steps = len(run_on(plan_of(scenario, trace)).ledger.steps)
    assert folds == steps > 0
    for changes in ({"prefetch": {"policy": "oracle"}}, {"replay": "sequential"}):
        run_on(plan_of(scenario | changes, trace))
    assert folds == steps
    assert not any(isinstance(make, Folding) for make in (Walking, EventMachine))


def beside(neighbour: Callable[[simpy.Environment], Any]) -> Callable[[Plan], Outcome]:
    """Serve a plan while another process lives in the same time."""

    def run(plan: Plan) -> Outcome:
        env = simpy.Environment()
        env.process(neighbour(env))
        machine = SimMachine(env, SimPrices(plan.cost))
        server = build_server(plan, machine)
        env.run(until=env.process(server.run()))
        assert env.now == machine.now_ns
        return finish(plan, server, machine.now_ns)

    return run


@pytest.mark.parametrize("seed", range(4300, 4306))
def test_another_process_in_the_same_simulation_changes_nothing(seed: int) -> None:
    ticks: list[int] = []

    def ticking(env: simpy.Environment) -> Any:
        while True:
            yield env.timeout(100_003)
            ticks.append(int(env.now))

    plan = plan_of(*foldable(seed))
    alone, together = run_on(plan), beside(ticking)(plan)
    assert everything(alone) == everything(together)
    assert len(ticks) == (alone.now_ns - 1) // 100_003


def test_a_step_is_folded_on_idle_lanes_only() -> None:
    plan = plan_of(tiny_scenario(), costed_trace([[[0, 1]]]))
    machine = SimMachine(simpy.Environment(), SimPrices(plan.cost))
    machine.submit(Work(H2D, Copy(0, 1000)))
    events = [((), ((1, 1), (), ()))]
    with pytest.raises(InvariantError, match="under way"):
        machine.fold(BatchShape(1, 1, 1, 1), events, StepBytes(1000, 8, 4))


def test_folded_steps_follow_each_other_without_a_pause() -> None:
    plan = plan_of(tiny_scenario(), costed_trace([[[0, 1]]]))
    machine = SimMachine(simpy.Environment(), SimPrices(plan.cost))
    given = (BatchShape(1, 1, 1, 1), [((0, 1), ((1, 1), (True, True), ()))], StepBytes(1000, 8, 4))
    first, second = machine.fold(*given), machine.fold(*given)
    assert (first.start_ns, second.start_ns) == (0, first.finish_ns)
    assert second.finish_ns == 2 * first.finish_ns
    assert first.events[0] is second.events[0]
    front = Work(GPU, Front(0, BatchShape(1, 1, 1, 1)))
    machine.submit(front)
    assert front.start_ns == second.finish_ns


# --- times of one event ---------------------------------------------------------------------------


def event_times(
    rows: tuple[int, ...], absent: tuple[bool, ...], after: tuple[int, ...]
) -> EventTimes:
    """Return the times of a layer event: 10 ns per row, 1 ns per call, 100 ns per copy."""
    return EventTimes((rows, absent, after), lambda tokens: 1 + 10 * sum(tokens), 100)


def test_the_times_of_a_layer_event_are_those_worked_out_by_hand() -> None:
    """Two residents with 3 rows; of the three copied in, the first overwrites a resident, the
    second finds a free buffer, the third the buffer of the second."""
    it = event_times((1, 4, 2, 5, 6), (False, True, False, True, True), (RESIDENTS, FREE, 2))
    assert (it.starts, it.finishes) == ([0, 131, 231, 382], [31, 172, 282, 443])
    assert (it.departures, it.landings) == ([31, 131, 282], [131, 231, 382])
    assert (it.residents, it.loads, it.duration_ns) == ((1, 2), (4, 5, 6), 443)
    check_event_times(it)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (4, {"starts": [0, 130, 231]}),
        (5, {"departures": [30, 131]}),
        (6, {"departures": [31]}),
        (9, {"departures": [31, 130]}),
        (9, {"starts": [0, 131, 171]}),
        (9, {"duration_ns": 281}),
    ],
)
def test_impossible_times_of_a_layer_event_are_refused(number: int, change: dict[str, Any]) -> None:
    it = event_times((1, 4, 2, 5), (False, True, False, True), (RESIDENTS, FREE))
    check_event_times(it)
    for name, value in change.items():
        setattr(it, name, value)
    with pytest.raises(InvariantError) as caught:
        check_event_times(it)
    assert caught.value.number == number


@pytest.mark.parametrize(
    ("off", "number"),
    [({"finish_ns": -5}, 9), ({"tail_ns": -1}, 9), ({"start_ns": -1, "finish_ns": -1}, 15)],
)
def test_wrong_times_of_a_folded_step_are_detected(
    monkeypatch: pytest.MonkeyPatch, off: dict[str, int], number: int
) -> None:
    """The times of the third step are off by the numbers in `off`."""
    fold = SimMachine.fold
    steps_times: list[Any] = []

    def lying(*arguments: Any) -> Any:
        steps_times.append(fold(*arguments))
        if len(steps_times) != 3:
            return steps_times[-1]
        false = {name: getattr(steps_times[-1], name) + by for name, by in off.items()}
        return steps_times[-1]._replace(**false)

    monkeypatch.setattr(SimMachine, "fold", lying)
    rows = [[[0, 1]], [[1, 2]], [[3, 4]], [[5, 6]]]
    with pytest.raises(InvariantError) as caught:
        run_on(plan_of(tiny_scenario(), costed_trace(rows, prompt=1)))
    assert caught.value.number == number


def test_a_full_memo_of_event_times_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.machine.step_times._MEMO_LIMIT", 3)
    memo = EventTimesMemo(sum, 7)
    shapes = [((rows,), (True,), ()) for rows in (1, 2, 3, 4, 1, 2)]
    assert [memo[shape].duration_ns for shape in shapes] == [8, 9, 10, 11, 8, 9]
    assert len(memo) <= 3


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b"])
def test_the_price_of_all_layers_is_that_of_each(name: str) -> None:
    shape = named_shape(name)
    cost = CostModel(load_hardware("rtx-4090"), shape)
    batch = BatchShape(3, 5000, 5000, 2)
    dense = set(shape.dense_layers)
    each = [
        cost.compute_ns(Dense(layer, batch) if layer in dense else Front(layer, batch))
        for layer in range(shape.num_layers)
    ]
    assert cost.layers_ns(batch) == each
