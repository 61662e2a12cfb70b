"""The compiled function: layer events of a stretch of steps, decided and timed one after another.

It does what `ExpertCache.decide`, `Program.event` and the simulated machine do together where each
layer event begins and ends on idle lanes, and missing experts are copied to the GPU. Experts in GPU
memory run in one call; each missing one is copied, and runs when it has landed.

Shapes: S steps, L layers, K experts per row, N rows, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from moesim.serving.compiled import policies
from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.policies import KERNELS, RESIDENT, Kernel

__all__ = ["COLUMNS", "Books", "Costs", "Out", "Steps", "stretch_of", "unions_of_steps"]

COLUMNS: Final = (
    "hits", "demand_copies", "missed_rows", "rows", "waves", "waves_events", "stall_demand",
    "busy_gpu", "busy_h2d", "nonempty",
)  # fmt: skip
"""What is summed, in the order of the last axis of the sums."""
_RESIDENTS, _COPY, _LOADED = range(3)  # kinds of shown work


class Steps(NamedTuple):
    """The steps of a stretch: the unions of their layer events, and the times outside of these.

    `sizes` [S · L] are the numbers of keys of each union, `keys` and `counts` all keys one after
    another and the rows that want each. `fixed_ns` [S] is the time of a step beside its layer
    events; `shown` [S].
    """

    keys: Any
    counts: Any
    sizes: Any
    fixed_ns: Any
    shown: Any
    experts: int


class Costs(NamedTuple):
    """Durations in ns: of a call without its experts, of an expert with c rows, of what follows the
    copies of n experts, of a copy, and from the landing of a copy to the computation."""

    call_ns: int
    expert_ns: Any
    fetch_ns: Any
    copy_ns: int
    landing_ns: int


class Books(NamedTuple):
    """The caches: which keys have slots. `cache_of` [L], `members` [N, slots + union], others [N].

    With `fixed`, a cache never changes. `always` is the admission, `staging` the number of buffers.
    """

    cache_of: Any
    capacity: Any
    fixed: Any
    held: Any
    members: Any
    always: bool
    staging: int


class Out(NamedTuple):
    """What the function writes.

    `finish_ns` [S], sums [S, C] and [L, C], and `waves_max` [S].
    Shown works are rows (step, layer, kind, key, start, finish), with times from the start of their
    layer event.
    """

    finish_ns: Any
    by_step: Any
    by_layer: Any
    waves_max: Any
    works: Any


# In the place of these, `stretch_of` puts the functions of each policy.
observe, score, left = KERNELS["lru"][:3]
head: Any = KERNELS["lru"].head
following: Any = KERNELS["lru"].following
IN_ORDER = True


@kept
def _swap(keys, first, second, one, other):  # type: ignore[no-untyped-def]
    keys[one], keys[other] = keys[other], keys[one]
    first[one], first[other] = first[other], first[one]
    second[one], second[other] = second[other], second[one]


@kept
def _part_wanted(keys, first, second, number, wanted):  # type: ignore[no-untyped-def]
    """Move wanted keys behind the others, and return how many others there are."""
    others = 0
    for place in range(number):
        if not wanted[keys[place]]:
            _swap(keys, first, second, others, place)
            others += 1
    return others


@kept
def _lowest(keys, first, second, start, stop, number):  # type: ignore[no-untyped-def]
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
def unions_of_steps(ids, ends, unused, experts, keys, counts, sizes):  # type: ignore[no-untyped-def]
    """Write the unions of steps, in order of first appearance; return the number of their keys.

    Where a row has an expert twice, return -1 - its place among the rows and layers. Costs have
    entries for as many rows of an expert as a step has.

    `ids` [N, L, K]; step s has the rows `ends[s]` to before `ends[s + 1]`. `unused` marks a place
    without an expert. `keys`, `counts` and `sizes` are as in `Steps`.
    """
    layers, top_k = ids.shape[1], ids.shape[2]
    order = np.empty(experts + 1, np.int64)  # the last place takes what is no news
    rows_of = np.zeros(experts, np.int64)
    last = np.full(experts, -1, np.int64)  # the last row and layer that wanted an expert
    number = event = 0
    for step in range(len(ends) - 1):
        first, end = ends[step], ends[step + 1]
        for layer in range(layers):
            size, row, twice = 0, first, False
            if end - first == 1:  # the most frequent case, and no expert has appeared before
                for place in range(top_k):
                    expert = ids[first, layer, place]
                    if expert == unused:
                        continue
                    twice |= last[expert] == first * layers + layer
                    last[expert] = first * layers + layer
                    keys[number + size], counts[number + size] = layer * experts + expert, 1
                    size += 1
                row = end
            # Until all experts are found, without branches, which a processor could not predict.
            while row < end and size < experts:
                for place in range(top_k):
                    expert = ids[row, layer, place]
                    if expert == unused:
                        continue
                    order[size] = expert
                    size += rows_of[expert] == 0
                    rows_of[expert] += 1
                    twice |= last[expert] == row * layers + layer
                    last[expert] = row * layers + layer
                row += 1
            for later in range(row, end):
                for place in range(top_k):
                    expert = ids[later, layer, place]
                    if expert == unused:
                        continue
                    rows_of[expert] += 1
                    twice |= last[expert] == later * layers + layer
                    last[expert] = later * layers + layer
            if twice:
                return -1 - (_repeating(ids, first, layer, unused) * layers + layer)
            for place in range(size if end - first > 1 else 0):
                expert = order[place]
                keys[number + place] = layer * experts + expert
                counts[number + place] = rows_of[expert]
                rows_of[expert] = 0
            number += size
            sizes[event] = size
            event += 1
    return number


@kept
def _repeating(ids, first, layer, unused):  # type: ignore[no-untyped-def]
    """Return the first row from `first` on that has an expert of a layer twice."""
    row = first
    while True:
        for place in range(ids.shape[2]):
            for other in range(place):
                if ids[row, layer, place] == ids[row, layer, other] != unused:
                    return row
        row += 1


def _stretch(steps, start_ns, due_ns, costs, books, ints, floats, given, out):  # type: ignore[no-untyped-def]
    """Run steps; return the number of those that ran, of union keys, and of shown works.

    It stops behind the first step that ends at `due_ns` or later, because a request may arrive
    then.
    """
    experts, layers = steps.experts, len(books.cache_of)
    wanted = np.zeros(layers * experts, np.bool_)
    union = np.empty(experts, np.int64)
    absent = np.empty(experts, np.int64)
    counts = np.empty(experts, np.int64)  # the rows that want each of them
    bypassed = np.zeros(layers * experts, np.bool_)
    staged_until = np.zeros(books.staging, np.int64)
    worst = np.empty(experts, np.int64)  # leavers, the first one first
    most = books.members.shape[1]
    candidates = np.empty(most, np.int64)
    first = np.empty(most, np.float64)
    second = np.empty(most, np.int64)
    now, num_keys, num_works = start_ns, 0, 0
    for step in range(len(steps.fixed_ns)):
        sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = sum_5 = 0
        sum_6 = sum_7 = sum_8 = sum_9 = 0
        now += steps.fixed_ns[step]
        for layer in range(layers):
            by_layer = out.by_layer[layer]
            size = steps.sizes[step * layers + layer]
            number = books.cache_of[layer]
            cache = layers * experts + number  # its row
            capacity = books.capacity[number]
            members = books.members[number]
            held = books.held[number]
            missing = 0
            rows = 0
            resident_ns = 0
            for place in range(size):
                key = steps.keys[num_keys + place]
                count = steps.counts[num_keys + place]
                union[place], wanted[key] = key, True
                rows += count
                resident = ints[key, RESIDENT]
                resident_ns += resident * costs.expert_ns[count]
                absent[missing], counts[missing] = key, count
                missing += 1 - resident
            num_keys += size
            hits = size - missing
            if hits:
                resident_ns += costs.call_ns
            # Who leaves?
            leaving = 0
            if books.fixed[number]:
                for place in range(missing):
                    bypassed[absent[place]] = True
            else:
                observe(union, size, layer, cache, ints, floats, given)
                excess = held + missing - capacity
                if excess > 0 and IN_ORDER:
                    for turn in range(2):  # `always`: wanted keys leave in the second turn
                        key = head(cache, ints)
                        while leaving < excess and key >= 0:
                            if not books.always or wanted[key] == turn:
                                worst[leaving] = key
                                leaving += 1
                            key = following(key, ints)
                elif excess > 0:
                    leaving = excess
                    rivals = held + missing
                    for turn in range(held):
                        candidates[turn] = members[turn]
                    for place in range(missing):
                        candidates[held + place] = absent[place]
                    for turn in range(rivals):
                        first[turn], second[turn] = score(candidates[turn], cache, ints, floats)
                    others = rivals
                    if books.always:
                        others = _part_wanted(candidates, first, second, rivals, wanted)
                    early = min(excess, others)
                    _lowest(candidates, first, second, 0, others, early)
                    _lowest(candidates, first, second, others, rivals, excess - early)
                    for place in range(early):
                        worst[place] = candidates[place]
                    for place in range(excess - early):
                        worst[early + place] = candidates[others + place]
            idle = capacity - held  # slots that can be filled at once
            for place in range(leaving):
                key = worst[place]
                if not ints[key, RESIDENT]:
                    bypassed[key] = True
                else:
                    ints[key, RESIDENT] = 0
                    held -= 1
                    idle += not wanted[key]  # the GPU reads wanted ones in this event
                left(key, cache, ints)
            if leaving and not IN_ORDER:
                kept = 0
                for turn in range(books.held[number]):
                    if ints[members[turn], RESIDENT]:
                        members[kept] = members[turn]
                        kept += 1
            # The GPU computes residents; the link copies, and each copied expert follows.
            gpu_ns, link_ns, stall_ns, staged, buffer = resident_ns, 0, 0, 0, 0
            missed_rows, busy_ns = 0, resident_ns
            shows = steps.shown[step]
            if shows and hits:
                _show(out.works, num_works, step, layer, _RESIDENTS, -1, 0, resident_ns)
                num_works += 1
            for place in range(missing):
                key = absent[place]
                count = counts[place]
                missed_rows += count
                free_ns = 0
                passes = bypassed[key]
                if passes:
                    bypassed[key] = False
                    if staged >= books.staging:
                        free_ns = staged_until[buffer]
                else:
                    ints[key, RESIDENT] = 1
                    if not IN_ORDER:
                        members[held] = key
                    held += 1
                    if idle > 0:
                        idle -= 1
                    else:
                        free_ns = resident_ns
                begins = max(link_ns, free_ns)
                link_ns = begins + costs.copy_ns
                starts = max(gpu_ns, link_ns + costs.landing_ns)
                stall_ns += starts - gpu_ns
                fetched = missing if place == missing - 1 else 0
                lasts = costs.call_ns + costs.expert_ns[count] + costs.fetch_ns[fetched]
                gpu_ns = starts + lasts
                busy_ns += lasts
                if passes:
                    staged_until[buffer] = gpu_ns
                    staged += 1
                    buffer += 1
                    if buffer == books.staging:
                        buffer = 0
                if shows:
                    _show(out.works, num_works, step, layer, _COPY, key, begins, link_ns)
                    _show(out.works, num_works + 1, step, layer, _LOADED, -1, starts, gpu_ns)
                    num_works += 2
            for place in range(size):
                wanted[union[place]] = False
            waves = max(1, -(-staged // books.staging)) if missing else 0
            books.held[number] = held
            now += gpu_ns
            copied_ns = missing * costs.copy_ns
            by_layer[0] += hits
            by_layer[1] += missing
            by_layer[2] += missed_rows
            by_layer[3] += rows
            by_layer[4] += waves
            by_layer[5] += missing > 0
            by_layer[6] += stall_ns
            by_layer[7] += busy_ns
            by_layer[8] += copied_ns
            by_layer[9] += size > 0
            sum_0 += hits
            sum_1 += missing
            sum_2 += missed_rows
            sum_3 += rows
            sum_4 += waves
            sum_5 += missing > 0
            sum_6 += stall_ns
            sum_7 += busy_ns
            sum_8 += copied_ns
            sum_9 += size > 0
            if waves > out.waves_max[step]:
                out.waves_max[step] = waves
        out.finish_ns[step] = now
        by_step = out.by_step[step]
        by_step[0], by_step[1], by_step[2], by_step[3] = sum_0, sum_1, sum_2, sum_3
        by_step[4], by_step[5], by_step[6], by_step[7] = sum_4, sum_5, sum_6, sum_7
        by_step[8], by_step[9] = sum_8, sum_9
        if now >= due_ns:
            return step + 1, num_keys, num_works
    return len(steps.fixed_ns), num_keys, num_works


@cache
def stretch_of(kernel: Kernel) -> Callable[..., Any]:
    """Return the compiled function of a policy. That of moesim's own policies is kept on disk.

    Each policy has a function of its own, into which its three functions are put. A function on
    disk is known by its name, so the name has a hash of what it is made of.
    """
    own = kernel._asdict()
    own |= {"head": kernel.head or head, "following": kernel.following or following}
    names = {**own, "IN_ORDER": kernel.head is not None}
    function = FunctionType(_stretch.__code__, {**globals(), **names}, "stretch")
    name = next((name for name, own in KERNELS.items() if own is kernel), None)
    source = Path(policies.__file__).read_bytes()
    function.__qualname__ = f"stretch_{name}_{sha256(source).hexdigest()[:12]}"
    compile_it = njit if name is None else kept
    return compile_it(function, error_model="numpy")


@kept
def _show(works, place, step, layer, kind, key, start, finish):  # type: ignore[no-untyped-def]
    works[place, 0] = step
    works[place, 1] = layer
    works[place, 2] = kind
    works[place, 3] = key
    works[place, 4] = start
    works[place, 5] = finish
