"""The compiled function: layer events of a stretch of steps, decided and timed one after another.

It does what `ExpertCache.decide`, `Program.event` and the simulated machine do together where each
layer event begins and ends on idle lanes, and missing experts are copied to the GPU. Experts in GPU
memory run in one call; each missing one is copied, and runs when it has landed.

Shapes: S steps, L layers, K experts per row, N rows, C columns of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.order import lowest, part_wanted
from moesim.serving.compiled.policies import KERNELS, RESIDENT, Kernel, compiled_with

__all__ = [
    "COLUMNS",
    "Books",
    "Costs",
    "Out",
    "Steps",
    "show_work",
    "stretch_of",
]

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


# In the place of these, `compiled_with` puts the functions of each policy.
observe, score, left = KERNELS["lru"][:3]
head: Any = KERNELS["lru"].head
following: Any = KERNELS["lru"].following
IN_ORDER = True


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
                        others = part_wanted(candidates, first, second, rivals, wanted)
                    early = min(excess, others)
                    lowest(candidates, first, second, 0, others, early)
                    lowest(candidates, first, second, others, rivals, excess - early)
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
                show_work(out.works, num_works, step, layer, _RESIDENTS, -1, 0, resident_ns)
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
                    show_work(out.works, num_works, step, layer, _COPY, key, begins, link_ns)
                    show_work(out.works, num_works + 1, step, layer, _LOADED, -1, starts, gpu_ns)
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
    """Return the compiled function of a policy."""
    return compiled_with(kernel, _stretch)


@kept
def show_work(works, place, step, layer, kind, key, start, finish):  # type: ignore[no-untyped-def]
    works[place, 0] = step
    works[place, 1] = layer
    works[place, 2] = kind
    works[place, 3] = key
    works[place, 4] = start
    works[place, 5] = finish
