"""Each idle moment of the GPU has one cause, and the causes of a gap sum to the gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InvariantError
from moesim.hardware.ops import Experts
from moesim.hardware.topology import CPU as CPU_LANE
from moesim.hardware.topology import GPU, H2D
from moesim.machine.work import Work
from moesim.serving.stalls import (
    CAUSES,
    CPU,
    DEMAND,
    DISK,
    HOST,
    LATE,
    OTHER,
    READBACK,
    Entry,
    Waits,
    account,
)

LAYERS = 3


def work(start_ns: int, finish_ns: int, lane: str = GPU, release_ns: int = 0) -> Work:
    """Return a finished work."""
    it = Work(lane, Experts(0, (0,), (1,)))
    it.start_ns, it.finish_ns, it.release_ns = start_ns, finish_ns, release_ns
    return it


def until(finish_ns: int) -> Work:
    """Return a work on another lane that the GPU waits for."""
    return work(0, finish_ns, H2D)


def divided(
    start_ns: int,
    *,
    clock_ns: int = 100,
    decided_ns: int = 0,
    waited: int = READBACK,
    waits: Waits = (),
    release_ns: int = 0,
) -> dict[str, list[int]]:
    """Return the stalls by cause and layer before a work of layer 1, without empty causes."""
    stall_ns = [[0] * LAYERS for _ in CAUSES]
    it = work(start_ns, start_ns + 7, release_ns=release_ns)
    entry = Entry(it, "experts", 1, decided_ns, waited, waits)
    clock, stalled = account([entry], clock_ns, stall_ns)
    assert (clock, stalled) == (start_ns + 7, start_ns - clock_ns)
    return {name: stalls for name, stalls in zip(CAUSES, stall_ns, strict=True) if any(stalls)}


# --- by hand --------------------------------------------------------------------------------------


def test_work_without_a_gap_has_no_stall() -> None:
    assert divided(100, decided_ns=50, waits=((until(90), DEMAND, 0),)) == {}


def test_until_the_host_knew_the_ids_the_cause_is_the_readback() -> None:
    assert divided(150, decided_ns=150) == {"readback": [0, 50, 0]}
    assert divided(150, decided_ns=150, waited=CPU) == {"cpu": [0, 50, 0]}


def test_a_gap_is_divided_in_the_order_of_time() -> None:
    """Ids at 120, the read from disk until 150, the copy until 190."""
    waits = ((until(150), DISK, 1), (until(190), DEMAND, 1))
    assert divided(190, decided_ns=120, waits=waits) == {
        "readback": [0, 20, 0],
        "disk": [0, 30, 0],
        "demand": [0, 40, 0],
    }


def test_a_late_copy_is_told_from_a_demand_copy() -> None:
    assert divided(130, waits=((until(130), LATE, 1),)) == {"late": [0, 30, 0]}


def test_results_of_the_cpu_count_for_the_layer_that_wanted_them() -> None:
    """The next layer's front waits for them: inputs, computation, outputs."""
    waits = tuple((until(finish_ns), CPU, 0) for finish_ns in (110, 160, 170))
    assert divided(170, decided_ns=105, waits=waits) == {
        "readback": [0, 5, 0],
        "cpu": [65, 0, 0],
    }


def test_what_was_over_before_the_gap_is_no_cause() -> None:
    waits = ((until(90), DISK, 1), (until(100), CPU, 1), (until(130), DEMAND, 1))
    assert divided(130, decided_ns=80, waits=waits) == {"demand": [0, 30, 0]}


def test_a_wait_that_ends_before_an_earlier_one_adds_nothing() -> None:
    waits = ((until(150), DISK, 1), (until(120), CPU, 1))
    assert divided(150, waits=waits) == {"disk": [0, 50, 0]}


def test_while_the_host_still_issues_it_is_the_cause() -> None:
    assert divided(180, decided_ns=120, release_ns=180) == {
        "readback": [0, 20, 0],
        "host": [0, 60, 0],
    }
    waits = ((until(150), DEMAND, 1),)
    assert divided(180, waits=waits, release_ns=180) == {
        "demand": [0, 50, 0],
        "host": [0, 30, 0],
    }


def test_a_host_that_was_done_before_the_copy_landed_is_no_cause() -> None:
    assert divided(150, waits=((until(150), DEMAND, 1),), release_ns=140) == {"demand": [0, 50, 0]}


