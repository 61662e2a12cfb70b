"""Lists of layer events as arrays behave as the lists of Python that they stand for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.policies.event_lists import EventLists
from moesim.policies.eviction.min import next_uses

LISTS = st.lists(st.lists(st.integers(0, 7), unique=True, max_size=5), max_size=20)


@given(LISTS)
def test_arrays_have_the_lists_that_they_were_made_of(lists: list[list[int]]) -> None:
    made = EventLists.of(lists)
    assert EventLists.of(made) is made
    assert list(made) == lists
    assert [made[place] for place in range(len(made))] == lists
    assert [made[place - len(lists)] for place in range(len(made))] == lists
    assert made[1:] == lists[1:]
    assert made.sizes.tolist() == list(map(len, lists))
    assert list(made.filled()) == [each for each in lists if each]
    assert list(made.singles()) == [[number] for each in lists for number in each]
    assert all(type(number) is int for each in made for number in each)
    with pytest.raises(IndexError):
        made[len(lists)]


def test_long_arrays_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.policies.event_lists._CHUNK", 3)
    lists = [[1, 2], [], [3], [], [4, 5, 6], [7], []]
    assert list(EventLists.of(lists)) == lists


@given(LISTS, LISTS)
def test_they_are_equal_where_their_lists_are(one: list[list[int]], other: list[list[int]]) -> None:
    assert (EventLists.of(one) == EventLists.of(other)) is (one == other)
    assert EventLists.of(one) == EventLists.of(map(list, one))


@given(LISTS)
def test_groups_have_the_events_of_their_numbers_in_order(lists: list[list[int]]) -> None:
    """Numbers 0 to 2 are of group 1, others of group 0; the list of both is cut to one."""
    group = [1, 1, 1, 0, 0, 0, 0, 0]
    lists = [[n for n in each if group[n] == group[each[0]]] for each in lists if each]
    found = EventLists.of(lists).grouped(group, 3)
    assert [list(each) for each in found] == [
        [each for each in lists if group[each[0]] == number] for number in range(3)
    ]


@given(LISTS)
def test_next_uses_are_those_of_a_walk_from_the_end(lists: list[list[int]]) -> None:
    following, first = next_uses(EventLists.of(lists))
    upcoming: dict[int, float] = {}
    for index in range(len(lists) - 1, -1, -1):
        expected = [upcoming.get(key, math.inf) for key in lists[index]]
        got = following[index]
        assert [each if each < len(lists) else math.inf for each in got] == expected
        upcoming.update(dict.fromkeys(lists[index], index))
    assert first == upcoming
    assert len({each for row in following for each in row if each >= len(lists)}) <= 1
