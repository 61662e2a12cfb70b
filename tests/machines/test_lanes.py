"""A lane hands in work without polling, in order, and no more than its device takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from waiting import wait_until

from moesim.executor.lanes import Job, Lane, Piece
from moesim.hardware.ops import Copy
from moesim.machine.work import DEMAND, FAR, Work


class Held:
    """The mark of a piece that the test ends; counts how often it is asked."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.start_ns, self.finish_ns = 1, 2
        self.over = threading.Event()
        self.error: Exception | None = None
        self.asked = self.waited = 0

    def done(self) -> bool:
        self.asked += 1
        return self.over.is_set()

    def wait(self) -> None:
        self.waited += 1
        assert self.over.wait(60)
        if self.error is not None:
            raise self.error


class HeldDevice:
    """A device whose work ends when the test says so."""

    name, torch_device, pins = "held", "cpu", False
    outstanding, outstanding_bytes, clock_error_ns = 2, 1000, 0

    def __init__(self) -> None:
        self.marks: list[Held] = []
        self.open = threading.Event()
        self.open.set()

    def add_lanes(self, lanes: Any) -> None: ...

    def submit(self, lane: str, work: Callable[[], None], *, nbytes: int = 0, **_: Any) -> Held:
        work()
        assert self.open.wait(60)
        self.marks.append(Held(nbytes))
        return self.marks[-1]

    def close(self) -> None: ...


class Bench:
    """A lane on a held device, and what it settled."""

    def __init__(self) -> None:
        self.device = HeldDevice()
        self.lock = threading.Lock()
        self.settled: list[Job] = []
        self.failures: list[BaseException] = []
        self.lane = Lane(
            "h2d",
            self.device,
            self.lock,
            0,
            self.settled.append,
            lambda _, error: self.failures.append(error),
        )

    def put(self, *sizes: int) -> Job:
        """Queue a job of pieces of these sizes in bytes."""
        work = Work("h2d", Copy(0, sum(sizes)), (), DEMAND)
        job = Job(work, [Piece(lambda: None, size) for size in sizes], "a copy", 0)
        with self.lock:
            self.lane.put(job, DEMAND)
        return job

    def handed_in(self, number: int) -> None:
        """Wait until the device has `number` pieces and the lane has nothing left to do."""
        wait_until(lambda: len(self.device.marks) >= number, 60, 0.001)
        wait_until(lambda: not self.lane._current, 60, 0.001)
        with self.lock:  # a lane that would hand in more could do so now
            assert len(self.device.marks) == number

    def end(self, number: int) -> None:
        self.device.marks[number].over.set()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for mark in bench.device.marks:
        mark.over.set()
    with bench.lock:
        bench.lane.close()
    bench.lane.join(60)
    assert not any(each.name.startswith("moesim-h2d") for each in threading.enumerate())


def test_a_piece_is_handed_in_while_the_oldest_is_in_flight(bench: Bench) -> None:
    bench.put(0)
    bench.handed_in(1)
    bench.put(0)
    bench.handed_in(2)
    assert not bench.settled


def test_no_more_pieces_than_the_device_takes_are_in_flight(bench: Bench) -> None:
    jobs = [bench.put(0) for _ in range(4)]
    bench.handed_in(2)
    bench.end(0)
    bench.handed_in(3)
    assert bench.settled == jobs[:1]


def test_small_chunks_are_in_flight_until_their_bytes_reach_the_limit(bench: Bench) -> None:
    bench.put(*[300] * 6)
    bench.handed_in(3)  # a fourth would make 1200 bytes
    bench.end(0)
    bench.handed_in(4)


def test_two_large_chunks_are_in_flight_whatever_their_size(bench: Bench) -> None:
    bench.put(5000, 5000, 5000)
    bench.handed_in(2)


def test_a_lane_asks_at_the_hand_in_only_and_then_waits_for_the_oldest(bench: Bench) -> None:
    job = bench.put(0, 0)
    bench.handed_in(2)
    bench.end(1)
    wait_until(lambda: bench.device.marks[0].waited == 1, 60, 0.001)
    assert not bench.settled  # first in, first out
    bench.end(0)
    wait_until(lambda: bench.settled == [job], 60, 0.001)
    assert [mark.waited for mark in bench.device.marks] == [1, 1]
    assert sum(mark.asked for mark in bench.device.marks) <= 1
    assert job.work.finish_ns < FAR


