"""A layer event is decided once, as data: what happens to each wanted expert, and who leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from layer_events import EXPERT_BYTES, FIVE_LANES, HandPrices, LeastRecent, program_on

from moesim.hardware.topology import CPU, DISK, H2D
from moesim.machine.sim import SimMachine
from moesim.policies import View, find
from moesim.policies.eviction import CacheContext, Eviction
from moesim.serving.experts.decision import Decision
from moesim.serving.experts.program import Hidden, Program
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.experts.slots import ExpertSizes, Slot, Staging
from moesim.serving.issue import HostTimes, Issuer
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.stalls import CAUSES, Entry, account

EXPERTS = 8
NAMES = ["lru", "fifo", "lfu", "lfu_decay", "lfu_in_cache", "random", "static"]
NAMES += ["activation_matrix", "arc", "fmoe", "least_stale", "lfru", "lirs", "mrs"]
NAMES += ["s3_fifo", "sieve"]
Place = Callable[[View, Sequence[int], Sequence[int], int], Mapping[int, str]]


@dataclass
class Served:
    """One cache of a single layer, on a machine with a CPU and a disk."""

    name: str = "lru"
    capacity: int = 2
    staging: int = 1
    admission: str = "always"
    write_back: bool = False
    place: Place | None = None
    host: Any = None
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = CacheContext(
            capacity=self.capacity,
            universe=range(EXPERTS),
            admission=self.admission,
            rng=np.random.default_rng(0),
            popularity=lambda _: dict.fromkeys(range(EXPERTS), 1),
        )
        self.policy: Eviction = find("eviction", self.name)(context)
        # Copies are cut, so demand can overtake a prefetch in the middle.
        self.machine = SimMachine(simpy.Environment(), HandPrices(), FIVE_LANES)
        self.ledger = Ledger(LayerPlan.of(range(1), 1), EXPERTS, FIVE_LANES)
        self.cache = ExpertCache(
            self.policy,
            self.machine,
            self.ledger,
            Staging(self.staging),
            ExpertSizes(EXPERT_BYTES, self.write_back),
            place=self.place,
            host=self.host,
        )
        self.program: Program = program_on(FIVE_LANES)(self.machine)
        self.issue = Issuer(self.machine.submit, self.entries, FIVE_LANES, HostTimes())

    def event(self, union: Sequence[int], rows: Sequence[int] = ()) -> Decision:
        """Decide and issue one event; by default one row wants each expert."""
        it = self.cache.decide(0, View(0, union, rows or [1] * len(union)))
        self.program.event(it, Hidden("gpu"), sum(it.ready_rows), self.issue)
        # Empty parts may be of any kind of sequence.
        parts: list[Any] = [list(part) if isinstance(part, tuple | list) else part for part in it]
        return Decision(*parts)

    def prefetch(self, key: int, protected: Collection[int] = ()) -> Decision | None:
        """Decide and issue the copy ahead of an absent key."""
        it = self.cache.prefetch(0, key, protected)
        if it is not None:
            self.program.ahead(it, self.issue)
        return it

    def wait(self, duration_ns: int) -> None:
        """Let time pass."""
        list(self.machine.wait_any((), until_ns=self.machine.now_ns + duration_ns))

    def numbers(self) -> dict[int, int]:
        """Return the number of the slot of each resident."""
        return {key: slot.number for key, slot in self.cache.slots.items()}


def on_cpu(*keys: int) -> Place:
    """Return a placement that computes these keys on the CPU wherever they are absent."""
    return lambda view, missing, arriving, rows: {
        key: CPU for key in (*missing, *arriving) if key in keys
    }


def only(keys: Sequence[tuple[Any, ...]]) -> list[int]:
    return [item[0] for item in keys]


# --- by hand --------------------------------------------------------------------------------------


def test_an_absent_expert_is_copied_in_or_computed_where_the_placement_says() -> None:
    served = Served(capacity=4, place=on_cpu(3, 5))
    it = served.event([3, 1, 5], [7, 8, 9])
    assert (it.ready, it.late) == ([], [])
    assert it.elsewhere == [(3, 7, CPU), (5, 9, CPU)]
    assert [(key, rows) for key, rows, _ in it.loads] == [(1, 8)]
    assert it.waves == 1


def test_an_expert_that_ran_elsewhere_and_is_kept_is_copied_later_into_its_slot() -> None:
    served = Served(capacity=4, place=on_cpu(3, 5))
    it = served.event([3, 1, 5])
    assert [(key, slot.number) for key, slot in it.later] == [
        (key, served.numbers()[key]) for key in (3, 5)
    ]
    kinds = [entry.kind for entry in served.entries]
    assert kinds.index("demand") < kinds.index("prefetch"), "demand copies go first"
    served.wait(1000)
    again = served.event([3, 1, 5])
    assert (again.ready, again.elsewhere, again.loads) == ([3, 1, 5], [], [])
    assert served.ledger.prefetch_useful == 2


def test_an_expert_that_ran_elsewhere_and_is_not_kept_is_not_copied_at_all() -> None:
    served = Served(capacity=0, place=on_cpu(3, 5))
    it = served.event([3, 5])
    assert (it.later, it.loads, it.waves) == ([], [], 0)
    assert not [
        entry for entry in served.entries if entry.work.lane == H2D and entry.kind != "states"
    ]


def test_a_bypass_needs_no_slot_but_a_staging_buffer_where_it_is_copied() -> None:
    served = Served(capacity=0, staging=2, place=on_cpu(4))
    it = served.event([0, 4, 1, 2])
    assert [(key, slot.number) for key, _, slot in it.loads] == [(0, 0), (1, 1), (2, 0)]
    assert (it.waves, served.cache.slots) == (2, {})
    # The expert on the CPU uses no buffer: the next one follows the third.
    assert [slot.number for *_, slot in served.event([3]).loads] == [1]


def test_residents_stay_on_the_gpu_and_are_not_placed() -> None:
    asked: list[tuple[list[int], list[int]]] = []

    def place(
        view: View, missing: Sequence[int], arriving: Sequence[int], rows: int
    ) -> dict[int, str]:
        asked.append((list(missing), list(arriving)))
        return {}

    served = Served(capacity=3, place=place)
    served.event([0, 1])
    served.wait(1000)
    served.prefetch(2)
    served.event([1, 2, 3])
    served.wait(1000)
    served.event([2])
    assert asked == [([0, 1], []), ([3], [2])]


def test_an_expert_on_its_way_may_run_on_the_cpu_and_its_copy_goes_on() -> None:
    served = Served(capacity=2, place=on_cpu(2))
    served.prefetch(2)
    it = served.event([2])
    assert (it.late, it.elsewhere, it.later, it.loads) == ([], [(2, 1, CPU)], [], [])
    assert len([entry for entry in served.entries if entry.kind == "prefetch"]) == 1
    served.wait(1000)
    assert served.event([2]).ready == [2]
    assert served.ledger.prefetch_useful == 1


def test_late_experts_are_in_the_order_in_which_they_land() -> None:
    served = Served(capacity=3)
    for key in (5, 2, 4):
        served.prefetch(key)
    assert only(served.event([2, 4, 5]).late) == [5, 2, 4]
    assert served.ledger.prefetch_late == 3


def test_the_gpu_waits_for_late_copies_for_demand_copies_and_for_the_disk() -> None:
    """A copy takes 100 ns, a read from disk as long; the computation of one row takes 11 ns."""
    served = Served(capacity=3, host=LeastRecent(2, EXPERT_BYTES))
    served.host.read(2)
    served.prefetch(2)
    served.wait(30)
    served.event([2, 3])
    served.machine.settle()
    stall_ns = [[0, 0] for _ in CAUSES]
    assert account(served.entries, 30, stall_ns) == (241, 70 + 119)
    # The disk reads from 30 to 130, the copy follows until 230.
    assert {name: sum(ns) for name, ns in zip(CAUSES, stall_ns, strict=True) if sum(ns)} == {
        "late": 70,
        "disk": 19,
        "demand": 100,
    }


def test_a_leaver_is_vacated_where_it_is_on_its_way_or_is_written_back() -> None:
    served = Served(capacity=1)
    served.prefetch(3)
    assert only(served.event([1]).vacated) == [3]
    served.wait(1000)
    assert served.event([2]).vacated == []
    backed = Served(capacity=1, write_back=True)
    backed.event([1])
    it = backed.event([2])
    assert (only(it.vacated), it.write_back) == ([1], True)


@pytest.mark.parametrize(("read", "idle"), [(0, 1), (1, 0)])
def test_the_slot_of_a_leaver_that_is_not_computed_now_is_taken_first(read: int, idle: int) -> None:
    """Both residents leave, and one of them is computed: its slot must wait, the other need not."""
    served = Served(capacity=2)
    served.event([0, 1])
    served.wait(1000)
    before = served.numbers()
    it = served.event([read, 5, 6])
    assert [slot.number for *_, slot in it.loads] == [before[idle], before[read]]


def test_what_is_not_in_host_memory_is_read_once_an_event() -> None:
    asked: list[int] = []

    class Disk(LeastRecent):
        def read(self, key: int) -> int:
            asked.append(key)
            return super().read(key)

    served = Served(capacity=2, place=on_cpu(3), host=Disk(4, 1000))
    it = served.event([3, 1])
    assert it.reads == {1: 1000, 3: 1000}
    assert sorted(asked) == [1, 3]
    served.wait(1000)
    assert served.event([3, 1]).reads == {}, "residents are not read"
    assert [entry.work.lane for entry in served.entries].count(DISK) == 2


def test_a_look_at_the_residents_of_a_layer_is_no_use_of_them() -> None:
    served = Served(capacity=EXPERTS)
    served.event(range(EXPERTS - 1))
    assert not served.cache.holds(0, EXPERTS)
    served.prefetch(EXPERTS - 1)
    assert not served.cache.holds(0, EXPERTS), "a copy is under way"
    served.wait(5000)
    assert served.cache.holds(0, EXPERTS)
    assert served.ledger.prefetch_useful == 0
    assert served.cache.unused_prefetches == 1
    served.event([EXPERTS - 1])
    assert served.ledger.prefetch_useful == 1


# --- random events --------------------------------------------------------------------------------


@dataclass
class Checked(Served):
    """Checks each decision against the residents before it and the leavers of the policy."""

    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.leavers: list[int] = []
        answer = self.cache._leavers

        def noted(view: View) -> Any:
            leavers = answer(view)
            self.leavers = list(leavers)
            return leavers

        self.cache._leavers = noted

    def checked(self, union: Sequence[int], rows: Sequence[int]) -> None:
        before = self.numbers()
        landing = {key for key, slot in self.cache.slots.items() if not self.cache._is_here(slot)}
        self.leavers = []
        it = self.event(union, rows)
        after, bypass = self.numbers(), set(self.leavers) - before.keys()
        self.cache.audit()
        assert set(after) == (before.keys() | set(union)) - set(self.leavers)
        assert len(set(after.values())) == len(after) <= self.capacity
        self._check_partition(it, union, rows, before, landing)
        self._check_slots(it, before, after, bypass)
        for name in ("late", "loads", "elsewhere", "later", "vacated", "reads"):
            self.seen[name] = self.seen.get(name, 0) + len(getattr(it, name))
        self.seen["bypass"] = self.seen.get("bypass", 0) + len(bypass)

    def _check_partition(
        self,
        it: Decision,
        union: Sequence[int],
        rows: Sequence[int],
        before: Mapping[int, int],
        landing: Collection[int],
    ) -> None:
        """Each wanted expert is in one place, with its rows."""
        parts = [(key, count) for key, count in zip(it.ready, it.ready_rows, strict=True)]
        parts += [(key, count) for key, count, _ in (*it.late, *it.loads, *it.elsewhere)]
        assert sorted(parts) == sorted(zip(union, rows, strict=True))
        assert set(it.ready) == (before.keys() & set(union)) - set(landing)
        placed = set(only(it.elsewhere))
        assert set(only(it.late)) == (set(union) & set(landing)) - placed
        assert set(only(it.loads)) == set(union) - before.keys() - placed

    def _check_slots(
        self,
        it: Decision,
        before: Mapping[int, int],
        after: Mapping[int, int],
        bypass: Collection[int],
    ) -> None:
        """Readers have the slot of their key; a bypass has a staging buffer, or none."""
        held = zip(it.ready, it.held, strict=True)
        read = [*held, *((key, slot) for key, _, slot in it.late)]
        assert all(before[key] == slot.number for key, slot in read)
        for key, _, slot in it.loads:
            staged = slot.number < self.staging
            assert staged == (key in bypass)
            assert staged or after[key] == slot.number
        kept = [key for key in only(it.elsewhere) if key in after and key not in before]
        assert {key: slot.number for key, slot in it.later} == {key: after[key] for key in kept}
        staged_count = sum(slot.number < self.staging for *_, slot in it.loads)
        assert it.waves == (max(1, -(-staged_count // self.staging)) if it.loads else 0)
        assert set(only(it.vacated)) <= before.keys() - after.keys()
        if self.write_back:
            assert set(only(it.vacated)) == before.keys() - after.keys()


EVENTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS),
        st.sampled_from([0, 30, 150, 2000]),
        st.lists(st.integers(0, EXPERTS - 1), max_size=2),
    ),
    max_size=12,
)
CACHES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "capacity": st.integers(0, EXPERTS),
        "staging": st.integers(1, 3),
        "admission": st.sampled_from(["always", "bypass"]),
        "write_back": st.booleans(),
    }
)


def serve(cache: dict[str, Any], events: Any, places: int | None, in_host: int | None) -> Checked:
    """Serve events, each followed by a pause and by prefetches; check every decision."""
    if cache["name"] == "static":
        cache = {**cache, "admission": "bypass", "write_back": False}
    rng = random.Random(places)

    def place(
        view: View, missing: Sequence[int], arriving: Sequence[int], rows: int
    ) -> dict[int, str]:
        assert not set(missing) & set(arriving)
        assert {*missing, *arriving} <= set(view.union)
        return {key: CPU for key in (*missing, *arriving) if rng.random() < 0.5}

    served = Checked(
        **cache,
        place=None if places is None else place,
        host=cast(Any, None if in_host is None else LeastRecent(in_host, EXPERT_BYTES)),
    )
    for union, pause_ns, ahead in events:
        served.checked(union, [rng.randint(1, 5) for _ in union])
        served.wait(pause_ns)
        for key in ahead:
            if key not in served.cache.slots:
                served.prefetch(key, {*union, *ahead})
                served.cache.audit()
    return served


@given(CACHES, EVENTS, st.none() | st.integers(0, 99), st.none() | st.integers(1, EXPERTS))
def test_every_wanted_expert_is_in_one_place_and_the_book_is_the_residency(
    cache: dict[str, Any], events: Any, places: int | None, in_host: int | None
) -> None:
    served = serve(cache, events, places, in_host)
    counts = served.ledger
    served.machine.settle()
    for entry in served.entries:
        assert all(entry.work.start_ns >= other.finish_ns for other in entry.work.after)
    assert counts.prefetch_late + counts.prefetch_useful + counts.prefetch_wasted <= sum(
        entry.kind == "prefetch" for entry in served.entries
    )


def test_random_events_show_every_outcome() -> None:
    """Otherwise the test above would check less than it says."""
    rng = random.Random(1)
    seen: dict[str, int] = {}
    for number in range(40):
        events = [
            (
                rng.sample(range(EXPERTS), rng.randint(0, 5)),
                rng.choice([0, 150]),
                [rng.randint(0, 7)],
            )
            for _ in range(8)
        ]
        cache = {
            "name": rng.choice(NAMES),
            "capacity": rng.randint(0, 6),
            "staging": 1,
            "admission": rng.choice(["always", "bypass"]),
            "write_back": number % 2 == 0,
        }
        for name, count in serve(cache, events, number, 3).seen.items():
            seen[name] = seen.get(name, 0) + count
    assert min(seen.values()) > 10, seen


@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_where_an_expert_runs_does_not_change_who_is_resident(capacity: int) -> None:
    rng = random.Random(capacity)
    events: Any = [(rng.sample(range(EXPERTS), 3), 50, []) for _ in range(30)]
    cache = {
        "name": "lru",
        "capacity": capacity,
        "staging": 1,
        "admission": "always",
        "write_back": False,
    }
    plain, placed = (serve(cache, events, places, None) for places in (None, 5))
    assert list(plain.cache.slots) == list(placed.cache.slots)
    assert placed.seen["elsewhere"] > 0


def test_slots_are_numbered_after_the_staging_buffers() -> None:
    served = Served(capacity=2, staging=3)
    served.event([0, 1])
    assert sorted(served.numbers().values()) == [3, 4]
    assert isinstance(served.cache.slots[0], Slot)
