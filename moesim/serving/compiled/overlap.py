"""The compiled function for layer events that overlap: copies ahead, CPU experts, host time.

It does what `Server._run_layers` and the simulated machine do together on a GPU, its link, a CPU
and a host. Experts are copied to the GPU, on demand or ahead, or run on the CPU. A copy may wait
for the call that reads its slot, or for the copy that fills it; a call waits for the copy of its
expert. So times are settled start by start, in order of time, as in `moesim/machine/sim.py`. Where
the CPU computes, it shares the bandwidth of host memory with the link.

Calls on the GPU that were issued before a wait are done when it ends. So a *period*, from one wait
to the next, knows its own calls alone.

Slots, copies (*jobs*) and calls are records in one array, the memory; each is known by its address
there, and -1 stands for none. Arrays that are passed on or taken from tuples cost more here than
all other work, because numba counts references to them.

Shapes: S steps, L layers, C columns of sums.
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

from moesim.hardware.topology import CPU, D2H, GPU, H2D
from moesim.machine.work import FAR
from moesim.serving.compiled import kernel as kernels
from moesim.serving.compiled import policies
from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.kernel import _lowest, _part_wanted, _show, _swap
from moesim.serving.compiled.policies import KERNELS, RESIDENT, Kernel

__all__ = [
    "AHEAD_HEAD", "AHEAD_TAIL", "CALL_WORDS", "COLUMNS", "CPU_READY", "FLOW_JOB", "FLOW_ON",
    "FLOW_WORDS", "FREE_JOBS", "FREE_PAIRS",
    "JOB_BUSY", "JOB_KEY", "JOB_START", "JOB_WORDS", "LANDED_WORDS", "L_BUSY", "L_FINISH", "L_KEY",
    "L_START", "NUM_LANDED", "PAIR_WORDS", "SHOWN_KINDS", "SLOT_FRESH", "SLOT_JOB", "SLOT_READER",
    "SLOT_WORDS", "STATE_WORDS", "UP", "URGENT_HEAD", "URGENT_TAIL", "Ahead", "Elsewhere", "Host",
    "Layers", "Places", "Sums", "guesses_of_steps", "overlap_of",
]  # fmt: skip

COLUMNS: Final = (
    "hits", "late_hits", "demand_copies", "missed_rows", "rows", "waves", "waves_events",
    "nonempty", "prefetch_copies", "prefetch_useful", "prefetch_late", "prefetch_wasted",
    "prefetch_refused", "prefetch_pollution", "landed", "busy gpu", "busy d2h", "stall readback",
    "stall demand", "stall late", "stall cpu", "stall host", "stall other", "fixed", "elsewhere",
    "states", "busy cpu", "busy h2d",
)  # fmt: skip
"""What is summed, in the order of the last axis of the sums."""
(
    _HITS, _LATE_HITS, _COPIES, _MISSED, _ROWS, _WAVES, _WAVES_EVENTS, _NONEMPTY, _AHEAD, _USEFUL,
    _LATE, _WASTED, _REFUSED, _POLLUTION, _LANDED, _BUSY, _BUSY_D2H, _READBACK, _STALL_DEMAND,
    _STALL_LATE, _STALL_CPU, _STALL_HOST, _OTHER, _FIXED, _ELSEWHERE, _STATES, _BUSY_CPU, _BUSY_H2D,
    _COLUMNS,
) = range(len(COLUMNS) + 1)  # fmt: skip
SHOWN_KINDS: Final = (
    (GPU, "dense"), (GPU, "front"), (GPU, "experts"), (GPU, "tail"), (D2H, "readback"),
    (H2D, "demand"), (H2D, "prefetch"), (D2H, "states"), (CPU, "experts"), (H2D, "states"),
)  # fmt: skip
"""Lanes and kinds of shown works, by number."""
(
    _DENSE, _FRONT, _EXPERTS, _TAIL, _BACK, _DEMAND, _PREFETCH, _STATES_DOWN, _ON_CPU, _STATES_UP,
) = range(len(SHOWN_KINDS))  # fmt: skip

# What is remembered of a slot: when its copy lands (FAR: not known), the job of that copy, the last
# call that reads it, whether its expert was copied ahead and not used, the number of that copy, and
# the last event that reads it.
_LAND, SLOT_JOB, SLOT_READER, SLOT_FRESH, _ISSUED, _MARK, SLOT_WORDS = range(7)
# Of a job: when it may start, the call that it waits for, whether it waits for a job, the job that
# waits for it, pieces left, when it was promoted, its slot, the call that waits for it, when it
# started, its key, whether it is ahead, its places in both queues, its number in the order of
# issue, how long the link worked on it, and the shown kind. A job without a slot brings hidden
# states; its key is its duration.
(
    _READY, _AFTER_CALL, _AFTER_JOB, _NEXT, _LEFT, _PROMOTED, _SLOT, _CALL, JOB_START, JOB_KEY,
    _IS_AHEAD, _PLACE, _TURN, _ORDER, JOB_BUSY, _SHOWN_AS, JOB_WORDS,
) = range(17)  # fmt: skip
# Of a call: when it may start (FAR: not known), duration, release, the cause of a wait and the
# layer that it counts for, when what it waits for landed, its own layer, finish and kind.
(
    _MAY, _LASTS, _RELEASE, _CAUSE, _CAUSE_LAYER, _LANDED_NS, _LAYER, _FINISH, _KIND, CALL_WORDS,
) = range(10)  # fmt: skip
# Of a copy that landed and is not counted: layer, key, start, finish, whether it is ahead, how long
# the link worked on it, and the shown kind.
_L_LAYER, L_KEY, L_START, L_FINISH, _L_AHEAD, L_BUSY, _L_KIND, LANDED_WORDS = range(8)
# Of what moves bytes through host memory, the piece on the link and the call on the CPU: when its
# fixed part or its bytes end (FAR: not known), whether its bytes move, bytes left times 10^9, rate,
# its own rate, since when, bytes, its number in the order of issue, start, and its job (that which
# waits for the CPU).
(
    FLOW_ON, _MOVES, _REST, _RATE, _OWN, _SINCE, _NBYTES, _FLOW_ORDER, _BEGAN, FLOW_JOB, FLOW_WORDS,
) = range(11)  # fmt: skip
# Of a key that left for another one, which took its slot: both, and its neighbours in two lists.
_VICTIM, _TAKER, _BEFORE_V, _AFTER_V, _BEFORE_T, _AFTER_T, PAIR_WORDS = range(7)
# Of the machine; the number of calls that earlier periods had is `_BASE`.
(
    _NOW, _HOST, _EXTRA, _LINK, _GPU, _BASE, _CALLS, _SETTLED, URGENT_HEAD, URGENT_TAIL, AHEAD_HEAD,
    AHEAD_TAIL, _ISSUES, FREE_JOBS, _WAITING, NUM_LANDED, _PAIRS, FREE_PAIRS, _BUFFER, _SHOWN,
    _DECIDED, _EVENT, _ISSUED_ALL, CPU_READY, _CPU_FIXED, UP, _UP_LAYER, STATE_WORDS,
) = range(28)  # fmt: skip


class Layers(NamedTuple):
    """What a step computes outside of its layer events.

    `kinds_ns` [S, kinds] are the durations of each kind of model layer. `order` are the kinds of
    all model layers, and `ends` [L + 2] say which come before each trace layer's event; the last of
    them is its front. `tail_ns`, `ids_ns` and `sampled_ns` are of each step; `returns` [L] says in
    which layers ids return.
    """

    kinds_ns: Any
    order: Any
    ends: Any
    tail_ns: Any
    ids_ns: Any
    sampled_ns: Any
    returns: Any


class Ahead(NamedTuple):
    """What the prefetch policy wants at the start of each step and after each of its layer events.

    At each call the keys from one of `begins` on, `sizes` of them; both [S · (L + 1)]. `needs` [S]
    is how many copies a step issues at most.
    """

    keys: Any
    begins: Any
    sizes: Any
    needs: Any


class Host(NamedTuple):
    """The host's time in ns to issue a computation or a copy, and to decide a layer event."""

    launch_ns: int
    copy_ns: int
    event_ns: int


