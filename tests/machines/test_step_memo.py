"""A step timed at once is exactly the walk through its layers, and its times are checked too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import simpy
from costed_traces import costed_trace
from layer_events import (
    FIVE_LANES,
    HandPrices,
    decision,
    event_times,
    memo_of,
    program_on,
    run_on_five_lanes,
)
from timed_cases import timed_at_once, with_gaps
from workloads import (
    decisions,
    everything,
    plan_of,
    random_case,
    run_on,
    tiny_scenario,
    tiny_trace,
)

from moesim.cost.roofline import CostModel
from moesim.errors import InvariantError
from moesim.hardware import load_hardware
from moesim.hardware.ops import BatchShape, Copy, Dense, Experts, Front
from moesim.hardware.topology import CPU, GPU, H2D
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.work import Work
from moesim.model.shapes import named_shape
from moesim.serving import step_memo
from moesim.serving.experts.program import Hidden
from moesim.serving.experts.slots import Slot
from moesim.serving.issue import HostTimes, Issuer
from moesim.serving.ledger import StepFacts
from moesim.serving.stalls import CAUSES, DEMAND, Entry
from moesim.serving.step_memo import EventTimes, StepBytes, StepMemo, Twinned
from moesim.simulate import Outcome, Plan, SimPrices, build_server, finish, summarise
from moesim.trace import Trace

BLOCKS = 8


class Walking(SimMachine):
    """The simulated machine without a twin, so that no step can be timed at once."""

    twin = None  # type: ignore[assignment]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_step_timed_at_once_equals_the_walk_through_its_layers(block: int) -> None:
    for seed in range(4000 + block, 4160, BLOCKS):
        plan = plan_of(*timed_at_once(seed))
        at_once = run_on(plan)
        walked = run_on(plan, Walking)
        assert everything(at_once) == everything(walked), seed
        assert decisions(at_once) == decisions(walked), seed
        assert summarise(at_once) == summarise(walked), seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_step_timed_at_once_equals_one_event_per_chunk(block: int) -> None:
    for seed in range(4200 + block, 4260, BLOCKS):
        plan = plan_of(*timed_at_once(seed))
        assert everything(run_on(plan)) == everything(run_on(plan, EventMachine)), seed


def count_timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the steps that will be timed at once; the list grows."""
    numbers: list[int] = []
    step = StepMemo.step

    def counted(memo: StepMemo, number: int, *given: Any) -> int:
        numbers.append(number)
        return step(memo, number, *given)

    monkeypatch.setattr(StepMemo, "step", counted)
    return numbers


