"""Host memory in front of a disk equals a naive list of experts or pages, and fits its size."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moesim.errors import UsageError
from moesim.serving.experts.host_memory import PAGE_BYTES, HostMemory, Unit

PAGE = 4
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)
UNITS: list[Unit] = ["expert", "page"]


class NaiveExperts:
    """A list of whole experts, the least recently used first."""

    def __init__(self, capacity: int, sizes: list[int], pinned: set[int]) -> None:
        self.capacity = capacity - sum(sizes[key] for key in pinned)
        self.sizes, self.pinned = sizes, pinned
        self.recent: list[int] = []
        for key in range(len(sizes)):
            self.read(key)

    def read(self, key: int) -> int:
        if key in self.pinned:
            return 0
        missing = 0 if key in self.recent else self.sizes[key]
        self.recent = [other for other in self.recent if other != key] + [key]
        while sum(self.sizes[other] for other in self.recent) > self.capacity:
            self.recent.pop(0)
        return missing

    def place(self, key: int) -> str:
        return "host" if key in self.pinned or key in self.recent else "disk"

    def held(self) -> int:
        return sum(self.sizes[key] for key in [*self.recent, *self.pinned])


class NaivePages:
    """A list of (expert, page), the least recently used first; the last page may be short."""

    def __init__(self, capacity: int, sizes: list[int], pinned: set[int]) -> None:
        self.pages = {
            key: [(key, start) for start in range(0, size, PAGE)] for key, size in enumerate(sizes)
        }
        self.capacity = capacity // PAGE - sum(len(self.pages[key]) for key in pinned)
        self.sizes, self.pinned = sizes, pinned
        self.recent: list[tuple[int, int]] = []
        for key in range(len(sizes)):
            self.read(key)

    def read(self, key: int) -> int:
        if key in self.pinned:
            return 0
        missing = [page for page in self.pages[key] if page not in self.recent]
        self.recent = [page for page in self.recent if page[0] != key]
        room = self.capacity - len(self.pages[key])  # all pages of the expert are touched at once
        self.recent = self.recent[max(0, len(self.recent) - room) :] + self.pages[key]
        return sum(min(PAGE, self.sizes[key] - start) for _, start in missing)

    def place(self, key: int) -> str:
        there = key in self.pinned or set(self.pages[key]).issubset(self.recent)
        return "host" if there else "disk"

    def held(self) -> int:
        return PAGE * (len(self.recent) + sum(len(self.pages[key]) for key in self.pinned))


NAIVE: dict[Unit, type[NaiveExperts] | type[NaivePages]] = {
    "expert": NaiveExperts,
    "page": NaivePages,
}


@pytest.mark.parametrize("unit", UNITS)
@given(SIZES, st.data())
def test_host_memory_equals_its_naive_version_use_by_use(
    unit: Unit, sizes: list[int], data: st.DataObject
) -> None:
    taken = sizes if unit == "expert" else [-(-size // PAGE) * PAGE for size in sizes]
    keys = st.sampled_from(range(len(sizes)))
    pinned = data.draw(st.sets(keys))
    needed = sum(taken[key] for key in pinned)
    others = [taken[key] for key in range(len(sizes)) if key not in pinned]
    capacity = needed + data.draw(st.integers(max(others, default=0), sum(others) + PAGE))
    memory = HostMemory(capacity, sizes, unit, page_bytes=PAGE, pinned=pinned)
    oracle = NAIVE[unit](capacity, sizes, pinned)
    for key in data.draw(st.lists(keys, max_size=40)):
        places = [memory.place(other) for other in range(len(sizes))]
        assert places == [oracle.place(other) for other in range(len(sizes))]
        assert memory.held_bytes == oracle.held() <= capacity
        assert memory.read(key) == oracle.read(key)
        assert memory.place(key) == "host"
        assert memory.read(key) == 0


@pytest.mark.parametrize("unit", UNITS)
@given(SIZES, st.data())
def test_bytes_are_read_and_dropped_in_equal_amounts(
    unit: Unit, sizes: list[int], data: st.DataObject
) -> None:
    sizes = [size * PAGE for size in sizes]
    capacity = data.draw(st.integers(max(sizes), sum(sizes)))
    memory = HostMemory(capacity, sizes, unit, page_bytes=PAGE)
    for key in data.draw(st.lists(st.sampled_from(range(len(sizes))), max_size=40)):
        before, free = memory.held_bytes, capacity - memory.held_bytes
        there = {other for other in range(len(sizes)) if memory.place(other) == "host"}
        read = memory.read(key)
        if unit == "page":  # bytes leave only where no free page is left, and no more than needed
            assert memory.held_bytes == before + min(read, free // PAGE * PAGE)
        else:
            dropped = sum(sizes[other] for other in there if memory.place(other) == "disk")
            assert memory.held_bytes == before + read - dropped
            assert not dropped or read > free


@pytest.mark.parametrize("unit", UNITS)
@given(SIZES, st.data())
def test_every_expert_that_loses_bytes_is_told(
    unit: Unit, sizes: list[int], data: st.DataObject
) -> None:
    capacity = PAGE + data.draw(st.integers(max(sizes), sum(sizes) + PAGE * len(sizes)))
    memory = HostMemory(capacity, sizes, unit, page_bytes=PAGE)
    told: set[int] = set()
    memory.on_loss = told.add
    keys = range(len(sizes))
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=40)):
        before = [memory.unread(other) for other in keys]
        told.clear()
        memory.read(key)
        assert told == {other for other in keys if memory.unread(other) > before[other]}


@given(
    st.integers(1, 6), st.integers(1, 8), st.integers(1, 9), st.lists(st.integers(0, 5)), st.data()
)
def test_pages_equal_experts_if_all_sizes_are_one_multiple_of_the_page(
    experts: int, pages: int, slots: int, uses: list[int], data: st.DataObject
) -> None:
    """The capacity must be a multiple of the size, or else a part of an expert stays."""
    size = pages * PAGE
    memories = [HostMemory(slots * size, [size] * experts, unit, page_bytes=PAGE) for unit in UNITS]
    for key in uses:
        if key < experts:
            whole, paged = (memory.read(key) for memory in memories)
            assert whole == paged


@given(SIZES, st.lists(st.integers(0, 5), max_size=20))
def test_nothing_is_read_if_all_experts_fit(sizes: list[int], uses: list[int]) -> None:
    uses = [key for key in uses if key < len(sizes)]
    taken = sum(-(-size // PAGE) * PAGE for size in sizes)
    for memory in (
        HostMemory(sum(sizes), sizes, "expert"),
        HostMemory(taken, sizes, "page", page_bytes=PAGE),
    ):
        assert [memory.read(key) for key in uses] == [0] * len(uses)
        assert {memory.place(key) for key in uses} <= {"host"}


@given(SIZES, st.integers(0, 200), st.sampled_from(UNITS))
def test_a_run_starts_with_the_end_of_the_file(sizes: list[int], room: int, unit: Unit) -> None:
    assume(room >= max(-(-size // PAGE) * PAGE for size in sizes))
    memory = HostMemory(room, sizes, unit, page_bytes=PAGE)
    places = [memory.place(key) for key in range(len(sizes))]
    assert places == sorted(places)  # `disk` first, then `host`
    assert places[-1] == "host"


def test_only_missing_pages_of_an_expert_are_read() -> None:
    memory = HostMemory(5 * PAGE, [3 * PAGE, 3 * PAGE], page_bytes=PAGE)
    assert memory.place(0) == "disk"  # its last two pages are there
    assert memory.read(0) == PAGE
    assert memory.read(1) == PAGE


def test_the_last_page_of_an_expert_is_read_as_far_as_the_expert_goes() -> None:
    memory = HostMemory(PAGE_BYTES, [1, PAGE_BYTES])
    assert memory.read(0) == 1
    assert memory.held_bytes == PAGE_BYTES


@pytest.mark.parametrize("unit", UNITS)
def test_an_expert_larger_than_the_memory_is_refused(unit: Unit) -> None:
    with pytest.raises(UsageError, match="at least 12 bytes"):
        HostMemory(11, [4, 12], unit, page_bytes=PAGE)
    with pytest.raises(UsageError, match=r"pinned experts take 4 bytes.* at least 16 bytes"):
        HostMemory(15, [4, 12], unit, page_bytes=PAGE, pinned={0})
    with pytest.raises(UsageError, match="pinned experts take 16 bytes"):
        HostMemory(15, [4, 12], unit, page_bytes=PAGE, pinned={0, 1})


def test_pinned_experts_never_leave() -> None:
    memory = HostMemory(3, [1] * 6, "expert", pinned={0, 1})
    assert [memory.read(key) for key in (5, 0, 2, 1, 3, 0, 1)] == [0, 0, 1, 0, 1, 0, 0]