class Elsewhere(NamedTuple):
    """The experts that run on the CPU.

    `modes` [S, L]: 0: none, 1: all that are missing, 2: missing ones with c rows where `chosen[c]`.
    An expert with c rows takes `moving_ns[c]` and moves `nbytes[c]`; a call takes `call_ns` more.
    `down_ns` and `up_ns` [S] bring the hidden states of a step to the CPU and back.
    """

    modes: Any
    chosen: Any
    moving_ns: Any
    nbytes: Any
    call_ns: int
    down_ns: Any
    up_ns: Any


class Places(NamedTuple):
    """Where in the memory each table begins; the state of the machine is at 0.

    `slot_of`, `by_victim` and `by_taker` have an entry for each key. `free` has `width` free slots
    for each cache, and `num_free` their numbers. `buffers` are the staging buffers' slots. Both
    queues have `mask` + 1 places. A copy has `num_pieces` pieces, whose durations are `pieces`.
    Where `capacity`, in bytes/s, is not 0, host memory is shared: a piece then moves its
    `piece_bytes` at its `piece_rates` or slower.
    """

    slot_of: int
    by_victim: int
    by_taker: int
    free: int
    width: int
    num_free: int
    buffers: int
    calls: int
    pieces: int
    num_pieces: int
    piece_bytes: int
    piece_rates: int
    capacity: int
    flows: int
    sums: int
    by_layer: int
    idle_jobs: int
    idle_pairs: int
    waiting: int
    landed: int
    urgent: int
    ahead: int
    mask: int


class Sums(NamedTuple):
    """What the function writes: `finish_ns` and `waves_max` [S], sums [S, C], and shown works.

    Works are rows (step, layer, kind, key, start, finish).
    """

    finish_ns: Any
    by_step: Any
    waves_max: Any
    works: Any


# In the place of these, `overlap_of` puts the functions of each policy.
observe, score, left = KERNELS["lru"][:3]
head: Any = KERNELS["lru"].head
following: Any = KERNELS["lru"].following
insert: Any = KERNELS["lru"].insert
choose: Any = None
victim_of: Any = None
IN_ORDER = True


@kept
def _call(mem, at, lasts_ns, issue_ns, cause, layer, kind):  # type: ignore[no-untyped-def]
    """Issue a call on the GPU that waits for no copy; return its number."""
    mem[_HOST] += issue_ns + mem[_EXTRA]
    mem[_EXTRA] = 0
    number = mem[_CALLS]
    mem[_CALLS] += 1
    call = at.calls + number * CALL_WORDS
    mem[call + _MAY] = mem[call + _RELEASE] = mem[_HOST]
    mem[call + _LASTS], mem[call + _CAUSE], mem[call + _LANDED_NS] = lasts_ns, cause, 0
    mem[call + _CAUSE_LAYER] = layer
    mem[call + _LAYER], mem[call + _FINISH], mem[call + _KIND] = layer, FAR, kind
    return mem[_BASE] + number


@kept
def _await(mem, at, number, slot, landing_ns):  # type: ignore[no-untyped-def]
    """Let a call wait for the copy that fills a slot."""
    call, job = at.calls + (number - mem[_BASE]) * CALL_WORDS, mem[slot + SLOT_JOB]
    if job >= 0:
        mem[call + _MAY] = FAR
        mem[job + _CALL] = call
    else:
        mem[call + _LANDED_NS] = mem[slot + _LAND]
        mem[call + _MAY] = max(mem[call + _MAY], mem[slot + _LAND] + landing_ns)