def test_steps_are_timed_at_once_wherever_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would compare a walk with a walk."""
    timed = count_timed(monkeypatch)
    scenario, trace = timed_at_once(4001)
    steps = len(run_on(plan_of(scenario, trace)).ledger.steps)
    assert timed == list(range(steps))
    assert steps > 0
    for changes in ({"prefetch": {"policy": "oracle"}}, {"replay": "sequential"}):
        run_on(plan_of(scenario | changes, trace))
    scenario["cache"] = {"policy": "lru", "slots": 9, "write_back": True}
    run_on(plan_of(scenario, trace))
    assert len(timed) == steps
    prices = HandPrices()
    assert isinstance(SimMachine(simpy.Environment(), prices), Twinned)
    assert not isinstance(Walking(simpy.Environment(), prices), Twinned)
    assert not isinstance(EventMachine(simpy.Environment(), prices), Twinned)


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

    plan = plan_of(*timed_at_once(seed))
    alone, together = run_on(plan), beside(ticking)(plan)
    assert everything(alone) == everything(together)
    assert len(ticks) == (alone.now_ns - 1) // 100_003


def test_a_twin_is_idle_and_changes_nothing_on_the_machine() -> None:
    machine = SimMachine(simpy.Environment(), HandPrices(), FIVE_LANES)
    machine.submit(Work(H2D, Copy(0, 1000)))
    twin = machine.twin()
    first = Work(H2D, Copy(0, 1000))
    twin.submit(first)
    assert (first.start_ns, twin.settle(), twin.now_ns) == (0, 100, 100)
    second = Work(H2D, Copy(0, 1000))
    machine.submit(second)
    assert (second.start_ns, machine.now_ns) == (100, 0)
    on_cpu = Work(CPU, Experts(0, (0,), (1,)))
    twin.submit(on_cpu)
    assert on_cpu.start_ns == 100


def test_steps_timed_at_once_follow_each_other_without_a_pause() -> None:
    memo, ledger = memo_of(HandPrices(other_ns=7))
    batch, sizes, facts = BatchShape(1, 1, 1, 1), StepBytes(8, 4), StepFacts(1, 0, 1, 1)
    event = memo.event(decision((1, 1), (True, True)), (0, 1), (1, 1), 1)
    again = memo.event(decision((1, 1), (True, True), keys=(5, 3)), (5, 3), (1, 1), 1)
    assert event is again
    ends = [0]
    for number in range(3):
        ends.append(memo.step(number, ends[-1], batch, [event], sizes, facts))
    memo.flush()
    # Front and end, the readbacks of ids and tokens, and the event of two copies.
    assert ends == [0, 7 + 8 + 211 + 7 + 4, 2 * ends[1], 3 * ends[1]]
    columns = ledger.step_columns()
    assert columns["start_ns"].tolist() == ends[:-1]
    assert columns["finish_ns"].tolist() == ends[1:]


def test_a_timeline_is_as_long_as_it_is_asked_for() -> None:
    """Steps are added to the ledger in groups; the timeline gets each before its group is full."""
    trace = tiny_trace(requests=1, prompt_tokens=2, output_tokens=300, seed=1)
    plan = plan_of(tiny_scenario(timeline={"first_step": 100, "steps": 200}), trace)
    at_once = run_on(plan)
    assert everything(at_once) == everything(run_on(plan, Walking))
    assert {row[4] for row in at_once.ledger.timeline} == set(range(100, 300))


# --- times of one event ---------------------------------------------------------------------------


def spans(times: EventTimes, lane: str) -> list[tuple[int, int]]:
    """Return the start and the finish of each work of an event on one lane."""
    return [
        (entry.work.start_ns, entry.work.finish_ns)
        for entry in times.entries
        if entry.work.lane == lane
    ]


ROWS, ABSENT = (1, 4, 2, 5, 6), (False, True, False, True, True)
BUFFERS = (0, 0, 1, 2, 2)
"""Two residents with 3 rows; of the three copied in, the first overwrites a resident, the second
finds a free buffer, the third the buffer of the second."""


def test_the_times_of_a_layer_event_are_those_worked_out_by_hand() -> None:
    it = event_times(ROWS, ABSENT, BUFFERS)
    assert spans(it, GPU) == [(0, 31), (131, 172), (231, 282), (382, 443)]
    assert spans(it, H2D) == [(31, 131), (131, 231), (282, 382)]
    assert it.duration_ns == 443
    assert [entry.kind for entry in it.entries] == ["experts", *["demand", "experts"] * 3]
    hits, loads, elsewhere, missed, nbytes, rows, waves, *rest = it.sums
    assert (hits, loads, elsewhere, missed, nbytes) == (2, 3, 0, 15, 3000)
    assert (rows, waves) == (18, 1)
    stalls, busy, moved = rest[:7], rest[7:10], rest[10:]
    assert stalls == [443 - 184 if cause == DEMAND else 0 for cause in range(7)]
    assert busy == [31 + 41 + 51 + 61, 300, 0]
    assert moved == [3000, 0, 0, 0, 0, 0]


def test_an_event_without_copies_lasts_as_long_as_one_call() -> None:
    it = event_times((1, 4, 2), (False,) * 3)
    assert (spans(it, GPU), it.duration_ns, spans(it, H2D)) == ([(0, 71)], 71, [])
    assert event_times((), ()).duration_ns == 0


def test_what_an_event_leaves_in_its_slots_is_done_at_the_next() -> None:
    slots = [Slot(0), Slot(1)]
    it = decision((1, 2), (False, True))._replace(held=slots[:1], loads=[(1, 2, slots[1])])
    memo_of(HandPrices())[0].event(it, (0, 1), (1, 2), 3)
    assert [(slot.reader, slot.landing) for slot in slots] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("buffers", "waves", "lasts"), [((3, 4, 5), 1, 351), ((3, 4, 4), 2, 402), ((3, 3, 3), 3, 453)]
)
def test_buffers_used_twice_have_other_times_than_buffers_used_once(
    buffers: Sequence[int], waves: int, lasts: int
) -> None:
    """Where two experts have one buffer, the second copy waits for the first computation.

    One memo must tell such events apart. A copy takes 100 ns, a computation 51 ns.
    """
    memo, _ = memo_of(HandPrices(table=lambda tokens: 1 + 50 * sum(tokens)))
    rows, absent = (1, 1, 1), (True, True, True)
    once = memo.event(decision(rows, absent, (0, 1, 2), 1), (0, 1, 2), rows, 3)
    assert once.duration_ns == 351
    it = memo.event(decision(rows, absent, buffers, waves), (0, 1, 2), rows, 3)
    assert (it is once, it.duration_ns) == (lasts == 351, lasts)


def test_events_of_one_memo_differ_by_rows_places_reads_and_the_rows_of_the_step() -> None:
    memo, _ = memo_of(HandPrices(), FIVE_LANES)
    rows, union = (2, 3), (0, 1)
    loaded = decision(rows, (False, True))
    on_cpu = loaded._replace(loads=(), waves=0, elsewhere=[(1, 3, CPU)])
    read = on_cpu._replace(reads={1: 1000})
    # Inputs go to the CPU, are computed there, and come back: 100 bytes take 10 ns a row.
    expected = [
        (loaded, rows, 5, 100 + 31),
        (on_cpu, rows, 5, 50 + 31 + 50),
        (on_cpu, rows, 8, 80 + 31 + 80),
        (read, rows, 5, 100 + 31 + 50),
        (decision(rows, (True, False)), rows, 5, 100 + 21),
        (decision((3, 3), (True, False)), (3, 3), 5, 100 + 31),
    ]
    for _ in range(2):
        for it, counts, total, lasts in expected:
            assert memo.event(it, union, counts, total).duration_ns == lasts


def test_a_buffer_may_wait_for_the_residents_or_for_an_earlier_expert() -> None:
    """Two residents are computed until 401; the third copy needs the buffer of one of them, or that
    of the first expert copied in, which is computed until 702."""
    memo, _ = memo_of(HandPrices(table=lambda tokens: 1 + 200 * sum(tokens)))
    rows, absent, union = (1,) * 5, (False, False, True, True, True), range(5)
    for _ in range(2):
        for last, starts in ((1, 601), (0, 702)):
            it = memo.event(decision(rows, absent, (0, 1, 0, 2, last), 1), union, rows, 5)
            assert spans(it, H2D) == [(401, 501), (501, 601), (starts, starts + 100)]


def test_the_copy_that_waits_for_the_residents_may_be_any() -> None:
    memo, _ = memo_of(HandPrices(table=lambda tokens: 1 + 200 * sum(tokens)))
    rows, absent = (1, 1, 1), (False, True, True)
    for _ in range(2):
        for buffers, starts in (((0, 0, 1), [201, 301]), ((0, 1, 0), [0, 201])):
            it = memo.event(decision(rows, absent, buffers), range(3), rows, 3)
            assert [start for start, _ in spans(it, H2D)] == starts


def test_the_gpu_waits_for_the_cpu_and_the_disk_and_for_what_has_come_back() -> None:
    """Inputs reach the CPU at 50, the expert the host at 100; its results are back at 181."""
    memo, _ = memo_of(HandPrices(landing_ns=7), FIVE_LANES)
    it = decision((2, 3), (False, True))._replace(
        loads=(), waves=0, elsewhere=[(1, 3, CPU)], reads={1: 1000}
    )
    times = memo.event(it, (0, 1), (2, 3), 5)
    assert (spans(times, GPU), times.duration_ns) == ([(0, 21)], 181 + 7)
    stalls = dict(zip(CAUSES, times.sums[7:14], strict=True))
    assert {cause: ns for cause, ns in stalls.items() if ns} == {
        "cpu": (50 - 21) + (188 - 100),
        "disk": 50,
    }
    hits, loads, elsewhere, missed, nbytes = times.sums[:5]
    assert (hits, loads, elsewhere, missed, nbytes) == (1, 0, 1, 3, 0)


def issued() -> tuple[list[Entry], int]:
    """Return the works of the event worked out by hand, and its duration."""
    it = event_times(ROWS, ABSENT, BUFFERS)
    return list(it.entries), it.duration_ns


@pytest.mark.parametrize(
    ("number", "place", "start_ns", "late_ns"),
    [
        (4, 2, 130, 0),  # the first expert copied in is computed before it landed
        (5, 1, 30, 0),  # its copy overwrites a resident that is being computed
        (9, 3, 130, 0),  # two copies at once
        (9, 4, 171, 0),  # two computations at once
        (9, 6, 382, -1),  # the event ends before its work
        (9, 6, 444, 0),  # a computation ends before it starts
    ],
)
def test_impossible_times_of_a_layer_event_are_refused(
    number: int, place: int, start_ns: int, late_ns: int
) -> None:
    entries, duration_ns = issued()
    step_memo._check(entries, duration_ns)
    entries[place].work.start_ns = start_ns
    with pytest.raises(InvariantError) as caught:
        step_memo._check(entries, duration_ns + late_ns)
    assert caught.value.number == number


def test_an_event_that_leaves_work_under_way_is_refused() -> None:
    """The next event would not begin on idle lanes."""
    it = decision((1,), (False,))._replace(later=[(7, Slot(9))])
    with pytest.raises(InvariantError, match="an event ends at 11 ns") as caught:
        memo_of(HandPrices())[0].event(it, (0,), (1,), 1)
    assert caught.value.number == 9


@pytest.mark.parametrize(
    ("off", "number"),
    [({"finish_ns": -5}, 9), ({"fixed_ns": -1}, 9), ({"start_ns": -1, "finish_ns": -1}, 15)],
)
def test_wrong_times_of_a_step_timed_at_once_are_detected(
    monkeypatch: pytest.MonkeyPatch, off: dict[str, int], number: int
) -> None:
    """The times of the third step are off by the numbers in `off`."""
    step = StepMemo.step

    def lying(memo: StepMemo, *given: Any) -> int:
        finish = step(memo, *given)
        if given[0] == 2:
            logged = memo._log[-1]
            memo._log[-1] = logged._replace(
                **{name: getattr(logged, name) + by for name, by in off.items()}
            )
        return finish

    monkeypatch.setattr(StepMemo, "step", lying)
    rows = [[[0, 1]], [[1, 2]], [[3, 4]], [[5, 6]]]
    with pytest.raises(InvariantError) as caught:
        run_on(plan_of(tiny_scenario(), costed_trace(rows, prompt=1)))
    assert caught.value.number == number


def test_a_full_memo_of_event_times_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_memo, "_MEMO_LIMIT", 3)
    memo, _ = memo_of(HandPrices())
    counts = [1, 2, 3, 4, 1, 2]
    lasts = [
        memo.event(decision((rows,), (True,)), (0,), (rows,), rows).duration_ns for rows in counts
    ]
    assert lasts == [101 + 10 * rows for rows in counts]
    assert len(memo._events) <= 3


# --- experts on the CPU and on disk ---------------------------------------------------------------


def static_case(seed: int) -> tuple[dict[str, Any], Trace]:
    """Return a random case whose residents never change, so that nothing is copied for later."""
    scenario, trace = timed_at_once(seed)
    scenario["cache"] = {
        "policy": "static",
        "scope": scenario["cache"]["scope"],
        "slots": scenario["cache"]["slots"],
    }
    return scenario, with_gaps(trace, seed) if seed % 2 else trace


@pytest.mark.parametrize("in_host", [None, 6])
@pytest.mark.parametrize("block", range(4))
def test_steps_with_experts_on_the_cpu_and_on_disk_are_timed_as_they_are_walked(
    monkeypatch: pytest.MonkeyPatch, block: int, in_host: int | None
) -> None:
    timed = count_timed(monkeypatch)
    elsewhere = 0
    for seed in range(4400 + block, 4440, 4):
        plan = plan_of(*static_case(seed))
        at_once, walked, events = (
            run_on_five_lanes(plan, machine, monkeypatch, in_host=in_host)
            for machine in (SimMachine, Walking, EventMachine)
        )
        assert everything(at_once) == everything(walked) == everything(events), seed
        assert summarise(at_once) == summarise(walked), seed
        elsewhere += summarise(at_once)["elsewhere"]
        assert len(timed) == len(at_once.ledger.steps)
        timed.clear()
    assert elsewhere > 0


@pytest.mark.parametrize("in_host", [None, 6])
@pytest.mark.parametrize("block", range(4))
def test_machines_agree_where_experts_run_on_the_cpu_and_are_copied_later(
    monkeypatch: pytest.MonkeyPatch, block: int, in_host: int | None
) -> None:
    later = elsewhere = 0
    for seed in range(4500 + block, 4560, 4):
        scenario, trace = random_case(seed)
        if scenario["cache"]["policy"] == "min":  # its rehearsal has one GPU alone
            scenario["cache"] |= {"policy": "lru"}
        plan = plan_of(scenario, trace)
        simulated, events = (
            run_on_five_lanes(plan, machine, monkeypatch, in_host=in_host, copies_later=True)
            for machine in (SimMachine, EventMachine)
        )
        assert everything(simulated) == everything(events), seed
        assert decisions(simulated) == decisions(events), seed
        elsewhere += sum(simulated.ledger.elsewhere)
        later += sum(simulated.ledger.prefetch_copies) * (scenario["prefetch"]["policy"] == "none")
    assert elsewhere > 0
    assert later > 0


def test_an_expert_that_ran_elsewhere_is_read_from_disk_once() -> None:
    """It is copied to the GPU later, from host memory, as soon as it has been read."""
    machine = SimMachine(simpy.Environment(), HandPrices(), FIVE_LANES)
    entries: list[Entry] = []
    issue = Issuer(machine.submit, entries, FIVE_LANES, HostTimes())
    it = decision((), ())._replace(elsewhere=[(4, 1, CPU)], later=[(4, Slot(0))], reads={4: 1000})
    program_on(FIVE_LANES)(machine).event(it, Hidden(GPU), 1, issue)
    machine.settle()
    done = {entry.kind: (entry.work.start_ns, entry.work.finish_ns) for entry in entries}
    assert [entry.kind for entry in entries].count("read") == 1
    assert done["read"] == (0, 100)
    assert done["experts"] == (100, 111)
    assert done["prefetch"][0] >= 100


def test_an_expert_that_is_being_read_for_a_copy_ahead_is_not_computed_before() -> None:
    machine = SimMachine(simpy.Environment(), HandPrices(), FIVE_LANES)
    entries: list[Entry] = []
    issue = Issuer(machine.submit, entries, FIVE_LANES, HostTimes())
    program = program_on(FIVE_LANES)(machine)
    nothing = decision((), ())
    program.ahead(nothing._replace(later=[(4, Slot(0))], reads={4: 1000}), issue)
    program.event(nothing._replace(elsewhere=[(4, 1, CPU)]), Hidden(GPU), 1, issue)
    machine.settle()
    (computed,) = (entry.work for entry in entries if entry.kind == "experts")
    assert computed.start_ns == 100
    assert [entry.kind for entry in entries].count("read") == 1


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
