"""Each invariant of docs/invariants.md is broken once, on purpose, and must be found broken.

Most are broken by a machine that reports wrong times, because a run relies on its machine. Others
are broken by a faulty policy, scheduler or ledger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from paths import ROOT
from watched_machines import Asked, Watched, watch
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.errors import InvariantError, ScenarioError, UsageError
from moesim.hardware.ops import Copy, Experts, Readback
from moesim.hardware.topology import D2H, GPU, H2D
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.work import DEMAND, Work
from moesim.policies.batching import DecodeFirst
from moesim.policies.eviction import MIN, CacheContext
from moesim.policies.view import View
from moesim.serving.arrivals import Arrivals
from moesim.serving.invariants import check_arrivals, check_run
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request
from moesim.serving.scheduler import Scheduler
from moesim.serving.step_memo import StepMemo
from moesim.simulate import Outcome, Plan, simulate

DOCUMENT = ROOT / "docs" / "invariants.md"
# Computing an expert outlasts copying one, and there is one staging buffer: copies must wait.
SLOW_GPU = {"hardware": {"profile": "rtx-4090", "memory_bandwidth": "2GB/s"}}


def plan(**changes: Any) -> Plan:
    trace = tiny_trace(requests=3, prompt_tokens=4, output_tokens=4)
    return plan_of(tiny_scenario(**{"cache": {"slots": 9}, **changes}), trace)


def broken(number: int, lying: type[Watched], **changes: Any) -> str:
    """Serve with a faulty machine; return the message about the broken invariant."""
    with pytest.raises(InvariantError) as caught:
        run_on(plan(**changes), lambda env, prices: lying(SimMachine(env, prices)))
    assert caught.value.number == number, str(caught.value)
    assert str(caught.value).startswith(f"invariant {number} is broken: ")
    return caught.value.message


def audit(outcome: Outcome, flying_bytes: int = 0) -> None:
    check_run(outcome.requests, outcome.ledger, outcome.pool, flying_bytes)


def caught_by_audit(number: int, outcome: Outcome) -> None:
    with pytest.raises(InvariantError) as caught:
        audit(outcome)
    assert caught.value.number == number, str(caught.value)


def test_a_correct_run_breaks_no_invariant() -> None:
    audit(run_on(plan(), lambda env, prices: Watched(SimMachine(env, prices))))


# --- 1: requests ----------------------------------------------------------------------------------


def test_1_a_request_that_the_scheduler_forgets_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    arrive = Scheduler.arrive
    monkeypatch.setattr(Scheduler, "arrive", lambda self, one: one.index == 1 or arrive(self, one))
    with pytest.raises(InvariantError, match="request 1 ends as waiting") as caught:
        run_on(plan())
    assert caught.value.number == 1


@pytest.mark.parametrize("status", ["waiting", "running"])
def test_1_a_request_that_never_ended_is_missed(status: str) -> None:
    outcome = run_on(plan())
    outcome.requests[2].status = status
    caught_by_audit(1, outcome)


@pytest.mark.parametrize("change", [lambda moments: moments[:-1], lambda moments: moments * 2])
def test_1_a_token_too_few_or_too_many_is_missed(change: Callable[[list[int]], list[int]]) -> None:
    outcome = run_on(plan())
    request = outcome.requests[0]
    request.token_ns = sorted(change(request.token_ns))
    caught_by_audit(1, outcome)


# --- 2: slots -------------------------------------------------------------------------------------


def test_2_a_slot_that_disappears_is_missed() -> None:
    cache = run_on(plan()).caches[0]
    key = next(iter(cache.slots))
    del cache.slots[key]
    del cache.policy.book[key]
    with pytest.raises(InvariantError) as caught:
        cache.audit()
    assert caught.value.number == 2


# --- 3: KV blocks ---------------------------------------------------------------------------------


def test_3_blocks_given_back_twice_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release

    def twice(pool: BlockPool, request: Request) -> None:
        blocks = request.blocks
        release(pool, request)
        request.blocks = blocks
        release(pool, request)

    monkeypatch.setattr(BlockPool, "release", twice)
    with pytest.raises(InvariantError) as caught:
        run_on(plan())
    assert caught.value.number == 3


def test_3_blocks_never_given_back_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockPool, "release", lambda pool, request: None)
    with pytest.raises(InvariantError) as caught:
        run_on(plan())
    assert caught.value.number == 3


# --- 4 and 5: buffers -----------------------------------------------------------------------------


class ComputesTooSoon(Watched):
    """Computes experts without waiting for their copies."""

    def submit(self, work: Work) -> None:
        if isinstance(work.op, Experts):
            waits_for, work.after = work.after, ()
            super().submit(work)
            work.after = waits_for
        else:
            super().submit(work)


class CopiesTooSoon(Watched):
    """Overwrites a buffer while it is read."""

    def submit(self, work: Work) -> None:
        waits_for = work.after
        if work.lane == H2D:
            work.after = ()
        super().submit(work)
        work.after = waits_for


@pytest.mark.parametrize("prefetch", ["none", "predicted", "oracle"])
def test_4_an_expert_computed_before_it_landed_is_noticed(prefetch: str) -> None:
    said = broken(4, ComputesTooSoon, prefetch={"policy": prefetch})
    assert "before it landed" in said


def test_5_a_buffer_overwritten_while_it_is_read_is_noticed() -> None:
    said = broken(5, CopiesTooSoon, cache={"slots": 0}, memory={"staging": 1}, **SLOW_GPU)
    assert "overwrites what is in use" in said


def test_5_a_slot_overwritten_before_it_is_written_back_is_noticed() -> None:
    slow = {"profile": "rtx-4090", "d2h": {"bandwidth": "1GB/s"}}
    broken(5, CopiesTooSoon, cache={"slots": 4, "write_back": True}, hardware=slow)


# --- 6 and 7: what is counted ---------------------------------------------------------------------


@pytest.mark.parametrize("counter", ["hits", "late_hits", "demand_copies"])
def test_6_an_access_counted_twice_is_noticed(counter: str) -> None:
    outcome = run_on(plan())
    getattr(outcome.ledger, counter)[2] += 1
    caught_by_audit(6, outcome)


@pytest.mark.parametrize("kind", ["demand", "prefetch"])
def test_7_bytes_that_no_copy_brought_are_noticed(kind: str) -> None:
    outcome = run_on(plan(prefetch={"policy": "predicted"}))
    flying = sum(outcome.ledger.prefetch_copies) * outcome.plan.cost.expert_bytes
    flying -= outcome.ledger.moved_bytes["prefetch"]
    audit(outcome, flying)
    outcome.ledger.moved_bytes[kind] += 1
    with pytest.raises(InvariantError) as caught:
        audit(outcome, flying)
    assert caught.value.number == 7


def test_7_a_copy_that_is_still_in_flight_is_not_a_finished_one() -> None:
    outcome = run_on(plan())
    with pytest.raises(InvariantError) as caught:
        audit(outcome, outcome.plan.cost.expert_bytes)
    assert caught.value.number == 7


# --- 8 and 15: time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.token_ns.reverse(),
        lambda one: setattr(one, "scheduled_ns", one.token_ns[0] + 1),
        lambda one: setattr(one, "arrival_ns", one.scheduled_ns + 1),
    ],
    ids=["tokens", "first token before its step", "scheduled before it arrived"],
)
def test_8_a_life_out_of_order_is_noticed(change: Callable[[Request], Any]) -> None:
    outcome = run_on(plan())
    change(outcome.requests[0])
    caught_by_audit(8, outcome)


class Rewinds(Watched):
    """A clock that can be turned back."""

    back_ns = 0

    @property
    def now_ns(self) -> int:
        return int(self.machine.now_ns) - self.back_ns


class RewindsWithinAStep(Rewinds):
    """Its clock is turned back with the last wait of a step."""

    waits = 0

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Any:
        self.waits += 1
        self.back_ns = 100_000 * (self.waits == 5)
        return super().wait_any(works, until_ns)


def test_15_a_clock_that_goes_back_between_steps_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a nanosecond, while the second step is planned."""
    machines: list[Rewinds] = []
    form = DecodeFirst.plan

    def plan_and_rewind(policy: DecodeFirst, queue: Any) -> Any:
        machines[0].back_ns = int(machines[0].now_ns > 0)
        return form(policy, queue)

    def make(env: Any, prices: Any) -> Rewinds:
        machines.append(Rewinds(SimMachine(env, prices)))
        return machines[0]

    monkeypatch.setattr(DecodeFirst, "plan", plan_and_rewind)
    with pytest.raises(InvariantError, match="the clock went back") as caught:
        run_on(plan(), make)
    assert caught.value.number == 15