@kept
def _await_states(mem, at, number):  # type: ignore[no-untyped-def]
    """Let a call wait for the hidden states from the CPU, if they are on their way."""
    if mem[UP] >= 0:
        call = at.calls + (number - mem[_BASE]) * CALL_WORDS
        mem[call + _MAY], mem[call + _CAUSE], mem[call + _CAUSE_LAYER] = (
            FAR, _STALL_CPU, mem[_UP_LAYER],
        )  # fmt: skip
        mem[mem[UP] + _CALL] = call
        mem[UP] = -1


@kept
def _push(mem, queue, mask, first, last, job, column):  # type: ignore[no-untyped-def]
    """Add a job to the end of a queue."""
    if mem[last] - mem[first] > mask:  # places of jobs that left the middle are used again
        place = mem[first]
        for other in range(mem[first], mem[last]):
            there = mem[queue + (other & mask)]
            if there >= 0:
                mem[queue + (place & mask)] = there
                mem[there + column] = place
                place += 1
        mem[last] = place
    mem[queue + (mem[last] & mask)] = job
    mem[job + column] = mem[last]
    mem[last] += 1


@kept
def _job(mem, at, key, slot, issue_ns, kind):  # type: ignore[no-untyped-def]
    """Return a new job of the link that waits for nothing."""
    mem[_HOST] += issue_ns + mem[_EXTRA]
    mem[_EXTRA] = 0
    mem[FREE_JOBS] -= 1
    job = mem[at.idle_jobs + mem[FREE_JOBS]]
    mem[job + _READY] = mem[_HOST]
    mem[job + _AFTER_CALL] = mem[job + _NEXT] = mem[job + _CALL] = -1
    mem[job + _AFTER_JOB] = mem[job + JOB_BUSY] = 0
    mem[job + _LEFT], mem[job + _SLOT], mem[job + JOB_KEY] = at.num_pieces, slot, key
    mem[job + _PROMOTED] = mem[job + JOB_START] = FAR
    mem[job + _IS_AHEAD], mem[job + _SHOWN_AS] = kind == _PREFETCH, kind
    mem[job + _PLACE] = mem[job + _TURN] = -1
    mem[job + _ORDER] = mem[_ISSUED_ALL]
    mem[_ISSUED_ALL] += 1
    return job


@kept
def _copy(mem, at, key, slot, kind, issue_ns):  # type: ignore[no-untyped-def]
    """Issue a copy into a slot that may still be in use."""
    job = _job(mem, at, key, slot, issue_ns, kind)
    if mem[slot + SLOT_READER] >= mem[_BASE]:
        mem[job + _AFTER_CALL] = at.calls + (mem[slot + SLOT_READER] - mem[_BASE]) * CALL_WORDS
        mem[at.waiting + mem[_WAITING]] = job
        mem[_WAITING] += 1
    elif mem[slot + SLOT_JOB] >= 0:
        mem[job + _AFTER_JOB] = 1
        mem[mem[slot + SLOT_JOB] + _NEXT] = job
    else:
        mem[job + _READY] = max(mem[job + _READY], mem[slot + _LAND])
    mem[slot + SLOT_JOB], mem[slot + _LAND] = job, FAR
    if kind == _PREFETCH:
        _push(mem, at.ahead, at.mask, AHEAD_HEAD, AHEAD_TAIL, job, _PLACE)
    else:
        _push(mem, at.urgent, at.mask, URGENT_HEAD, URGENT_TAIL, job, _TURN)


@kept
def _promote(mem, at, job):  # type: ignore[no-untyped-def]
    """Give a copy ahead demand priority, if it is still queued."""
    if job < 0 or not mem[job + _IS_AHEAD] or mem[job + _PROMOTED] < FAR:
        return
    mem[job + _PROMOTED] = mem[_HOST]
    _push(mem, at.urgent, at.mask, URGENT_HEAD, URGENT_TAIL, job, _TURN)
    if mem[_HOST] <= mem[_NOW]:
        mem[at.ahead + (mem[job + _PLACE] & at.mask)] = -1
        mem[job + _PLACE] = -1


@kept
def _ready_ns(mem, job):  # type: ignore[no-untyped-def]
    """Return when a job may start; FAR while that is not known."""
    if mem[job + _AFTER_JOB]:
        return FAR
    if mem[job + _AFTER_CALL] >= 0:
        return max(mem[job + _READY], mem[mem[job + _AFTER_CALL] + _FINISH])
    return mem[job + _READY]


@kept
def _landed(mem, at, job, finish_ns, landing_ns):  # type: ignore[no-untyped-def]
    """End a job whose finish is known: tell all that wait for it."""
    slot, after, call = mem[job + _SLOT], mem[job + _NEXT], mem[job + _CALL]
    if slot >= 0 and mem[slot + SLOT_JOB] == job:
        mem[slot + SLOT_JOB], mem[slot + _LAND] = -1, finish_ns
    if after >= 0:
        mem[after + _AFTER_JOB] = 0
        mem[after + _READY] = max(mem[after + _READY], finish_ns)
    if call >= 0:
        mem[call + _LANDED_NS] = finish_ns
        mem[call + _MAY] = max(mem[call + _RELEASE], finish_ns + landing_ns)
    if mem[job + _IS_AHEAD] or mem[_SHOWN]:
        row = at.landed + mem[NUM_LANDED] * LANDED_WORDS
        mem[row + _L_LAYER], mem[row + L_KEY] = mem[_UP_LAYER], mem[job + JOB_KEY]
        mem[row + L_START], mem[row + L_FINISH] = mem[job + JOB_START], finish_ns
        mem[row + _L_AHEAD], mem[row + L_BUSY] = mem[job + _IS_AHEAD], mem[job + JOB_BUSY]
        mem[row + _L_KIND] = mem[job + _SHOWN_AS]
        mem[NUM_LANDED] += 1
    if not mem[job + _IS_AHEAD]:
        mem[at.sums + _BUSY_H2D] += mem[job + JOB_BUSY]
    if mem[job + _PLACE] >= 0:
        mem[at.ahead + (mem[job + _PLACE] & at.mask)] = -1
    if mem[job + _TURN] >= 0:
        mem[at.urgent + (mem[job + _TURN] & at.mask)] = -1
    mem[at.idle_jobs + mem[FREE_JOBS]] = job
    mem[FREE_JOBS] += 1


