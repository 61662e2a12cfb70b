"""The error for a work that started too early says what was not done, and which rule it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from watched_machines import Watched
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import InvariantError
from moesim.hardware.ops import BatchShape, Copy, Experts, Front, Op, Readback, States
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D
from moesim.machine.sim import SimMachine
from moesim.machine.work import DEMAND, PREFETCH, Work
from moesim.serving.too_early import too_early

EXPERT, STATES, COPY = Experts(1, (9,), (2,)), States(1, 2, 64), Copy(9, 100)
FRONT = Front(1, BatchShape(1, 0, 0, 0))


@pytest.mark.parametrize(
    ("lane", "op", "other_lane", "other", "number", "said"),
    [
        (H2D, COPY, DISK, COPY, 4, "key 9 is copied at 7 ns, before it was read from disk"),
        (H2D, COPY, GPU, EXPERT, 5, "the copy of key 9 overwrites what is in use at 7 ns"),
        (H2D, COPY, D2H, COPY, 5, "the copy of key 9 overwrites what is in use at 7 ns"),
        (D2H, COPY, GPU, EXPERT, 5, "key 9 is written back at 7 ns, while its slot is in use"),
        (D2H, COPY, H2D, COPY, 5, "key 9 is written back at 7 ns, while its slot is in use"),
        (GPU, EXPERT, H2D, COPY, 4, "an expert is computed at 7 ns, before it landed"),
        (GPU, EXPERT, DISK, COPY, 4, "an expert is computed at 7 ns, before it was read from disk"),
        (GPU, EXPERT, H2D, STATES, 4, "an expert is computed at 7 ns, before its inputs were"),
        (CPU, EXPERT, DISK, COPY, 4, "an expert is computed on lane cpu at 7 ns, before it was"),
        (CPU, EXPERT, D2H, STATES, 4, "an expert is computed on lane cpu at 7 ns, before its"),
        (D2H, Readback(8), GPU, FRONT, 4, "Readback(nbytes=8) starts at 7 ns, before its inputs"),
        (GPU, FRONT, H2D, STATES, 4, "starts at 7 ns, before its inputs were there"),
    ],
)
def test_the_error_names_what_was_not_done(
    lane: str, op: Op, other_lane: str, other: Op, number: int, said: str
) -> None:
    work = Work(lane, op)
    work.start_ns = 7
    error = too_early(work, Work(other_lane, other))
    assert error.number == number
    assert said in error.message


class Forgetful(Watched):
    """Copies experts of one urgency to the GPU without waiting for the disk."""

    def __init__(self, machine: Any, urgency: int) -> None:
        super().__init__(machine)
        self.urgency = urgency
        self.forgotten: list[tuple[Work, Sequence[Work]]] = []

    def submit(self, work: Work) -> None:
        if work.lane == H2D and work.urgency == self.urgency:
            self.forgotten.append((work, work.after))
            work.after = tuple([other for other in work.after if other.lane != DISK])
        super().submit(work)

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Any:
        yield from super().wait_any(works, until_ns)
        for work, after in self.forgotten:
            if self.done(work):
                work.after = after


@pytest.mark.parametrize(
    ("prefetch", "urgency", "said"),
    [("none", DEMAND, "an expert is computed at "), ("oracle", PREFETCH, " is copied at ")],
)
def test_a_copy_before_its_read_is_noticed_in_a_run(prefetch: str, urgency: int, said: str) -> None:
    disk = {"latency": "100us", "bandwidth": "1GB/s"}
    scenario = tiny_scenario(
        hardware={"profile": "rtx-4090", "disk": disk},
        memory={"host": "40MiB", "host_cache": "expert"},
        cache={"slots": 9},
        prefetch={"policy": prefetch},
    )
    plan = plan_of(scenario, tiny_trace(requests=2, prompt_tokens=3, output_tokens=3))

    def make(env: Any, prices: Any, topology: Any) -> Forgetful:
        return Forgetful(SimMachine(env, prices, topology), urgency)

    with pytest.raises(InvariantError) as caught:
        run_on(plan, make)
    assert caught.value.number == 4
    assert said in caught.value.message
    assert caught.value.message.endswith("before it was read from disk")