def test_15_a_clock_that_goes_back_within_a_step_is_noticed() -> None:
    assert "the clock is back" in broken(15, RewindsWithinAStep)


# --- 9 and 10: lanes ------------------------------------------------------------------------------


class Overlaps(Watched):
    """Says that work on one lane began a nanosecond before it did."""

    lane = GPU

    def submit(self, work: Work) -> None:
        super().submit(work)
        self._tamper(self.log[-1])

    def _tamper(self, asked: Asked) -> None:
        others = [one for one in self.log[:-1] if one.lane == self.lane]
        back_to_back = others and others[-1].finish == asked.start
        if asked.lane == self.lane and back_to_back and asked.kind != "readback":
            asked.work.start_ns -= 1


class OverlapsCopies(Overlaps):
    lane = H2D


def test_9_two_computations_at_once_are_noticed() -> None:
    assert "GPU work overlaps by 1 ns" in broken(9, Overlaps, cache={"slots": "100%"})


def test_9_two_demand_copies_at_once_are_noticed() -> None:
    assert "two demand copies overlap" in broken(9, OverlapsCopies, cache={"slots": "100%"})


class Idles(Watched):
    """Starts work on the GPU a nanosecond late, and is faster instead."""

    def submit(self, work: Work) -> None:
        super().submit(work)
        if work.lane == GPU:
            work.start_ns += 1