@kept
def _count(mem, at, layer, column, number):  # type: ignore[no-untyped-def]
    mem[at.by_layer + layer * _COLUMNS + column] += number
    mem[at.sums + column] += number


@kept
def _settle_calls(mem, at, works, num_works, step):  # type: ignore[no-untyped-def]
    """Time the next calls on the GPU whose copies have landed, and the stalls before them.

    Return the number of shown works.
    """
    while mem[_SETTLED] < mem[_CALLS]:
        call = at.calls + mem[_SETTLED] * CALL_WORDS
        if mem[call + _MAY] >= FAR:
            break
        clock, start = mem[_GPU], max(mem[_GPU], mem[call + _MAY])
        layer, finish = mem[call + _LAYER], start + mem[call + _LASTS]
        if start > clock:  # as `stalls._divide`
            until = min(mem[_DECIDED], start)
            if until > clock:
                _count(mem, at, layer, _READBACK, until - clock)
                clock = until
            cause, until = mem[call + _CAUSE], min(mem[call + _LANDED_NS], start)
            if until > clock:
                _count(mem, at, mem[call + _CAUSE_LAYER], cause, until - clock)
                clock = until
            if clock < mem[call + _RELEASE] <= start:
                _count(mem, at, layer, _STALL_HOST, mem[call + _RELEASE] - clock)
                clock = mem[call + _RELEASE]
            _count(mem, at, mem[call + _CAUSE_LAYER], cause, start - clock)
        mem[call + _FINISH] = mem[_GPU] = finish
        if mem[_SHOWN]:
            _show(works, num_works, step, layer, mem[call + _KIND], -1, start, finish)
            num_works += 1
        mem[_SETTLED] += 1
    return num_works


@kept
def _next_start(mem, at):  # type: ignore[no-untyped-def]
    """Return when an idle link starts its next piece, of which job, and until when others may not
    come between the pieces of that job.
    """
    mask, free = at.mask, max(mem[_LINK], mem[_NOW])
    soonest, chosen, before = FAR, -1, FAR
    place, last = mem[URGENT_HEAD], mem[URGENT_TAIL]
    while place < last and mem[at.urgent + (place & mask)] < 0:
        place += 1
    mem[URGENT_HEAD] = place
    if place < last:
        job = mem[at.urgent + (place & mask)]
        start = max(_ready_ns(mem, job), free)
        if mem[job + _PROMOTED] < FAR:
            start = max(start, mem[job + _PROMOTED])
        if start < soonest:
            soonest, chosen = start, job
    urgent_ns = soonest
    place, last = mem[AHEAD_HEAD], mem[AHEAD_TAIL]
    while place < last and mem[at.ahead + (place & mask)] < 0:
        place += 1
    mem[AHEAD_HEAD] = place
    while place < last:
        job = mem[at.ahead + (place & mask)]
        place += 1
        if job < 0:
            continue
        start, promoted = max(_ready_ns(mem, job), free), mem[job + _PROMOTED]
        if start < promoted:
            if start < soonest:
                soonest, chosen, before = start, job, min(urgent_ns, promoted)
            break
        free = max(free, promoted)  # until then the next one is not the head
    return soonest, chosen, before


@kept
def _run_link(mem, at, until_ns, landing_ns, after_ns, release_ns, works, num_works, step):  # type: ignore[no-untyped-def]
    """Settle all calls, and starts of copies before a wait ends; return the number of shown works.

    The wait is until `until_ns`; or, if that is FAR, until `after_ns` after the last call, or after
    `release_ns` if that is later. Its end is then the machine's time.
    """
    while True:
        target = until_ns
        if until_ns >= FAR:
            num_works = _settle_calls(mem, at, works, num_works, step)
            if mem[_SETTLED] == mem[_CALLS]:
                target = max(max(mem[_GPU], release_ns) + after_ns, mem[_HOST])
        if at.capacity:
            going, num_works = _share(mem, at, target, landing_ns, works, num_works, step)
            if going:
                continue
            break
        start_ns, job, before = _next_start(mem, at)
        if start_ns >= target:
            break
        if mem[job + JOB_START] == FAR:
            mem[job + JOB_START] = start_ns
        pieces, clock = mem[job + _LEFT], start_ns
        before = min(before, target)  # until then nothing else gets ready
        while pieces and clock < before:
            clock += mem[at.pieces + at.num_pieces - pieces]
            pieces -= 1
        mem[job + JOB_BUSY] += clock - start_ns
        mem[job + _LEFT], mem[_LINK] = pieces, clock
        if not pieces:
            _landed(mem, at, job, clock, landing_ns)
    mem[_NOW] = mem[_HOST] = target
    for place in range(mem[_WAITING]):
        job = mem[at.waiting + place]
        call = mem[job + _AFTER_CALL]
        if call >= 0:
            mem[job + _READY] = max(mem[job + _READY], mem[call + _FINISH])
            mem[job + _AFTER_CALL] = -1
    mem[_WAITING] = 0
    mem[_BASE] += mem[_CALLS]
    mem[_CALLS] = mem[_SETTLED] = 0
    return num_works


