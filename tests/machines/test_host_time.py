"""A server's view of time and of finished work stands still between its waits."""

from __future__ import annotations

from typing import Any

import pytest
import simpy
from scripted_servers import LANES, Tariff

from moesim.errors import InvariantError
from moesim.hardware.ops import BatchShape, Copy, Tail
from moesim.hardware.topology import CPU, GPU, H2D, Topology
from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.threads import ThreadMachine, drive
from moesim.machine.work import PREFETCH, Work

both_machines = pytest.mark.parametrize("make", [SimMachine, EventMachine])


def computation(duration_ns: int, issue_ns: int = 0) -> Work:
    return Work(GPU, Tail(BatchShape(duration_ns, 0, 0, 0)), issue_ns=issue_ns)


def serve(make: Any, server: Any, tariff: Tariff | None = None) -> None:
    """Run a server, which is a generator function of a machine."""
    tariff = tariff or Tariff()
    env = simpy.Environment()
    env.run(until=env.process(server(make(env, tariff, tariff.topology))))


@both_machines
def test_now_and_done_stand_still_until_the_server_waits(make: Any) -> None:
    def server(machine: Any) -> Any:
        short, long = computation(2, issue_ns=10), computation(3, issue_ns=10)
        machine.submit(short)
        machine.submit(long)
        # The host is at 20 now, when the short one is long over; the server does not see it yet.
        assert machine.now_ns == 0
        assert not machine.done(short)
        yield from machine.wait_any((short,))
        assert machine.now_ns == 20
        assert machine.done(short)
        assert not machine.done(long)
        yield from machine.wait_any((long,))
        assert machine.now_ns == 23

    serve(make, server)


@both_machines
def test_a_wait_that_is_over_still_waits_for_the_host(make: Any) -> None:
    def server(machine: Any) -> Any:
        first = computation(2)
        machine.submit(first)
        yield from machine.wait_any((first,))
        machine.submit(computation(1, issue_ns=7))
        yield from machine.wait_any((first,), until_ns=3)
        assert machine.now_ns == 9

    serve(make, server)


@both_machines
def test_work_that_shares_a_resource_has_no_finish_before_it_is_over(make: Any) -> None:
    tariff = Tariff(0, None, {"dram": 10**9}, {H2D: [("dram", 2)]}, {})

    def server(machine: Any) -> Any:
        copy = Work(H2D, Copy(0, 10))
        reader = Work(GPU, Tail(BatchShape(4, 0, 0, 0)), (copy,))
        machine.submit(copy)
        machine.submit(reader)
        yield from machine.wait_any((), until_ns=9)
        assert copy.start_ns == 0
        assert copy.finish_ns > 10**18
        assert reader.finish_ns > 10**18
        yield from machine.wait_any((copy,))
        assert (machine.now_ns, copy.finish_ns, copy.busy_ns) == (10, 10, 10)
        yield from machine.wait_any((reader,))
        assert (reader.start_ns, reader.finish_ns) == (10, 14)

    serve(make, server, tariff)


def test_a_lane_that_computes_takes_no_prefetches() -> None:
    machine = SimMachine(simpy.Environment(), Tariff(), Tariff().topology)
    with pytest.raises(ValueError, match="lane cpu takes no prefetches"):
        machine.submit(Work(CPU, Tail(BatchShape(1, 0, 0, 0)), (), PREFETCH))


def test_the_pending_list_has_flows_and_what_waits_for_them_once() -> None:
    """A promoted prefetch stands in two queues, but is one work."""
    machine = SimMachine(simpy.Environment(), Tariff(), Tariff().topology)
    never = Work(GPU, Tail(BatchShape(1, 0, 0, 0)))
    prefetch = Work(H2D, Copy(7, 10), (never,), PREFETCH)
    machine.submit(prefetch)
    machine.promote(prefetch)
    with pytest.raises(InvariantError) as caught:
        machine.wait_any((prefetch,))
    assert str(caught.value).count("key=7") == 1


def test_sleeping_threads_take_the_time_that_works_take_alone() -> None:
    tariff = Tariff(0, None, {"dram": 1}, {H2D: [("dram", 2)]}, {})
    machine = ThreadMachine(tariff, Topology(LANES, {"dram": 1}), speed=1000.0)
    try:
        copy = Work(H2D, Copy(0, 10_000), issue_ns=10**12)
        machine.submit(copy)
        assert copy.busy_ns == 10_000

        def server() -> Any:
            yield from machine.wait_any((copy,))

        drive(server())
        assert machine.done(copy)
    finally:
        machine.close()
