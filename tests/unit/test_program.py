"""Where the results of a layer event are, and what the next work on them waits for."""

from __future__ import annotations

from typing import Any

from moesim.hardware import topology
from moesim.hardware.ops import States
from moesim.hardware.topology import CPU, D2H, GPU, HOST, Topology
from moesim.machine.work import Work
from moesim.serving.experts.decision import Decision
from moesim.serving.experts.program import Hidden, Program
from moesim.serving.experts.slots import Slot
from moesim.serving.issue import HostTimes, Issuer

WITH_CPU = Topology((*Topology.single_gpu().lanes, topology.Lane(CPU, HOST, HOST)))
HITS = Decision(0, [0, 1], [1, 1], [Slot(0), Slot(1)])
FRONT = Work(GPU, States(0, 1, 8))


class Idle:
    """A machine on which all copies are done."""

    def promote(self, work: Work) -> None: ...

    def cancel(self, work: Work) -> bool:
        return False

    def done(self, work: Work) -> bool:
        return True


def issue_event(it: Decision, hidden: Hidden) -> tuple[Hidden, Hidden, list[Work]]:
    """Return the results on the GPU and moved to the CPU, and the works in order of issue."""
    log: list[Any] = []
    machine: Any = Idle()
    program = Program(machine, WITH_CPU, lambda key: 100, state_bytes=8, num_experts=8)
    issue = Issuer(lambda work: None, log, WITH_CPU, HostTimes())
    results = program.event(it, hidden, 1, issue)
    moved = program.move(results, CPU, 1, 1, issue)
    return results, moved, [work for work, *_ in log]


def test_results_that_leave_the_gpu_wait_for_its_last_experts() -> None:
    _, moved, (experts, copy) = issue_event(HITS, Hidden(GPU, (FRONT,)))
    assert (experts.lane, copy.lane, moved.lane) == (GPU, D2H, CPU)
    assert list(copy.after) == [experts]
    assert moved.after == (copy,)


def test_results_wait_for_experts_on_the_gpu_and_elsewhere() -> None:
    split = HITS._replace(elsewhere=[(2, 1, CPU)])
    results, _, (experts, inputs, call, outputs, _) = issue_event(split, Hidden(GPU, (FRONT,)))
    assert (inputs.after, call.after, outputs.after) == ((FRONT,), [inputs], (call,))
    assert set(results.after) == {experts, outputs}


def test_an_event_without_experts_leaves_hidden_states_where_they_are() -> None:
    hidden = Hidden(GPU, (FRONT,))
    results, _, (copy,) = issue_event(Decision(0, (), (), ()), hidden)
    assert results == hidden
    assert list(copy.after) == [FRONT]