class Hurries(Watched):
    """Says that copies took the link a thousand times as long."""

    def submit(self, work: Work) -> None:
        super().submit(work)
        if work.lane != GPU:
            work.busy_ns *= 1000


def simulate_on(lying: type[Watched], monkeypatch: pytest.MonkeyPatch) -> InvariantError:
    monkeypatch.setattr("moesim.machine.sim.SimMachine", lambda *given: lying(SimMachine(*given)))
    with pytest.raises(InvariantError) as caught:
        simulate(plan())
    return caught.value


def test_9_a_lane_busy_for_longer_than_time_went_by_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = simulate_on(Hurries, monkeypatch)
    assert (error.number, "lane h2d was busy" in error.message) == (9, True)


def test_10_a_gpu_that_idles_with_work_to_do_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = simulate_on(Idles, monkeypatch)
    assert (error.number, "idled" in error.message) == (10, True)


@pytest.mark.parametrize("make", [SimMachine, EventMachine])
def test_10_no_lane_idles_and_none_does_two_things_at_once(make: Any) -> None:
    """Recomputed from what the server asked for: a lane that is first come first served starts
    each job as soon as it is free, the job is asked for, and what it waits for is done."""
    for seed in range(40):
        _, machine = watch(plan_of(*random_case(40_000 + seed)), make)
        for lane in (GPU, D2H):
            free = 0
            for work in machine.on(lane):
                ready = max((ticket.finish_ns for ticket in work.after), default=0)
                assert work.start == max(free, work.issued_ns, ready), (seed, lane)
                free = work.finish
        demand = [work for work in machine.on(H2D) if work.priority == DEMAND]
        for before, work in pairwise(demand):
            assert work.start >= before.finish, seed


# --- 13 and 14: promises and progress -------------------------------------------------------------


def promised(future: list[list[int]]) -> MIN:
    import numpy as np

    context = CacheContext(
        capacity=1,
        universe=range(4),
        admission="bypass",
        rng=np.random.default_rng(0),
        future=future,
    )
    return MIN(context)


