"""One GPU without host time gives the results of the previous core, to the nanosecond."""

from __future__ import annotations

import pytest
from stored_outcomes import digest, plans, stored
from workloads import run_on

from moesim.machine.events import EventMachine

BLOCKS = 8


@pytest.mark.parametrize("block", range(BLOCKS))
def test_outcomes_are_those_stored_before_the_core_had_many_lanes(block: int) -> None:
    expected = stored()
    for number, (name, plan) in enumerate(plans()):
        if number % BLOCKS == block:
            assert digest(run_on(plan)) == expected[name], name


def test_one_event_per_chunk_gives_the_stored_outcomes_too() -> None:
    expected = stored()
    for number, (name, plan) in enumerate(plans()):
        if number % 7 == 0:
            assert digest(run_on(plan, EventMachine)) == expected[name], name
