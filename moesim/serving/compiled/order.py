"""Parts of a list of keys, put in the order of their scores."""

from __future__ import annotations

from moesim.serving.compiled.keep import kept

__all__ = ["lowest", "part_wanted", "sort_by_score"]


@kept
def _swap(keys, first, second, one, other):  # type: ignore[no-untyped-def]
    keys[one], keys[other] = keys[other], keys[one]
    first[one], first[other] = first[other], first[one]
    second[one], second[other] = second[other], second[one]


@kept
def part_wanted(keys, first, second, number, wanted):  # type: ignore[no-untyped-def]
    """Move wanted keys behind the others, and return how many others there are."""
    others = 0
    for place in range(number):
        if not wanted[keys[place]]:
            _swap(keys, first, second, others, place)
            others += 1
    return others


@kept
def lowest(keys, first, second, start, stop, number):  # type: ignore[no-untyped-def]
    """Move the `number` keys with the lowest scores to the front of `start` to before `stop`.

    Hoare's selection (1961): parts are divided by a pivot until the border is at `number`.
    """
    if number <= 0 or number >= stop - start:
        return
    if number == 1:
        best = start
        for place in range(start + 1, stop):
            if first[place] < first[best] or (
                first[place] == first[best] and second[place] < second[best]
            ):
                best = place
        _swap(keys, first, second, start, best)
        return
    low, high, border = start, stop - 1, start + number - 1
    while low < high:
        middle = (low + high) >> 1
        pivot_first, pivot_second = first[middle], second[middle]
        left, right = low, high
        while left <= right:
            while first[left] < pivot_first or (
                first[left] == pivot_first and second[left] < pivot_second
            ):
                left += 1
            while first[right] > pivot_first or (
                first[right] == pivot_first and second[right] > pivot_second
            ):
                right -= 1
            if left <= right:
                _swap(keys, first, second, left, right)
                left += 1
                right -= 1
        if border <= right:
            high = right
        elif border >= left:
            low = left
        else:
            return


@kept
def sort_by_score(keys, first, second, start, stop):  # type: ignore[no-untyped-def]
    """Sort some keys by their scores. Few keys leave at once, so they are inserted one by one."""
    for place in range(start + 1, stop):
        turn = place
        while turn > start and (
            first[turn] < first[turn - 1]
            or (first[turn] == first[turn - 1] and second[turn] < second[turn - 1])
        ):
            _swap(keys, first, second, turn - 1, turn)
            turn -= 1