def test_a_piece_that_fails_late_is_reported_and_ends_the_lane(bench: Bench) -> None:
    for _ in range(3):
        bench.put(0)
    bench.handed_in(2)
    error = bench.device.marks[0].error = RuntimeError("an illegal address")
    bench.end(0)
    wait_until(lambda: bool(bench.failures), 60, 0.001)
    bench.lane._thread.join(60)
    assert bench.failures == [error]
    assert len(bench.device.marks) == 2


@pytest.mark.parametrize(
    ("start_ns", "finish_ns", "counted"),
    [(70, 140, (100, 140)), (75, 95, (100, 100)), (69, 140, (69, 140))],
)
def test_a_start_before_the_end_of_the_piece_before_is_an_error_of_the_clock_up_to_its_size(
    bench: Bench, start_ns: int, finish_ns: int, counted: tuple[int, int]
) -> None:
    bench.device.clock_error_ns = 30
    jobs = [bench.put(0), bench.put(0)]
    bench.handed_in(2)
    first, second = bench.device.marks
    first.start_ns, first.finish_ns = 40, 100
    second.start_ns, second.finish_ns = start_ns, finish_ns
    bench.end(0)
    bench.end(1)
    wait_until(lambda: len(bench.settled) == 2, 60, 0.001)
    assert [(job.work.start_ns, job.work.finish_ns) for job in jobs] == [(40, 100), counted]


def test_a_start_before_what_a_job_waited_for_is_an_error_of_the_clock_up_to_its_size(
    bench: Bench,
) -> None:
    bench.device.clock_error_ns = 30
    for early_ns, counted_ns in ((30, 1000), (31, 969)):
        with bench.lock:
            job = Job(Work("h2d", Copy(0, 0), (), DEMAND), [Piece(lambda: None)], "a copy", 1000)
            bench.lane.put(job, DEMAND)
        bench.handed_in(mark := len(bench.device.marks) + 1)
        held = bench.device.marks[mark - 1]
        held.start_ns, held.finish_ns = 1000 - early_ns, 1001
        bench.end(mark - 1)
        wait_until(partial(bench.settled.__contains__, job), 60, 0.001)
        assert job.work.start_ns == counted_ns


def test_a_lane_that_closes_waits_for_what_is_in_flight(bench: Bench) -> None:
    job = bench.put(0)
    bench.put(0, 0, 0)
    bench.handed_in(2)
    with bench.lock:
        bench.lane.close()
    assert not bench.settled
    for mark in bench.device.marks:
        mark.over.set()
    bench.lane.join(60)
    assert bench.settled == [job]
    assert len(bench.device.marks) == 2


def test_a_piece_that_is_being_handed_in_as_a_lane_closes_is_settled_too(bench: Bench) -> None:
    jobs = [bench.put(0)]
    bench.handed_in(1)
    bench.end(0)
    wait_until(lambda: bench.settled == jobs, 60, 0.001)
    bench.device.open.clear()
    jobs.append(bench.put(0))
    wait_until(lambda: bench.lane._current is jobs[1], 60, 0.001)
    with bench.lock:
        bench.lane.close()
    bench.device.open.set()
    wait_until(lambda: len(bench.device.marks) == 2, 60, 0.001)
    bench.end(1)
    bench.lane.join(60)
    assert bench.settled == jobs


def test_a_closed_lane_forgets_what_it_did_not_hand_in(bench: Bench) -> None:
    bench.put(0, 0, 0)
    bench.handed_in(2)
    with bench.lock:
        bench.lane.close()
    bench.lane.forget()  # one thread is still waiting, so nothing is dropped under its hands
    assert bench.lane.pending
    for mark in bench.device.marks:
        mark.over.set()
    bench.lane.join(60)
    bench.lane.forget()
    assert not bench.lane.pending