def test_the_delay_after_a_landing_belongs_to_what_landed_last() -> None:
    waits = ((until(120), DISK, 0), (until(150), DEMAND, 2))
    assert divided(157, waits=waits) == {"disk": [20, 0, 0], "demand": [0, 0, 37]}


def test_idle_without_a_cause_is_other() -> None:
    assert divided(130) == {"other": [0, 30, 0]}
    assert divided(130, decided_ns=110, release_ns=120) == {
        "readback": [0, 10, 0],
        "host": [0, 10, 0],
        "other": [0, 10, 0],
    }


def test_only_the_gpu_stalls() -> None:
    stall_ns = [[0] * LAYERS for _ in CAUSES]
    idle = Entry(work(500, 900, CPU_LANE), "experts", 1, 400, READBACK, ())
    busy = Entry(work(100, 110), "front", 1, 0, READBACK, ())
    assert account([idle, busy], 100, stall_ns) == (110, 0)
    assert not any(map(any, stall_ns))


def test_work_that_overlaps_or_starts_before_what_it_waits_for_is_refused() -> None:
    stall_ns = [[0] * LAYERS for _ in CAUSES]
    early = Entry(work(99, 110), "front", 1, 0, READBACK, ())
    with pytest.raises(InvariantError, match="GPU work overlaps by 1 ns at 99 ns") as caught:
        account([early], 100, stall_ns)
    assert caught.value.number == 9
    for clock_ns in (100, 150):
        too_soon = Entry(work(150, 160), "experts", 1, 0, READBACK, ((until(151), CPU, 1),))
        with pytest.raises(InvariantError, match="before it landed") as caught:
            account([too_soon], clock_ns, stall_ns)
        assert caught.value.number == 4


# --- random gaps ----------------------------------------------------------------------------------

TIMES = st.integers(0, 60)
ENTRIES = st.lists(
    st.tuples(
        TIMES,  # the gap before the work
        TIMES,  # its duration
        st.integers(-30, 90),  # the host's last wait, from the end of the work before
        st.sampled_from([READBACK, CPU]),
        st.lists(
            st.tuples(
                st.floats(0, 1),
                st.sampled_from([DEMAND, LATE, DISK, CPU]),
                st.integers(0, LAYERS - 1),
            ),
            max_size=4,
        ),
        st.integers(-20, 90),  # its release
        st.integers(0, LAYERS - 1),
    ),
    max_size=6,
)


def moment_by_moment(entries: list[Entry], clock: int) -> list[list[int]]:
    """Return the stalls by cause and layer, each nanosecond given its cause on its own."""
    stall_ns = [[0] * LAYERS for _ in CAUSES]
    for entry in entries:
        for moment in range(clock, entry.work.start_ns):
            cause, layer = _cause(entry, moment, clock)
            stall_ns[cause][layer] += 1
        clock = entry.work.finish_ns
    return stall_ns


def _cause(entry: Entry, moment: int, began: int) -> tuple[int, int]:
    """Return the first reason for which the work cannot start at a moment, and its layer."""
    if moment < entry.decided_ns:
        return entry.waited, entry.layer
    for other, cause, layer in entry.waits:
        if moment < other.finish_ns:
            return cause, layer
    if moment < entry.work.release_ns <= entry.work.start_ns:
        return HOST, entry.layer
    return entry.waits[-1][1:] if entry.waits else (OTHER, entry.layer)


@given(ENTRIES, st.integers(0, 1000))
def test_the_parts_of_all_gaps_sum_to_the_gaps(drawn: list[tuple], began_ns: int) -> None:  # type: ignore[type-arg]
    entries, clock = [], began_ns
    for gap, duration, decided, waited, waits, release, layer in drawn:
        start = clock + gap
        awaited = tuple(
            (until(clock - 20 + round(share * (gap + 20))), cause, where)
            for share, cause, where in waits
        )
        it = work(start, start + duration, release_ns=clock + release)
        entries.append(Entry(it, "experts", layer, clock + decided, waited, awaited))
        clock = start + duration
    stall_ns = [[0] * LAYERS for _ in CAUSES]
    end, stalled = account(entries, began_ns, stall_ns)
    assert end == clock
    assert stalled == sum(gap for gap, *_ in drawn) == sum(map(sum, stall_ns))
    assert min(map(min, stall_ns)) >= 0
    assert stall_ns == moment_by_moment(entries, began_ns)