@pytest.mark.parametrize("union", [[2], [1, 0], [0], [0, 1, 2]])
def test_13_another_future_than_the_one_promised_is_noticed(union: list[int]) -> None:
    policy = promised([[3], [0, 1]])
    policy.decide(View(0, [3]))
    with pytest.raises(InvariantError) as caught:
        policy.decide(View(0, union))
    assert caught.value.number == 13


def test_13_more_events_than_promised_are_noticed() -> None:
    policy = promised([[3]])
    policy.decide(View(0, [3]))
    with pytest.raises(InvariantError) as caught:
        policy.decide(View(0, [3]))
    assert caught.value.number == 13


class LosesACopy(Watched):
    """Its second copy to the device never begins."""

    def submit(self, work: Work) -> None:
        if work.lane == H2D and any(asked.lane == H2D for asked in self.log):
            work.after = (*work.after, Work(H2D, Copy(0, 1)))
        super().submit(work)


class LosesIds(Watched):
    """The router's choice never reaches the host."""

    def submit(self, work: Work) -> None:
        if isinstance(work.op, Readback):
            work.after = (*work.after, Work(H2D, Copy(0, 1)))
        super().submit(work)


def test_14_a_lost_copy_ends_the_run_and_is_named() -> None:
    said = broken(14, LosesACopy)
    assert re.search(r"waits without end; pending: .*Copy\(key=\d+, nbytes=\d+\) on h2d", said)


def test_14_lost_ids_end_the_run() -> None:
    assert re.search(r"Readback\(nbytes=\d+\) on d2h", broken(14, LosesIds))


@pytest.mark.parametrize("prefetch", ["none", "oracle"])
@pytest.mark.parametrize("figures", [{"kernel_overhead": 10**17}, {"h2d": {"latency": 9 * 10**18}}])
def test_hardware_too_slow_to_tell_the_time_is_no_broken_invariant(
    prefetch: str, figures: dict[str, Any]
) -> None:
    slow = plan(hardware={"profile": "t4", **figures}, prefetch={"policy": prefetch})
    with pytest.raises(UsageError, match="exceeds 146 years"):
        run_on(slow)


@pytest.mark.parametrize("name", ["launch", "copy_launch", "layer_event"])
def test_a_host_too_slow_to_tell_the_time_is_no_broken_invariant(name: str) -> None:
    slow = plan(engine={name: "1000000000s"}, prefetch={"policy": "oracle"})
    with pytest.raises(ScenarioError, match=rf"engine\.{name}: .* 146 years"):
        simulate(slow)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"kernel_overhead": 10**17}, "hardware.kernel_overhead is 100000000 s"),
        ({"h2d": {"latency": 9 * 10**18}}, "hardware.h2d.latency is 9000000000 s"),
        ({"d2h": {"latency": 10**18}}, "hardware.d2h.latency is 1000000000 s"),
        (
            {"h2d": {"bandwidth": 1}, "kernel_overhead": 10**17},
            "hardware.kernel_overhead is 100000000 s",
        ),
    ],
)
def test_a_run_of_too_many_years_names_the_slowest_figure(
    figures: dict[str, Any], reason: str
) -> None:
    slow = plan(hardware={"profile": "t4", **figures})
    with pytest.raises(ScenarioError, match="exceeds 146 years") as caught:
        simulate(slow)
    assert reason in str(caught.value)
    assert "readback" not in str(caught.value)
    key = reason.split(" is ")[0]
    assert f": {key}: " in str(caught.value)


def test_a_run_of_too_many_years_names_late_arrivals(tmp_path: Path) -> None:
    file = tmp_path / "late.csv"
    file.write_text(
        "arrival_s,prompt_tokens,output_tokens\n0,3,2\n4611686018.4,3,2\n", encoding="utf-8"
    )
    arrivals = {"kind": "csv", "path": str(file)}
    slow = {"profile": "t4", "kernel_overhead": "1s"}
    with pytest.raises(ScenarioError, match=r"workload\.arrivals: .*146 years: the last arrives"):
        simulate(plan(workload={"arrivals": arrivals}, hardware=slow))


