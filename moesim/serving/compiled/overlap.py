"""The compiled function for layer events that overlap: copies ahead, CPU experts, host time.

It does what `Server._run_layers` and the simulated machine do together on a GPU, its link, a CPU
and a host. Experts are copied to the GPU, on demand or ahead, or run on the CPU. A copy may wait
for the call that reads its slot, or for the copy that fills it; a call waits for the copy of its
expert. So times are settled start by start, in order of time (`lanes.py`).

Calls on the GPU that were issued before a wait are done when it ends. So a *period*, from one wait
to the next, knows its own calls alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from moesim.machine.work import FAR
from moesim.serving.compiled import records as r
from moesim.serving.compiled.choice import choose_leavers, victim
from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.kernel import show_work
from moesim.serving.compiled.lanes import run_lanes
from moesim.serving.compiled.policies import KERNELS, RESIDENT, Kernel, compiled_with
from moesim.serving.compiled.pollution import pair_up, polluted
from moesim.serving.compiled.works import (
    await_copy,
    await_states,
    count_at,
    issue_call,
    issue_copy,
    new_job,
    promote,
    push,
)

__all__ = ["overlap_of"]

# In the place of these, `compiled_with` puts the functions of each policy.
observe, left = KERNELS["lru"].observe, KERNELS["lru"].left
insert: Any = KERNELS["lru"].insert
choose: Any = None
victim_of: Any = None
IN_ORDER = True


@kept
def _sort_free(mem, free, count):  # type: ignore[no-untyped-def]
    """Move free slots that this event does not read to the end, where they are taken first."""
    first = free
    for place in range(free, free + count):  # a stable partition; there are few
        slot = mem[place]
        if mem[slot + r.SLOT_MARK] == mem[r.EVENT]:
            for turn in range(place, first, -1):
                mem[turn] = mem[turn - 1]
            mem[first] = slot
            first += 1


@kept
def _ahead_of(mem, at, key, slot, layer, issue_ns):  # type: ignore[no-untyped-def]
    """Copy an expert for a later event."""
    issue_copy(mem, at, key, slot, r.KIND_PREFETCH, issue_ns)
    mem[slot + r.SLOT_READER], mem[slot + r.SLOT_FRESH] = -1, 1
    mem[slot + r.SLOT_ISSUED] = mem[r.NUM_AHEAD]
    mem[r.NUM_AHEAD] += 1
    count_at(mem, at, layer, r.SUM_AHEAD, 1)


def _overlap(  # type: ignore[no-untyped-def]
    steps, layers, ahead, elsewhere, start_ns, due_ns, costs, host, books, mem, at, ints, floats,
    given, out,
):  # fmt: skip
    """Run steps; return the number of those that ran, of union keys, and of shown works.

    It stops behind the first step that ends at `due_ns` or later, because a request may arrive
    then; and before a step whose copies may exceed the room for jobs. The number of steps is
    -1 - cache where its policy keeps too many keys.
    """
    keys_of_steps, rows_of_keys, sizes, shown = steps.keys, steps.counts, steps.sizes, steps.shown
    cache_of, capacities, fixed, held_in = books.cache_of, books.capacity, books.fixed, books.held
    members_of, expert_ns, fetch_ns = books.members, costs.expert_ns, costs.fetch_ns
    kinds_ns, order, ends, returns = layers.kinds_ns, layers.order, layers.ends, layers.returns
    ahead_keys, begins, numbers, needs = ahead.keys, ahead.begins, ahead.sizes, ahead.needs
    works, by_step, waves_max = out.works, out.by_step, out.waves_max
    modes, chosen, on_cpu = elsewhere.modes, elsewhere.chosen, at.flows + r.FLOW_WORDS
    moving_ns, nbytes_of = elsewhere.moving_ns, elsewhere.nbytes
    experts, num_layers, num_steps = steps.experts, len(cache_of), len(shown)
    call_ns, landing_ns, staging = costs.call_ns, costs.landing_ns, books.staging
    num_keys, num_works, most = num_layers * experts, 0, members_of.shape[1]
    wanted, shielded, bypassed = (
        np.zeros(num_keys, np.bool_), np.zeros(num_keys, np.bool_), np.zeros(num_keys, np.bool_)
    )  # fmt: skip
    counts, union, absent = (
        np.zeros(experts, np.int64), np.empty(experts, np.int64), np.empty(experts, np.int64)
    )  # fmt: skip
    late, later, read_slots = (
        np.empty(experts, np.int64), np.empty(experts, np.int64), np.empty(2 * experts, np.int64)
    )  # fmt: skip
    worst, vacated = np.empty(most, np.int64), np.empty(most, np.int64)
    room, first, second = (
        np.empty(most, np.int64), np.empty(most, np.float64), np.empty(most, np.int64)
    )  # fmt: skip
    seen_keys = 0
    run_lanes(mem, at, start_ns, landing_ns, 0, 0, works, 0, 0)
    mem[r.SHOWN] = 0
    for step in range(num_steps):
        if mem[r.FREE_JOBS] < needs[step] or mem[r.FREE_PAIRS] < needs[step]:
            return step, seen_keys, num_works
        mem[r.SHOWN] = shown[step]
        mem[r.GPU_FREE] = mem[r.DECIDED] = mem[r.NOW]
        for column in range(r.NUM_SUMS):
            mem[at.sums + column] = 0
        for layer in range(-1, num_layers):
            size = 0
            if layer >= 0:
                last = ends[layer + 1] - 1
                for place in range(ends[layer], last + 1):
                    lasts_ns = kinds_ns[step, order[place]]
                    kind = r.KIND_FRONT if place == last else r.KIND_DENSE
                    call = issue_call(mem, at, lasts_ns, host.launch_ns, r.SUM_OTHER, layer, kind)
                    await_states(mem, at, call)
                    mem[at.sums + r.SUM_FIXED] += lasts_ns
                after_ns, release_ns = 0, 0
                if returns[layer]:
                    after_ns = layers.ids_ns[step]
                    mem[r.HOST] += host.copy_ns
                    release_ns = mem[r.HOST]
                    mem[at.sums + r.SUM_BUSY_D2H] += after_ns
                num_works = run_lanes(
                    mem, at, FAR, landing_ns, after_ns, release_ns, works, num_works, step
                )
                if mem[r.SHOWN] and returns[layer]:
                    begin_ns = max(mem[r.GPU_FREE], release_ns)
                    show_work(
                        works,
                        num_works,
                        step,
                        layer,
                        r.KIND_BACK,
                        -1,
                        begin_ns,
                        begin_ns + after_ns,
                    )
                    num_works += 1
                now = mem[r.DECIDED] = mem[r.NOW]
                mem[r.EVENT] += 1
                base = layer * experts
                size = sizes[step * num_layers + layer]
                number = cache_of[layer]
                cache = num_keys + number  # its row
                members = members_of[number]
                missing = num_late = ready = rows = resident_ns = 0
                for place in range(size):
                    key = keys_of_steps[seen_keys + place]
                    count = rows_of_keys[seen_keys + place]
                    union[place], counts[key - base] = key, count
                    wanted[key] = True
                    rows += count
                    slot = mem[at.slot_of + key]
                    if slot < 0:
                        absent[missing] = key
                        missing += 1
                    elif mem[slot + r.SLOT_LAND] <= now:
                        if mem[slot + r.SLOT_FRESH]:
                            mem[slot + r.SLOT_FRESH] = 0
                            mem[at.sums + r.SUM_USEFUL] += 1
                        resident_ns += expert_ns[count]
                        mem[slot + r.SLOT_MARK] = mem[r.EVENT]
                        read_slots[ready] = slot
                        ready += 1
                    else:
                        late[num_late] = key
                        num_late += 1
                seen_keys += size
                if mem[r.NUM_PAIRS]:
                    mem[at.sums + r.SUM_POLLUTION] += polluted(mem, at, union, size)
                # Who leaves?
                leaving, held = 0, held_in[number]
                if fixed[number]:
                    for place in range(missing):
                        bypassed[absent[place]] = True
                else:
                    observe(union, size, layer, cache, ints, floats, given)
                    excess = held + missing - capacities[number]
                    if excess > 0:
                        leaving = choose(held, members, books.always, cache, excess, absent,
                                         missing, wanted, worst, room, first, second, ints,
                                         floats)  # fmt: skip
                for place in range(1, num_late):  # in the order of issue
                    key, turn = late[place], place
                    issued = mem[mem[at.slot_of + key] + r.SLOT_ISSUED]
                    while (
                        turn > 0 and mem[mem[at.slot_of + late[turn - 1]] + r.SLOT_ISSUED] > issued
                    ):
                        late[turn] = late[turn - 1]
                        turn -= 1
                    late[turn] = key
                for place in range(num_late):
                    slot = mem[at.slot_of + late[place]]
                    read_slots[ready + place] = slot
                    mem[slot + r.SLOT_MARK] = mem[r.EVENT]
                    mem[at.sums + r.SUM_LATE] += mem[slot + r.SLOT_FRESH]
                    mem[slot + r.SLOT_FRESH] = 0
                # The slots of leavers get free.
                num_vacated = lost = 0
                free = at.free + number * at.width
                num_free = mem[at.num_free + number]
                for place in range(leaving):
                    key = worst[place]
                    slot = mem[at.slot_of + key]
                    if slot >= 0:
                        mem[at.slot_of + key] = -1
                        ints[key, RESIDENT] = 0
                        lost += 1
                        mem[free + num_free] = slot
                        num_free += 1
                        mem[at.sums + r.SUM_WASTED] += mem[slot + r.SLOT_FRESH]
                        mem[slot + r.SLOT_FRESH] = 0
                        if mem[slot + r.SLOT_JOB] >= 0:
                            vacated[num_vacated] = mem[slot + r.SLOT_JOB]
                            num_vacated += 1
                    else:
                        bypassed[key] = True
                    left(key, cache, ints)
                if leaving and num_free > 1:
                    _sort_free(mem, free, num_free)
                if IN_ORDER:
                    held -= lost
                elif lost:
                    stay = 0
                    for turn in range(held):
                        if ints[members[turn], RESIDENT]:
                            members[stay] = members[turn]
                            stay += 1
                    held = stay
                # The work of the event.
                mem[r.EXTRA] += host.event_ns
                if ready:
                    resident_ns += call_ns
                    mem[at.sums + r.SUM_BUSY] += resident_ns
                    call = issue_call(
                        mem, at, resident_ns, host.launch_ns, r.SUM_OTHER, layer, r.KIND_EXPERTS
                    )
                    for place in range(ready):
                        mem[read_slots[place] + r.SLOT_READER] = call
                for place in range(num_late):
                    slot = read_slots[ready + place]
                    promote(mem, at, mem[slot + r.SLOT_JOB])
                    lasts_ns = call_ns + expert_ns[counts[late[place] - base]] + fetch_ns[0]
                    mem[at.sums + r.SUM_BUSY] += lasts_ns
                    call = issue_call(
                        mem, at, lasts_ns, host.launch_ns, r.SUM_STALL_LATE, layer, r.KIND_EXPERTS
                    )
                    await_copy(mem, at, call, slot, landing_ns)
                    mem[slot + r.SLOT_READER] = call
                num_cpu = 0
                mode = modes[step, layer]
                if mode and missing:
                    for place in range(missing):  # those on the CPU come first
                        key = absent[place]
                        if mode == 1 or chosen[counts[key - base]]:
                            for turn in range(place, num_cpu, -1):
                                absent[turn] = absent[turn - 1]
                            absent[num_cpu] = key
                            num_cpu += 1
                if num_cpu:
                    sum_ns = sum_bytes = 0
                    for place in range(num_cpu):
                        sum_ns += moving_ns[counts[absent[place] - base]]
                        sum_bytes += nbytes_of[counts[absent[place] - base]]
                    mem[r.HOST] += host.copy_ns + mem[r.EXTRA]
                    mem[r.EXTRA] = 0
                    begin_ns, down_ns = mem[r.HOST], elsewhere.down_ns[step]
                    mem[at.sums + r.SUM_BUSY_D2H] += down_ns
                    if mem[r.SHOWN]:
                        show_work(works, num_works, step, layer, r.KIND_STATES_DOWN, -1, begin_ns,
                              begin_ns + down_ns)  # fmt: skip
                        num_works += 1
                    mem[r.HOST] += host.launch_ns
                    mem[r.CPU_READY] = max(mem[r.HOST], begin_ns + down_ns)
                    fixed_ns, own = elsewhere.call_ns + sum_ns, 0
                    if sum_ns and sum_bytes:  # as `cost.prices.flow`
                        own = -(-sum_bytes * 1_000_000_000 // sum_ns)
                        fixed_ns -= -(-sum_bytes * 1_000_000_000 // own)
                    mem[r.CPU_FIXED] = fixed_ns
                    mem[on_cpu + r.FLOW_NBYTES] = sum_bytes if own else 0
                    mem[on_cpu + r.FLOW_OWN] = own
                    mem[on_cpu + r.FLOW_ORDER] = mem[r.NUM_ISSUED]
                    mem[r.NUM_ISSUED] += 1
                    mem[r.UP_LAYER] = layer
                for place in range(num_vacated):
                    promote(mem, at, vacated[place])
                staged = missed_rows = num_later = 0
                loads = missing - num_cpu
                for place in range(missing):
                    key = absent[place]
                    count = counts[key - base]
                    missed_rows += count
                    if bypassed[key]:
                        bypassed[key] = False
                        if place < num_cpu:
                            continue
                        slot = at.buffers + mem[r.NEXT_BUFFER] * r.SLOT_WORDS
                        mem[r.NEXT_BUFFER] += 1
                        if mem[r.NEXT_BUFFER] == staging:
                            mem[r.NEXT_BUFFER] = 0
                        staged += 1
                    else:
                        if num_free == 0:
                            return -1 - number, seen_keys, num_works
                        num_free -= 1
                        slot = mem[free + num_free]
                        mem[at.slot_of + key] = slot
                        ints[key, RESIDENT] = 1
                        if not IN_ORDER:
                            members[held] = key
                        held += 1
                        if place < num_cpu:
                            later[num_later] = key
                            num_later += 1
                            continue
                    issue_copy(mem, at, key, slot, r.KIND_DEMAND, host.copy_ns)
                    fetched = loads if place == missing - 1 else 0
                    lasts_ns = call_ns + expert_ns[count] + fetch_ns[fetched]
                    mem[at.sums + r.SUM_BUSY] += lasts_ns
                    call = issue_call(
                        mem, at, lasts_ns, host.launch_ns, r.SUM_STALL_DEMAND, layer, r.KIND_EXPERTS
                    )
                    await_copy(mem, at, call, slot, landing_ns)
                    mem[slot + r.SLOT_READER] = call  # which waits for the copy
                    mem[slot + r.SLOT_JOB], mem[slot + r.SLOT_LAND] = -1, 0
                held_in[number] = held
                mem[at.num_free + number] = num_free
                if num_cpu:  # not before the copies of experts, which it would keep waiting
                    job = new_job(
                        mem, at, elsewhere.up_ns[step], -1, host.copy_ns, r.KIND_STATES_UP
                    )
                    mem[job + r.JOB_AFTER_JOB] = 1
                    push(mem, at.urgent, at.mask, r.URGENT_HEAD, r.URGENT_TAIL, job, r.JOB_TURN)
                    mem[r.UP] = mem[on_cpu + r.FLOW_JOB] = job
                    mem[at.sums + r.SUM_STATES] += 1
                for place in range(num_later):
                    key = later[place]
                    _ahead_of(mem, at, key, mem[at.slot_of + key], layer, host.copy_ns)
                waves = 0
                if loads:
                    waves = max(1, -(-staged // staging))
                    mem[at.sums + r.SUM_WAVES] += waves
                    mem[at.sums + r.SUM_WAVES_EVENTS] += 1
                    if waves > waves_max[step]:
                        waves_max[step] = waves
                mem[at.sums + r.SUM_NONEMPTY] += size > 0
                count_at(mem, at, layer, r.SUM_HITS, ready)
                count_at(mem, at, layer, r.SUM_LATE_HITS, num_late)
                count_at(mem, at, layer, r.SUM_COPIES, loads)
                count_at(mem, at, layer, r.SUM_ELSEWHERE, num_cpu)
                count_at(mem, at, layer, r.SUM_MISSED, missed_rows)
                count_at(mem, at, layer, r.SUM_ROWS, rows)
            # What is copied ahead?
            turn_of = step * (num_layers + 1) + layer + 1
            begin = begins[turn_of]
            stop = begin + numbers[turn_of]
            shields = False
            for place in range(begin, stop):
                key = ahead_keys[place]
                if mem[at.slot_of + key] >= 0:
                    continue
                if not shields:  # what this layer, or this call, needs must not leave
                    shields = True
                    for turn in range(begin, stop):
                        shielded[ahead_keys[turn]] = True
                    for turn in range(size):
                        shielded[union[turn]] = True
                number = cache_of[key // experts]
                cache, loser = num_keys + number, -1
                if mem[at.num_free + number]:
                    mem[at.num_free + number] -= 1
                    slot = mem[at.free + number * at.width + mem[at.num_free + number]]
                    held_in[number] += 1
                else:
                    if capacities[number] and not fixed[number]:
                        loser = victim_of(
                            held_in[number], members_of[number], cache, shielded, ints, floats
                        )
                    if loser < 0:
                        mem[at.sums + r.SUM_REFUSED] += 1
                        continue
                    slot = mem[at.slot_of + loser]
                    mem[at.slot_of + loser] = -1
                    ints[loser, RESIDENT] = 0
                    left(loser, cache, ints)
                    mem[at.sums + r.SUM_WASTED] += mem[slot + r.SLOT_FRESH]
                    promote(mem, at, mem[slot + r.SLOT_JOB])
                    pair_up(mem, at, loser, key)
                if not fixed[number]:
                    insert(key, cache, ints, floats)
                ints[key, RESIDENT] = 1
                mem[at.slot_of + key] = slot
                if not IN_ORDER:
                    last = held_in[number] - 1
                    if loser >= 0:
                        last = 0
                        while members_of[number, last] != loser:
                            last += 1
                    members_of[number, last] = key
                _ahead_of(mem, at, key, slot, key // experts, host.copy_ns)
            if shields:
                for turn in range(begin, stop):
                    shielded[ahead_keys[turn]] = False
                for turn in range(size):
                    shielded[union[turn]] = False
            for place in range(size):
                key = union[place]
                wanted[key] = False
                counts[key - layer * experts] = 0
        for place in range(ends[num_layers], ends[num_layers + 1]):
            lasts_ns = kinds_ns[step, order[place]]
            call = issue_call(
                mem, at, lasts_ns, host.launch_ns, r.SUM_OTHER, num_layers, r.KIND_DENSE
            )
            await_states(mem, at, call)
            mem[at.sums + r.SUM_FIXED] += lasts_ns
        call = issue_call(
            mem, at, layers.tail_ns[step], host.launch_ns, r.SUM_OTHER, num_layers, r.KIND_TAIL
        )
        await_states(mem, at, call)
        mem[at.sums + r.SUM_FIXED] += layers.tail_ns[step]
        after_ns = layers.sampled_ns[step]
        mem[r.HOST] += host.copy_ns
        release_ns = mem[r.HOST]
        num_works = run_lanes(
            mem, at, FAR, landing_ns, after_ns, release_ns, works, num_works, step
        )
        now = mem[r.NOW]
        mem[at.sums + r.SUM_BUSY_D2H] += after_ns
        count_at(mem, at, num_layers, r.SUM_READBACK, now - mem[r.GPU_FREE])
        out.finish_ns[step] = now
        if mem[r.SHOWN]:
            begin_ns = max(mem[r.GPU_FREE], release_ns)
            show_work(
                works, num_works, step, num_layers, r.KIND_BACK, -1, begin_ns, begin_ns + after_ns
            )
            num_works += 1
        num_works = _collect(mem, at, now, step, experts, works, num_works)
        mem[at.sums + r.SUM_RESIDENTS] = held_in.sum()
        for column in range(r.NUM_SUMS):
            by_step[step, column] = mem[at.sums + column]
        if now >= due_ns:
            return step + 1, seen_keys, num_works
    return num_steps, seen_keys, num_works


@kept
def _collect(mem, at, now, step, experts, works, num_works):  # type: ignore[no-untyped-def]
    """Count the copies ahead that have landed by the end of a step, and show what has landed.

    Return the number of shown works.
    """
    kept_rows = 0
    for place in range(mem[r.NUM_LANDED]):
        row = at.landed + place * r.LANDED_WORDS
        if mem[row + r.LANDED_FINISH] > now:
            other = at.landed + kept_rows * r.LANDED_WORDS
            for word in range(r.LANDED_WORDS):
                mem[other + word] = mem[row + word]
            kept_rows += 1
            continue
        if mem[row + r.LANDED_AHEAD]:
            mem[at.sums + r.SUM_LANDED] += 1
            mem[at.sums + r.SUM_BUSY_H2D] += mem[row + r.LANDED_BUSY]
        if mem[r.SHOWN]:
            kind, key, layer = (
                mem[row + r.LANDED_KIND],
                mem[row + r.LANDED_KEY],
                mem[row + r.LANDED_LAYER],
            )
            if kind == r.KIND_STATES_UP:
                key = -1
            else:
                layer = key // experts
            show_work(
                works,
                num_works,
                step,
                layer,
                kind,
                key,
                mem[row + r.LANDED_START],
                mem[row + r.LANDED_FINISH],
            )
            num_works += 1
    mem[r.NUM_LANDED] = kept_rows
    return num_works


@cache
def overlap_of(kernel: Kernel) -> Callable[..., Any]:
    """Return the compiled function of a policy, as `stretch_of` does."""
    choices = {
        "choose": compiled_with(kernel, choose_leavers),
        "victim_of": compiled_with(kernel, victim),
    }
    return compiled_with(kernel, _overlap, **choices)