@kept
def _share(mem, at, target, landing_ns, works, num_works, step):  # type: ignore[no-untyped-def]
    """Do what comes next on a link and a CPU that share host memory, if it comes before `target`.

    Return whether anything did, and the number of shown works.
    """
    link, cpu = at.flows, at.flows + FLOW_WORDS
    start_ns, job = FAR, -1
    if mem[link + FLOW_JOB] < 0:
        start_ns, job, _ = _next_start(mem, at)
    starts = min(start_ns, mem[CPU_READY])
    on = min(mem[link + FLOW_ON], mem[cpu + FLOW_ON])
    if on <= starts and on <= target and on < FAR:
        if mem[link + FLOW_ON] == on and not _moves_on(mem, link, on):
            job = mem[link + FLOW_JOB]
            mem[link + FLOW_JOB] = -1
            mem[_LINK] = on
            mem[job + JOB_BUSY] += on - mem[link + _BEGAN]
            if not mem[job + _LEFT]:
                _landed(mem, at, job, on, landing_ns)
        if mem[cpu + FLOW_ON] == on and not _moves_on(mem, cpu, on):
            job = mem[cpu + FLOW_JOB]
            mem[job + _AFTER_JOB] = 0
            mem[job + _READY] = max(mem[job + _READY], on)
            mem[at.sums + _BUSY_CPU] += on - mem[cpu + _BEGAN]
            if mem[_SHOWN]:
                _show(works, num_works, step, mem[_UP_LAYER], _ON_CPU, -1, mem[cpu + _BEGAN], on)
                num_works += 1
        _change_rates(mem, at, on)
        return True, num_works
    if starts >= target:
        return False, num_works
    if mem[CPU_READY] == starts:
        mem[cpu + _BEGAN], mem[cpu + FLOW_ON] = starts, starts + mem[_CPU_FIXED]
        mem[CPU_READY] = FAR
    if start_ns == starts:
        if mem[job + JOB_START] == FAR:
            mem[job + JOB_START] = starts
        piece = at.num_pieces - mem[job + _LEFT]
        fixed_ns, nbytes, own = (
            mem[at.pieces + piece], mem[at.piece_bytes + piece], mem[at.piece_rates + piece]
        )  # fmt: skip
        if mem[job + _SLOT] < 0:  # hidden states share nothing
            fixed_ns, nbytes, own = mem[job + JOB_KEY], 0, 0
            mem[job + _LEFT] = 1
        mem[job + _LEFT] -= 1
        mem[link + FLOW_JOB], mem[link + _BEGAN] = job, starts
        mem[link + FLOW_ON], mem[link + _NBYTES], mem[link + _OWN] = starts + fixed_ns, nbytes, own
        mem[link + _FLOW_ORDER] = mem[job + _ORDER]
    return True, num_works


@kept
def _moves_on(mem, flow, now):  # type: ignore[no-untyped-def]
    """End the fixed part of a flow, so that its bytes move; return False if it is over instead."""
    mem[flow + FLOW_ON] = FAR
    if mem[flow + _MOVES] or not mem[flow + _NBYTES]:
        mem[flow + _MOVES] = 0
        return False
    mem[flow + _MOVES], mem[flow + _RATE], mem[flow + _SINCE] = 1, 0, now
    mem[flow + _REST] = mem[flow + _NBYTES] * 1_000_000_000
    return True


@kept
def _change_rates(mem, at, now):  # type: ignore[no-untyped-def]
    """Give both flows their fair rates, as `flows.fair_rates`."""
    one, other, capacity = at.flows, at.flows + FLOW_WORDS, at.capacity
    if not mem[other + _MOVES]:
        if mem[one + _MOVES]:
            _set_rate(mem, one, now, min(mem[one + _OWN], capacity))
        return
    if not mem[one + _MOVES]:
        _set_rate(mem, other, now, min(mem[other + _OWN], capacity))
        return
    half = capacity // 2
    low_one, low_other = min(mem[one + _OWN], half), min(mem[other + _OWN], half)
    later = low_other < low_one
    if low_other == low_one:
        later = mem[other + _OWN] < mem[one + _OWN] or (
            mem[other + _OWN] == mem[one + _OWN]
            and mem[other + _FLOW_ORDER] < mem[one + _FLOW_ORDER]
        )
    if later:
        one, other, low_one = other, one, low_other
    low_one = max(1, low_one)
    _set_rate(mem, one, now, low_one)
    _set_rate(mem, other, now, min(mem[other + _OWN], capacity - low_one))