def test_a_client_that_thinks_for_too_many_years_is_named() -> None:
    arrivals = {"kind": "closed", "clients": 1, "think": f"{150 * 365 * 24 * 3600}s"}
    with pytest.raises(ScenarioError, match=r"workload\.arrivals: .*146 years: the last arrives"):
        simulate(plan(workload={"arrivals": arrivals}))
    drawn = {**arrivals, "think": {"mean": arrivals["think"], "distribution": "exponential"}}
    with pytest.raises(ScenarioError, match=r"workload\.arrivals: .* too late to count"):
        simulate(plan(workload={"arrivals": drawn}, seed=3))


def test_14_steps_without_progress_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that throws away what was computed and does not call it preemption."""
    next_step = Scheduler.next_step

    def forgetful(scheduler: Scheduler) -> Any:
        for request in scheduler.running:
            request.position = 0
        return next_step(scheduler)

    monkeypatch.setattr(Scheduler, "next_step", forgetful)
    endless = plan(batching={"token_budget": 3, "max_sequences": 1})
    for make in (SimMachine, EventMachine):
        with pytest.raises(InvariantError, match="without an end in sight") as caught:
            run_on(endless, make)
        assert caught.value.number == 14


# --- steps that are timed at once -----------------------------------------------------------------


class Timed(StepMemo):
    """Logs the steps that it times with false times, `off` from the true ones."""

    off: ClassVar[dict[str, int]] = {}

    def step(self, number: int, *given: Any) -> int:
        finish = super().step(number, *given)
        if number:
            logged = self._log[-1]
            false = {name: getattr(logged, name) + by for name, by in self.off.items()}
            self._log[-1] = logged._replace(**false)
        return finish


class EndsEarly(Timed):
    """Says that a step took a nanosecond less than the work in it."""

    off: ClassVar = {"finish_ns": -1}


class BeginsEarly(Timed):
    """Says that steps began before the step before them ended."""

    off: ClassVar = {"start_ns": -10, "finish_ns": -10}


@pytest.mark.parametrize(("lying", "number"), [(EndsEarly, 9), (BeginsEarly, 15)])
def test_9_and_15_hold_of_steps_timed_at_once_too(
    monkeypatch: pytest.MonkeyPatch, lying: type[StepMemo], number: int
) -> None:
    monkeypatch.setattr("moesim.serving.server.StepMemo", lying)
    with pytest.raises(InvariantError) as caught:
        run_on(plan())
    assert caught.value.number == number


# --- 16: arrivals ---------------------------------------------------------------------------------


def test_16_a_client_that_does_not_wait_for_its_answer_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = plan(workload={"arrivals": {"kind": "closed", "clients": 1, "think": "5us"}})
    take = Arrivals.take

    def impatient(arrivals: Arrivals) -> Request:
        request = take(arrivals)
        arrivals.end(request, request.arrival_ns)
        return request

    monkeypatch.setattr(Arrivals, "take", impatient)
    with pytest.raises(InvariantError, match="before a client is ready at") as caught:
        simulate(loop)
    assert caught.value.number == 16


def test_16_arrivals_out_of_order_are_noticed() -> None:
    requests = run_on(plan()).requests
    requests[0].arrival_ns = 1
    with pytest.raises(InvariantError, match="out of order") as caught:
        check_arrivals(requests, 3)
    assert caught.value.number == 16


# --- the document ---------------------------------------------------------------------------------


def test_the_document_numbers_every_invariant_and_names_tests_that_are_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    root = DOCUMENT.parents[1]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 17))
    raised = {
        int(number)
        for path in (root / "moesim").rglob("*.py")
        for number in re.findall(r"InvariantError\(\s*(\d+)", path.read_text(encoding="utf-8"))
    }
    assert raised <= {int(number) for number, *_ in rows}
    for number, _, places, tests in rows:
        for path in re.findall(r"`(moesim/[\w/.]+)`", places):
            assert (root / path).is_file(), (number, path)
        assert ".py::" in tests, f"invariant {number} names no test"
    for module, test in re.findall(r"`(\w+)\.py::(\w+)`", text):
        (source,) = (path.read_text("utf-8") for path in (root / "tests").rglob(f"{module}.py"))
        assert f"def {test}(" in source, (module, test)
