"""Host time and shared resources: cases worked out by hand, and a literal simulation of the rules.

The literal simulation is `read_out`. It moves nanosecond by nanosecond, with exact fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_servers import (
    CPU,
    D2H,
    DEMAND,
    DISK,
    GPU,
    H2D,
    PREFETCH,
    Await,
    Issue,
    Promote,
    Tariff,
    play,
    play_all,
    read_out_all,
    shuffled_events,
)

from moesim.machine.events import EventMachine
from moesim.machine.sim import SimMachine
from moesim.machine.work import Cost

NS = 10**9
MACHINES = [SimMachine, EventMachine, shuffled_events(5)]
NAMES = ["folded", "events", "shuffled"]
both_machines = pytest.mark.parametrize("make", MACHINES, ids=NAMES)
KINDS = [
    *[(H2D, DEMAND), (H2D, PREFETCH), (H2D, PREFETCH), (D2H, DEMAND), (GPU, DEMAND)],
    *[(CPU, DEMAND), (DISK, DEMAND), (DISK, PREFETCH)],
]


def dram(capacity: int, rates: dict[str, int] | None = None, latency: int = 0) -> Tariff:
    """Return prices of a machine whose CPU, disk and copies to the GPU read host memory."""
    whole = [("dram", 2)]
    shared = {H2D: whole, CPU: whole, DISK: whole}
    return Tariff(latency, None, {"dram": capacity}, shared, rates or {})


@st.composite
def scripts(draw: Any, *, most: int = 9, most_issue_ns: int = 5) -> list[Any]:
    """Draw random servers of five lanes.

    Jobs have up to `most` bytes and may wait for others. The host takes up to `most_issue_ns` for
    each.
    """
    script: list[Any] = []
    jobs = 0
    needed: set[int] = set()  # a job that is promoted behind one that waits for it would never run
    for kind in draw(st.lists(st.integers(0, 9), min_size=3, max_size=25)):
        one = st.integers(0, max(0, jobs - 1))
        some = st.lists(one, max_size=2 * bool(jobs), unique=True).map(tuple)
        if kind <= 5:
            lane, priority = draw(st.sampled_from(KINDS))
            after = draw(some)
            needed.update(after)
            jobs += 1
            size, issue_ns = draw(st.integers(0, most)), draw(st.integers(0, most_issue_ns))
            script.append(Issue(lane, size, priority, after, issue_ns))
        elif kind <= 7 and jobs:
            number = draw(one)
            if number not in needed:
                script.append(Promote(number))
        else:
            wanted = draw(some)
            for_ns = draw(st.integers(0, 12)) if not wanted or draw(st.booleans()) else None
            script.append(Await(wanted, for_ns))
    return script


@st.composite
def tariffs(draw: Any) -> Tariff:
    """Draw prices of machines with up to two shared resources, of any capacities and users."""
    names = ["dram", "root"][: draw(st.integers(0, 2))]
    rates = st.integers(3 * 10**8, 3 * 10**9)
    halves = st.sampled_from([1, 2, 2, 2, 3])
    shared = {}
    for lane in (GPU, H2D, D2H, CPU, DISK):
        used = [name for name in names if draw(st.booleans())]
        if used:
            shared[lane] = [(name, draw(halves)) for name in used]
    return Tariff(
        draw(st.integers(0, 2)),
        draw(st.sampled_from([None, 1, 2, 3])),
        {name: draw(rates) for name in names},
        shared,
        {lane: draw(rates) for lane in shared},
    )


@both_machines
@settings(max_examples=400)
@given(scripts(), st.integers(0, 2), st.sampled_from([None, 1, 2, 3]))
def test_the_host_issues_one_work_after_another(
    make: Any, script: list[Any], latency: int, chunk: int | None
) -> None:
    tariff = Tariff(latency, chunk)
    assert play_all(make, tariff, script) == read_out_all(tariff, script)


@both_machines
@settings(max_examples=800)
@given(scripts(most=1, most_issue_ns=1), st.integers(0, 1))
def test_work_that_takes_no_time_is_over_after_lanes_have_started(
    make: Any, script: list[Any], latency: int
) -> None:
    tariff = Tariff(latency)
    assert play_all(make, tariff, script) == read_out_all(tariff, script)


@both_machines
@settings(max_examples=400)
@given(scripts(), tariffs())
def test_lanes_share_resources_nanosecond_by_nanosecond(
    make: Any, script: list[Any], tariff: Tariff
) -> None:
    assert play_all(make, tariff, script) == read_out_all(tariff, script)


@settings(max_examples=400)
@given(scripts(), tariffs(), st.integers(0, 1000))
def test_the_order_of_simultaneous_events_changes_nothing(
    script: list[Any], tariff: Tariff, seed: int
) -> None:
    folded = play_all(SimMachine, tariff, script)
    assert folded == play_all(shuffled_events(seed), tariff, script)


@settings(max_examples=200)
@given(scripts(most_issue_ns=0), tariffs())
def test_waits_that_concern_no_work_change_nothing(script: list[Any], tariff: Tariff) -> None:
    """A wait of n ns is cut into n waits of 1 ns, so flows are examined each time."""
    cut: list[Any] = []
    for action in script:
        blind = isinstance(action, Await) and not action.jobs and action.for_ns
        cut += [Await((), 1)] * action.for_ns if blind else [action]
    assert play(SimMachine, tariff, cut)[0] == play(SimMachine, tariff, script)[0]


def watched(
    make: Callable[..., Any], observer: Callable[[Sequence[Cost], Sequence[int]], None]
) -> Callable[..., Any]:
    """Return a maker of machines that tell `observer` the rates of flows."""

    def made(*given: Any) -> Any:
        machine = make(*given)
        machine.sharing.observer = observer
        return machine

    return made


@both_machines
@settings(max_examples=200)
@given(scripts(), tariffs())
def test_rates_never_exceed_a_capacity(make: Any, script: list[Any], tariff: Tariff) -> None:
    """Unless the least rate, 1 byte/s, is too much already."""

    def check(costs: Sequence[Cost], rates: Sequence[int]) -> None:
        for name, capacity in tariff.capacities.items():
            flows = [
                (rate, nbytes / cost.nbytes)
                for cost, rate in zip(costs, rates, strict=True)
                for used, nbytes in cost.uses
                if used == name
            ]
            load = sum(rate * per_byte for rate, per_byte in flows)
            assert load <= capacity * (1 + 1e-12) or all(rate == 1 for rate, _ in flows)
        assert all(1 <= rate <= cost.rate for cost, rate in zip(costs, rates, strict=True))

    play(watched(make, check), tariff, script)


@both_machines
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(10**8, 3 * 10**9),
    st.integers(0, 10**9),
)
def test_a_larger_capacity_never_makes_a_pair_finish_later(
    make: Any, copied: int, read: int, gap: int, capacity: int, more: int
) -> None:
    script: list[Any] = [Issue(H2D, copied), Await((), gap), Issue(CPU, read)]
    small, large = (
        play(make, dram(size, {CPU: 2 * NS}), script)[0] for size in (capacity, capacity + more)
    )
    for (_, late), (_, early) in zip(small, large, strict=True):
        assert early <= late


# --- worked out by hand ---------------------------------------------------------------------------


@both_machines
def test_a_host_that_launches_slower_than_kernels_run_paces_the_gpu(make: Any) -> None:
    """Launches take 10 ns and kernels 4: each kernel starts when it is launched."""
    script: list[Any] = [Issue(GPU, 4, issue_ns=10)] * 3 + [Await((), 0), Issue(GPU, 30, DEMAND)]
    script += [Issue(GPU, 4, issue_ns=10), Await((), 5)]
    times, resumed = play(make, Tariff(), script)
    assert times == [(10, 14), (20, 24), (30, 34), (34, 64), (64, 68)]
    # The first wait ends when the host has launched all; the second too, at 30 + 10.
    assert resumed == [30, 40]


@both_machines
def test_a_prefetch_starts_before_a_demand_copy_that_is_released_later(make: Any) -> None:
    """The prefetch is released at 150 and the link idle, so it starts, and demand waits for it."""
    script = [Issue(H2D, 200, PREFETCH, issue_ns=150), Issue(H2D, 100, DEMAND, issue_ns=150)]
    times, _ = play(make, Tariff(), script)
    assert times == [(150, 350), (350, 450)]


@both_machines
def test_a_promoted_prefetch_may_start_before_its_promotion(make: Any) -> None:
    """The first prefetch starts at 5. The second, promoted at 10, goes behind the demand copy
    released before, and ahead of that released after."""
    script: list[Any] = [
        Issue(H2D, 20, PREFETCH, issue_ns=5),
        Issue(H2D, 20, PREFETCH),
        Issue(H2D, 20, DEMAND, issue_ns=5),
        Promote(1),
        Promote(0),
        Issue(H2D, 20, DEMAND, issue_ns=5),
    ]
    times, _ = play(make, Tariff(), script)
    assert times == [(5, 25), (45, 65), (25, 45), (65, 85)]


@both_machines
def test_a_copy_and_a_cpu_read_slow_each_other_down(make: Any) -> None:
    """Both want 1 byte/ns of 1 byte/ns: each gets half until the shorter is over at 2 · 30.

    The copy has 20 of its 50 bytes left then and moves them at full speed.
    """
    played = play_all(make, dram(NS), [Issue(H2D, 50), Issue(CPU, 30)])
    assert played.times == [(0, 80), (0, 60)]
    assert played.busy == [80, 60]


@both_machines
def test_a_slow_flow_leaves_the_rest_of_its_share_to_the_others(make: Any) -> None:
    """A capacity of 2.2 bytes/ns is 0.73 for each of three. The disk reads 0.2 of them, so that 2
    are left: 1 for the copy, 1 for the CPU."""
    rates = {DISK: NS // 5, CPU: 5 * NS}
    tariff = dram(2_200_000_000, rates)
    times, _ = play(make, tariff, [Issue(H2D, 20), Issue(CPU, 20), Issue(DISK, 20)])
    assert times == [(0, 20), (0, 20), (0, 100)]


@both_machines
def test_the_fixed_part_of_a_copy_uses_no_shared_resource(make: Any) -> None:
    """The CPU reads 1 byte/ns for 10 ns, while the copy pays its latency; from then on each gets
    half. The CPU's last 5 bytes take 10 ns, and the copy's last 5 take 5."""
    tariff = Tariff(10, None, {"dram": NS}, {H2D: [("dram", 2)]}, {})
    assert play(make, tariff, [Issue(H2D, 10)])[0] == [(0, 20)]
    both = dram(NS, latency=10)
    script: list[Any] = [Issue(CPU, 15), Await((), 10), Issue(H2D, 10)]
    # From 10 to 20 the CPU reads alone, then both at half speed.
    assert play(make, both, script)[0] == [(0, 30), (10, 35)]


@both_machines
def test_what_waits_for_a_flow_has_no_finish_before_it_is_over(make: Any) -> None:
    """The expert is computed on the GPU once its copy is over, and the CPU slows the copy down."""
    script: list[Any] = [Issue(H2D, 10), Issue(GPU, 7, after=(0,)), Await((), 5), Issue(CPU, 5)]
    times, _ = play(make, dram(NS), script)
    assert times == [(0, 15), (15, 22), (5, 15)]


@both_machines
def test_a_flow_takes_each_chunk_from_its_own_start(make: Any) -> None:
    """A prefetch of three chunks; demand goes between them, while the CPU takes its half."""
    whole = [("dram", 2)]
    tariff = Tariff(2, 10, {"dram": NS}, {H2D: whole, CPU: whole}, {})
    script: list[Any] = [Issue(H2D, 30, PREFETCH), Await((), 5), Issue(H2D, 5)]
    # 2 + 10 alone, then demand 2 + 5, then 20 in two chunks.
    assert play(make, tariff, script)[0] == [(0, 39), (12, 19)]
    script.append(Issue(CPU, 10))
    # The CPU pays its latency until 7; with 5 bytes of the chunk left, both run at half speed until
    # 17. The demand copy pays its latency until 19, and the CPU reads 2 more of its last 5 bytes.
    # Then both run at half speed until the CPU's last 3 are over at 25, when 2 bytes of demand are
    # left.
    assert play(make, tariff, script)[0] == [(0, 47), (17, 27), (5, 25)]


@both_machines
def test_a_finish_is_rounded_up_and_a_rate_down(make: Any) -> None:
    """A byte at 3 bytes/s takes 333,333,334 ns. Three flows share 10 bytes/s: 3, 3, and 4 for the
    last of them."""
    assert play(make, dram(3), [Issue(H2D, 1)])[0] == [(0, 333_333_334)]
    script = [Issue(H2D, 3), Issue(CPU, 3), Issue(DISK, 4)]
    assert play(make, dram(10), script)[0] == [(0, NS)] * 3


@both_machines
def test_what_is_left_of_a_division_goes_to_the_flow_issued_last(make: Any) -> None:
    """The copy is issued first and starts last, at 1. Each flow has 3, 3 and 4 bytes/s from then
    on, in order of issue, so the last two are over at 1 s."""
    script = [Issue(GPU, 1), Issue(H2D, 3, after=(0,)), Issue(CPU, 3), Issue(DISK, 4)]
    times, _ = play(make, dram(10), script)
    assert times[1:] == [(1, NS + 1), (0, NS), (0, NS)]


@both_machines
def test_rates_are_computed_once_an_instant(make: Any) -> None:
    """At 20 a copy ends, the server acts, and two flows start beside the disk's: then there is one
    new set of rates."""
    seen: list[tuple[int, ...]] = []

    def note(_costs: Sequence[Cost], rates: Sequence[int]) -> None:
        seen.append(tuple(rates))

    script: list[Any] = [Issue(H2D, 10), Issue(DISK, 100), Await((), 20)]
    script += [Issue(CPU, 90), Issue(H2D, 90)]
    play(watched(make, note), dram(NS), script)
    assert seen[:2] == [(NS // 2, NS // 2), (NS // 3, NS // 3, NS // 3 + 1)]


@both_machines
def test_demand_that_waits_for_work_without_a_duration_lets_a_prefetch_by(make: Any) -> None:
    """At 10 the link gets free and the server issues a copy out that takes no time. Lanes start
    before it is over, so the prefetch goes first."""
    script: list[Any] = [
        Issue(H2D, 10),
        Issue(H2D, 5, PREFETCH),
        Await((), 10),
        Issue(D2H, 0),
        Issue(H2D, 7, after=(2,)),
    ]
    assert play(make, Tariff(), script)[0] == [(0, 10), (10, 15), (10, 10), (15, 22)]
    # All is issued at once here, and each copy takes 1 ns.
    script = [Issue(GPU, 0), Issue(H2D, 1, PREFETCH), Issue(H2D, 1, after=(0,)), Issue(H2D, 1)]
    assert play(make, Tariff(), script)[0] == [(0, 0), (0, 1), (1, 2), (2, 3)]