@kept
def _set_rate(mem, flow, now, rate):  # type: ignore[no-untyped-def]
    rate = max(1, rate)
    mem[flow + _REST] -= mem[flow + _RATE] * (now - mem[flow + _SINCE])
    mem[flow + _SINCE], mem[flow + _RATE] = now, rate
    mem[flow + FLOW_ON] = now - (-mem[flow + _REST] // rate)


@kept
def _pair(mem, at, victim, taker):  # type: ignore[no-untyped-def]
    """Remember that a key left for another one that is copied ahead."""
    mem[FREE_PAIRS] -= 1
    pair = mem[at.idle_pairs + mem[FREE_PAIRS]]
    mem[_PAIRS] += 1
    first_v, first_t = mem[at.by_victim + victim], mem[at.by_taker + taker]
    mem[pair + _VICTIM], mem[pair + _TAKER] = victim, taker
    mem[pair + _BEFORE_V], mem[pair + _AFTER_V] = -1, first_v
    mem[pair + _BEFORE_T], mem[pair + _AFTER_T] = -1, first_t
    if first_v >= 0:
        mem[first_v + _BEFORE_V] = pair
    if first_t >= 0:
        mem[first_t + _BEFORE_T] = pair
    mem[at.by_victim + victim] = mem[at.by_taker + taker] = pair


@kept
def _part(mem, at, pair):  # type: ignore[no-untyped-def]
    """Forget a pair."""
    before, after = mem[pair + _BEFORE_V], mem[pair + _AFTER_V]
    if before >= 0:
        mem[before + _AFTER_V] = after
    else:
        mem[at.by_victim + mem[pair + _VICTIM]] = after
    if after >= 0:
        mem[after + _BEFORE_V] = before
    before, after = mem[pair + _BEFORE_T], mem[pair + _AFTER_T]
    if before >= 0:
        mem[before + _AFTER_T] = after
    else:
        mem[at.by_taker + mem[pair + _TAKER]] = after
    if after >= 0:
        mem[after + _BEFORE_T] = before
    mem[at.idle_pairs + mem[FREE_PAIRS]] = pair
    mem[FREE_PAIRS] += 1
    mem[_PAIRS] -= 1


@kept
def _polluted(mem, at, keys, size):  # type: ignore[no-untyped-def]
    """Return how many keys of a union left for a key that is wanted later than they are."""
    for place in range(size):
        while mem[at.by_taker + keys[place]] >= 0:
            _part(mem, at, mem[at.by_taker + keys[place]])
    found = 0
    for place in range(size):
        while mem[at.by_victim + keys[place]] >= 0:
            _part(mem, at, mem[at.by_victim + keys[place]])
            found += 1
    return found


@kept
def guesses_of_steps(guesses, ends, unused, experts, most, keys, sizes):  # type: ignore[no-untyped-def]
    """Write the predicted keys of each call, in order; return their number.

    `guesses` [B, L, D, K] are experts of the next layers, nearest first; of each layer at most
    `most` distinct ones count. Step s has the rows `ends[s]` to before `ends[s + 1]`. At the start
    of a step nothing is predicted. Where an expert is out of range, return -1 - its row.
    """
    layers, depth, top_k = guesses.shape[1], guesses.shape[2], guesses.shape[3]
    seen = np.full(experts, -1, np.int64)
    number = stamp = 0
    for step in range(len(ends) - 1):
        for layer in range(layers):
            first = number
            for ahead in range(1, min(depth, layers - 1 - layer) + 1):
                base, found = (layer + ahead) * experts, 0
                for row in range(ends[step], ends[step + 1]):
                    for place in range(top_k):
                        expert = guesses[row, layer, ahead - 1, place]
                        if expert == unused:
                            continue
                        if expert >= experts:
                            return -1 - row
                        if seen[expert] != stamp and found < most:
                            seen[expert] = stamp
                            keys[number] = base + expert
                            number += 1
                            found += 1
                stamp += 1
            sizes[step * (layers + 1) + layer + 1] = number - first
    return number


@kept
def _sort(keys, first, second, start, stop):  # type: ignore[no-untyped-def]
    """Sort some keys by their scores. Few keys leave at once, so they are inserted one by one."""
    for place in range(start + 1, stop):
        turn = place
        while turn > start and (
            first[turn] < first[turn - 1]
            or (first[turn] == first[turn - 1] and second[turn] < second[turn - 1])
        ):
            _swap(keys, first, second, turn - 1, turn)
            turn -= 1


def _choose(  # type: ignore[no-untyped-def]
    held, members, always, cache, excess, absent, missing, wanted, worst, room, first, second, ints,
    floats,
):  # fmt: skip
    """Write the `excess` keys that leave into `worst`, the first one first; return how many."""
    leaving = 0
    if IN_ORDER:
        for turn in range(2):  # `always`: wanted keys leave in the second turn
            key = head(cache, ints)
            while leaving < excess and key >= 0:
                if not always or wanted[key] == turn:
                    worst[leaving] = key
                    leaving += 1
                key = following(key, ints)
        return leaving
    rivals = held + missing
    for turn in range(held):
        room[turn] = members[turn]
    for place in range(missing):
        room[held + place] = absent[place]
    for turn in range(rivals):
        first[turn], second[turn] = score(room[turn], cache, ints, floats)
    others = rivals
    if always:
        others = _part_wanted(room, first, second, rivals, wanted)
    early = min(excess, others)
    _lowest(room, first, second, 0, others, early)
    _lowest(room, first, second, others, rivals, excess - early)
    _sort(room, first, second, 0, early)
    _sort(room, first, second, others, others + excess - early)
    for place in range(early):
        worst[place] = room[place]
    for place in range(excess - early):
        worst[early + place] = room[others + place]
    return excess


def _victim(held, members, cache, shielded, ints, floats):  # type: ignore[no-untyped-def]
    """Return the resident that leaves for a key copied ahead, or -1 if all are shielded."""
    if IN_ORDER:
        key = head(cache, ints)
        while key >= 0 and shielded[key]:
            key = following(key, ints)
        return key
    best = -1
    best_first, best_second = 0.0, 0
    for turn in range(held):
        key = members[turn]
        if shielded[key]:
            continue
        first, second = score(key, cache, ints, floats)
        if best < 0 or first < best_first or (first == best_first and second < best_second):
            best, best_first, best_second = key, first, second
    return best


@kept
def _sort_free(mem, free, count):  # type: ignore[no-untyped-def]
    """Move free slots that this event does not read to the end, where they are taken first."""
    first = free
    for place in range(free, free + count):  # a stable partition; there are few
        slot = mem[place]
        if mem[slot + _MARK] == mem[_EVENT]:
            for turn in range(place, first, -1):
                mem[turn] = mem[turn - 1]
            mem[first] = slot
            first += 1


@kept
def _ahead_of(mem, at, key, slot, layer, issue_ns):  # type: ignore[no-untyped-def]
    """Copy an expert for a later event."""
    _copy(mem, at, key, slot, _PREFETCH, issue_ns)
    mem[slot + SLOT_READER], mem[slot + SLOT_FRESH] = -1, 1
    mem[slot + _ISSUED] = mem[_ISSUES]
    mem[_ISSUES] += 1
    _count(mem, at, layer, _AHEAD, 1)


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
    modes, chosen, on_cpu = elsewhere.modes, elsewhere.chosen, at.flows + FLOW_WORDS
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
    _run_link(mem, at, start_ns, landing_ns, 0, 0, works, 0, 0)
    mem[_SHOWN] = 0
    for step in range(num_steps):
        if mem[FREE_JOBS] < needs[step] or mem[FREE_PAIRS] < needs[step]:
            return step, seen_keys, num_works
        mem[_SHOWN] = shown[step]
        mem[_GPU] = mem[_DECIDED] = mem[_NOW]
        for column in range(_COLUMNS):
            mem[at.sums + column] = 0
        for layer in range(-1, num_layers):
            size = 0
            if layer >= 0:
                last = ends[layer + 1] - 1
                for place in range(ends[layer], last + 1):
                    lasts_ns = kinds_ns[step, order[place]]
                    kind = _FRONT if place == last else _DENSE
                    call = _call(mem, at, lasts_ns, host.launch_ns, _OTHER, layer, kind)
                    _await_states(mem, at, call)
                    mem[at.sums + _FIXED] += lasts_ns
                after_ns, release_ns = 0, 0
                if returns[layer]:
                    after_ns = layers.ids_ns[step]
                    mem[_HOST] += host.copy_ns
                    release_ns = mem[_HOST]
                    mem[at.sums + _BUSY_D2H] += after_ns
                num_works = _run_link(
                    mem, at, FAR, landing_ns, after_ns, release_ns, works, num_works, step
                )
                if mem[_SHOWN] and returns[layer]:
                    begin_ns = max(mem[_GPU], release_ns)
                    _show(works, num_works, step, layer, _BACK, -1, begin_ns, begin_ns + after_ns)
                    num_works += 1
                now = mem[_DECIDED] = mem[_NOW]
                mem[_EVENT] += 1
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
                    elif mem[slot + _LAND] <= now:
                        if mem[slot + SLOT_FRESH]:
                            mem[slot + SLOT_FRESH] = 0
                            mem[at.sums + _USEFUL] += 1
                        resident_ns += expert_ns[count]
                        mem[slot + _MARK] = mem[_EVENT]
                        read_slots[ready] = slot
                        ready += 1
                    else:
                        late[num_late] = key
                        num_late += 1
                seen_keys += size
                if mem[_PAIRS]:
                    mem[at.sums + _POLLUTION] += _polluted(mem, at, union, size)
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
                    issued = mem[mem[at.slot_of + key] + _ISSUED]
                    while turn > 0 and mem[mem[at.slot_of + late[turn - 1]] + _ISSUED] > issued:
                        late[turn] = late[turn - 1]
                        turn -= 1
                    late[turn] = key
                for place in range(num_late):
                    slot = mem[at.slot_of + late[place]]
                    read_slots[ready + place] = slot
                    mem[slot + _MARK] = mem[_EVENT]
                    mem[at.sums + _LATE] += mem[slot + SLOT_FRESH]
                    mem[slot + SLOT_FRESH] = 0
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
                        mem[at.sums + _WASTED] += mem[slot + SLOT_FRESH]
                        mem[slot + SLOT_FRESH] = 0
                        if mem[slot + SLOT_JOB] >= 0:
                            vacated[num_vacated] = mem[slot + SLOT_JOB]
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
                mem[_EXTRA] += host.event_ns
                if ready:
                    resident_ns += call_ns
                    mem[at.sums + _BUSY] += resident_ns
                    call = _call(mem, at, resident_ns, host.launch_ns, _OTHER, layer, _EXPERTS)
                    for place in range(ready):
                        mem[read_slots[place] + SLOT_READER] = call
                for place in range(num_late):
                    slot = read_slots[ready + place]
                    _promote(mem, at, mem[slot + SLOT_JOB])
                    lasts_ns = call_ns + expert_ns[counts[late[place] - base]] + fetch_ns[0]
                    mem[at.sums + _BUSY] += lasts_ns
                    call = _call(mem, at, lasts_ns, host.launch_ns, _STALL_LATE, layer, _EXPERTS)
                    _await(mem, at, call, slot, landing_ns)
                    mem[slot + SLOT_READER] = call
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
                    mem[_HOST] += host.copy_ns + mem[_EXTRA]
                    mem[_EXTRA] = 0
                    begin_ns, down_ns = mem[_HOST], elsewhere.down_ns[step]
                    mem[at.sums + _BUSY_D2H] += down_ns
                    if mem[_SHOWN]:
                        _show(works, num_works, step, layer, _STATES_DOWN, -1, begin_ns,
                              begin_ns + down_ns)  # fmt: skip
                        num_works += 1
                    mem[_HOST] += host.launch_ns
                    mem[CPU_READY] = max(mem[_HOST], begin_ns + down_ns)
                    fixed_ns, own = elsewhere.call_ns + sum_ns, 0
                    if sum_ns and sum_bytes:  # as `cost.prices.flow`
                        own = -(-sum_bytes * 1_000_000_000 // sum_ns)
                        fixed_ns -= -(-sum_bytes * 1_000_000_000 // own)
                    mem[_CPU_FIXED] = fixed_ns
                    mem[on_cpu + _NBYTES] = sum_bytes if own else 0
                    mem[on_cpu + _OWN] = own
                    mem[on_cpu + _FLOW_ORDER] = mem[_ISSUED_ALL]
                    mem[_ISSUED_ALL] += 1
                    mem[_UP_LAYER] = layer
                for place in range(num_vacated):
                    _promote(mem, at, vacated[place])
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
                        slot = at.buffers + mem[_BUFFER] * SLOT_WORDS
                        mem[_BUFFER] += 1
                        if mem[_BUFFER] == staging:
                            mem[_BUFFER] = 0
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
                    _copy(mem, at, key, slot, _DEMAND, host.copy_ns)
                    fetched = loads if place == missing - 1 else 0
                    lasts_ns = call_ns + expert_ns[count] + fetch_ns[fetched]
                    mem[at.sums + _BUSY] += lasts_ns
                    call = _call(mem, at, lasts_ns, host.launch_ns, _STALL_DEMAND, layer, _EXPERTS)
                    _await(mem, at, call, slot, landing_ns)
                    mem[slot + SLOT_READER] = call  # which waits for the copy
                    mem[slot + SLOT_JOB], mem[slot + _LAND] = -1, 0
                held_in[number] = held
                mem[at.num_free + number] = num_free
                if num_cpu:  # not before the copies of experts, which it would keep waiting
                    job = _job(mem, at, elsewhere.up_ns[step], -1, host.copy_ns, _STATES_UP)
                    mem[job + _AFTER_JOB] = 1
                    _push(mem, at.urgent, at.mask, URGENT_HEAD, URGENT_TAIL, job, _TURN)
                    mem[UP] = mem[on_cpu + FLOW_JOB] = job
                    mem[at.sums + _STATES] += 1
                for place in range(num_later):
                    key = later[place]
                    _ahead_of(mem, at, key, mem[at.slot_of + key], layer, host.copy_ns)
                waves = 0
                if loads:
                    waves = max(1, -(-staged // staging))
                    mem[at.sums + _WAVES] += waves
                    mem[at.sums + _WAVES_EVENTS] += 1
                    if waves > waves_max[step]:
                        waves_max[step] = waves
                mem[at.sums + _NONEMPTY] += size > 0
                _count(mem, at, layer, _HITS, ready)
                _count(mem, at, layer, _LATE_HITS, num_late)
                _count(mem, at, layer, _COPIES, loads)
                _count(mem, at, layer, _ELSEWHERE, num_cpu)
                _count(mem, at, layer, _MISSED, missed_rows)
                _count(mem, at, layer, _ROWS, rows)
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
                        mem[at.sums + _REFUSED] += 1
                        continue
                    slot = mem[at.slot_of + loser]
                    mem[at.slot_of + loser] = -1
                    ints[loser, RESIDENT] = 0
                    left(loser, cache, ints)
                    mem[at.sums + _WASTED] += mem[slot + SLOT_FRESH]
                    _promote(mem, at, mem[slot + SLOT_JOB])
                    _pair(mem, at, loser, key)
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
            call = _call(mem, at, lasts_ns, host.launch_ns, _OTHER, num_layers, _DENSE)
            _await_states(mem, at, call)
            mem[at.sums + _FIXED] += lasts_ns
        call = _call(mem, at, layers.tail_ns[step], host.launch_ns, _OTHER, num_layers, _TAIL)
        _await_states(mem, at, call)
        mem[at.sums + _FIXED] += layers.tail_ns[step]
        after_ns = layers.sampled_ns[step]
        mem[_HOST] += host.copy_ns
        release_ns = mem[_HOST]
        num_works = _run_link(
            mem, at, FAR, landing_ns, after_ns, release_ns, works, num_works, step
        )
        now = mem[_NOW]
        mem[at.sums + _BUSY_D2H] += after_ns
        _count(mem, at, num_layers, _READBACK, now - mem[_GPU])
        out.finish_ns[step] = now
        if mem[_SHOWN]:
            begin_ns = max(mem[_GPU], release_ns)
            _show(works, num_works, step, num_layers, _BACK, -1, begin_ns, begin_ns + after_ns)
            num_works += 1
        num_works = _collect(mem, at, now, step, experts, works, num_works)
        for column in range(_COLUMNS):
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
    for place in range(mem[NUM_LANDED]):
        row = at.landed + place * LANDED_WORDS
        if mem[row + L_FINISH] > now:
            other = at.landed + kept_rows * LANDED_WORDS
            for word in range(LANDED_WORDS):
                mem[other + word] = mem[row + word]
            kept_rows += 1
            continue
        if mem[row + _L_AHEAD]:
            mem[at.sums + _LANDED] += 1
            mem[at.sums + _BUSY_H2D] += mem[row + L_BUSY]
        if mem[_SHOWN]:
            kind, key, layer = mem[row + _L_KIND], mem[row + L_KEY], mem[row + _L_LAYER]
            if kind == _STATES_UP:
                key = -1
            else:
                layer = key // experts
            _show(works, num_works, step, layer, kind, key, mem[row + L_START], mem[row + L_FINISH])
            num_works += 1
    mem[NUM_LANDED] = kept_rows
    return num_works


@cache
def overlap_of(kernel: Kernel) -> Callable[..., Any]:
    """Return the compiled function of a policy, as `stretch_of` does."""
    own = kernel._asdict()
    own |= {"head": kernel.head or head, "following": kernel.following or following}
    own["insert"] = kernel.insert or insert  # which is called where experts are copied ahead alone
    names = {**globals(), **own, "IN_ORDER": kernel.head is not None}
    name = next((name for name, each in KERNELS.items() if each is kernel), None)
    files = str(policies.__file__), str(kernels.__file__), __file__
    sources = b"".join(Path(file).read_bytes() for file in files)
    number = sha256(sources).hexdigest()[:12]
    compile_it: Any = njit if name is None else kept

    def made(function: Any, title: str) -> Any:
        copied = FunctionType(function.__code__, names, title)
        copied.__qualname__ = f"{title}_{name}_{number}"
        return compile_it(copied, error_model="numpy")

    names["choose"] = made(_choose, "choose")
    names["victim_of"] = made(_victim, "victim")
    return made(_overlap, "overlap")  # type: ignore[no-any-return]
