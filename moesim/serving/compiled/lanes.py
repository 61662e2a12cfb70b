"""The lanes of the kernel of overlapping events: works get their starts in order of time.

It follows `moesim/machine/sim.py`. Where the CPU computes, it shares the bandwidth of host memory
with the link, as in `moesim/machine/flows.py`.
"""

from __future__ import annotations

from moesim.machine.work import FAR
from moesim.serving.compiled import records as r
from moesim.serving.compiled.keep import kept
from moesim.serving.compiled.kernel import show_work
from moesim.serving.compiled.works import count_at, land, ready_ns

__all__ = ["run_lanes"]


@kept
def _settle_calls(mem, at, works, num_works, step):  # type: ignore[no-untyped-def]
    """Time the next calls on the GPU whose copies have landed, and the stalls before them.

    Return the number of shown works.
    """
    while mem[r.NUM_SETTLED] < mem[r.NUM_CALLS]:
        call = at.calls + mem[r.NUM_SETTLED] * r.CALL_WORDS
        if mem[call + r.CALL_MAY] >= FAR:
            break
        clock, start = mem[r.GPU_FREE], max(mem[r.GPU_FREE], mem[call + r.CALL_MAY])
        layer, finish = mem[call + r.CALL_LAYER], start + mem[call + r.CALL_LASTS]
        if start > clock:  # as `stalls._divide`
            until = min(mem[r.DECIDED], start)
            if until > clock:
                count_at(mem, at, layer, r.SUM_READBACK, until - clock)
                clock = until
            cause, until = mem[call + r.CALL_CAUSE], min(mem[call + r.CALL_LANDED], start)
            if until > clock:
                count_at(mem, at, mem[call + r.CALL_CAUSE_LAYER], cause, until - clock)
                clock = until
            if clock < mem[call + r.CALL_RELEASE] <= start:
                count_at(mem, at, layer, r.SUM_STALL_HOST, mem[call + r.CALL_RELEASE] - clock)
                clock = mem[call + r.CALL_RELEASE]
            count_at(mem, at, mem[call + r.CALL_CAUSE_LAYER], cause, start - clock)
        mem[call + r.CALL_FINISH] = mem[r.GPU_FREE] = finish
        if mem[r.SHOWN]:
            show_work(works, num_works, step, layer, mem[call + r.CALL_KIND], -1, start, finish)
            num_works += 1
        mem[r.NUM_SETTLED] += 1
    return num_works


@kept
def _next_start(mem, at):  # type: ignore[no-untyped-def]
    """Return when an idle link starts its next piece, of which job, and until when others may not
    come between the pieces of that job.
    """
    mask, free = at.mask, max(mem[r.LINK_FREE], mem[r.NOW])
    soonest, chosen, before = FAR, -1, FAR
    place, last = mem[r.URGENT_HEAD], mem[r.URGENT_TAIL]
    while place < last and mem[at.urgent + (place & mask)] < 0:
        place += 1
    mem[r.URGENT_HEAD] = place
    if place < last:
        job = mem[at.urgent + (place & mask)]
        start = max(ready_ns(mem, job), free)
        if mem[job + r.JOB_PROMOTED] < FAR:
            start = max(start, mem[job + r.JOB_PROMOTED])
        if start < soonest:
            soonest, chosen = start, job
    urgent_ns = soonest
    place, last = mem[r.AHEAD_HEAD], mem[r.AHEAD_TAIL]
    while place < last and mem[at.ahead + (place & mask)] < 0:
        place += 1
    mem[r.AHEAD_HEAD] = place
    while place < last:
        job = mem[at.ahead + (place & mask)]
        place += 1
        if job < 0:
            continue
        start, promoted = max(ready_ns(mem, job), free), mem[job + r.JOB_PROMOTED]
        if start < promoted:
            if start < soonest:
                soonest, chosen, before = start, job, min(urgent_ns, promoted)
            break
        free = max(free, promoted)  # until then the next one is not the head
    return soonest, chosen, before


@kept
def run_lanes(mem, at, until_ns, landing_ns, after_ns, release_ns, works, num_works, step):  # type: ignore[no-untyped-def]
    """Settle all calls, and starts of copies before a wait ends; return the number of shown works.

    The wait is until `until_ns`; or, if that is FAR, until `after_ns` after the last call, or after
    `release_ns` if that is later. Its end is then the machine's time.
    """
    while True:
        target = until_ns
        if until_ns >= FAR:
            num_works = _settle_calls(mem, at, works, num_works, step)
            if mem[r.NUM_SETTLED] == mem[r.NUM_CALLS]:
                target = max(max(mem[r.GPU_FREE], release_ns) + after_ns, mem[r.HOST])
        if at.capacity:
            going, num_works = _share(mem, at, target, landing_ns, works, num_works, step)
            if going:
                continue
            break
        start_ns, job, before = _next_start(mem, at)
        if start_ns >= target:
            break
        if mem[job + r.JOB_START] == FAR:
            mem[job + r.JOB_START] = start_ns
        pieces, clock = mem[job + r.JOB_LEFT], start_ns
        before = min(before, target)  # until then nothing else gets ready
        while pieces and clock < before:
            clock += mem[at.pieces + at.num_pieces - pieces]
            pieces -= 1
        mem[job + r.JOB_BUSY] += clock - start_ns
        mem[job + r.JOB_LEFT], mem[r.LINK_FREE] = pieces, clock
        if not pieces:
            land(mem, at, job, clock, landing_ns)
    mem[r.NOW] = mem[r.HOST] = target
    for place in range(mem[r.NUM_WAITING]):
        job = mem[at.waiting + place]
        call = mem[job + r.JOB_AFTER_CALL]
        if call >= 0:
            mem[job + r.JOB_READY] = max(mem[job + r.JOB_READY], mem[call + r.CALL_FINISH])
            mem[job + r.JOB_AFTER_CALL] = -1
    mem[r.NUM_WAITING] = 0
    mem[r.BASE] += mem[r.NUM_CALLS]
    mem[r.NUM_CALLS] = mem[r.NUM_SETTLED] = 0
    return num_works


@kept
def _share(mem, at, target, landing_ns, works, num_works, step):  # type: ignore[no-untyped-def]
    """Do what comes next on a link and a CPU that share host memory, if it comes before `target`.

    Return whether anything did, and the number of shown works.
    """
    link, cpu = at.flows, at.flows + r.FLOW_WORDS
    start_ns, job = FAR, -1
    if mem[link + r.FLOW_JOB] < 0:
        start_ns, job, _ = _next_start(mem, at)
    starts = min(start_ns, mem[r.CPU_READY])
    on = min(mem[link + r.FLOW_ON], mem[cpu + r.FLOW_ON])
    if on <= starts and on <= target and on < FAR:
        if mem[link + r.FLOW_ON] == on and not _moves_on(mem, link, on):
            job = mem[link + r.FLOW_JOB]
            mem[link + r.FLOW_JOB] = -1
            mem[r.LINK_FREE] = on
            mem[job + r.JOB_BUSY] += on - mem[link + r.FLOW_BEGAN]
            if not mem[job + r.JOB_LEFT]:
                land(mem, at, job, on, landing_ns)
        if mem[cpu + r.FLOW_ON] == on and not _moves_on(mem, cpu, on):
            job = mem[cpu + r.FLOW_JOB]
            mem[job + r.JOB_AFTER_JOB] = 0
            mem[job + r.JOB_READY] = max(mem[job + r.JOB_READY], on)
            mem[at.sums + r.SUM_BUSY_CPU] += on - mem[cpu + r.FLOW_BEGAN]
            if mem[r.SHOWN]:
                show_work(
                    works,
                    num_works,
                    step,
                    mem[r.UP_LAYER],
                    r.KIND_ON_CPU,
                    -1,
                    mem[cpu + r.FLOW_BEGAN],
                    on,
                )
                num_works += 1
        _change_rates(mem, at, on)
        return True, num_works
    if starts >= target:
        return False, num_works
    if mem[r.CPU_READY] == starts:
        mem[cpu + r.FLOW_BEGAN], mem[cpu + r.FLOW_ON] = starts, starts + mem[r.CPU_FIXED]
        mem[r.CPU_READY] = FAR
    if start_ns == starts:
        if mem[job + r.JOB_START] == FAR:
            mem[job + r.JOB_START] = starts
        piece = at.num_pieces - mem[job + r.JOB_LEFT]
        fixed_ns, nbytes, own = (
            mem[at.pieces + piece], mem[at.piece_bytes + piece], mem[at.piece_rates + piece]
        )  # fmt: skip
        if mem[job + r.JOB_SLOT] < 0:  # hidden states share nothing
            fixed_ns, nbytes, own = mem[job + r.JOB_KEY], 0, 0
            mem[job + r.JOB_LEFT] = 1
        mem[job + r.JOB_LEFT] -= 1
        mem[link + r.FLOW_JOB], mem[link + r.FLOW_BEGAN] = job, starts
        mem[link + r.FLOW_ON], mem[link + r.FLOW_NBYTES], mem[link + r.FLOW_OWN] = (
            starts + fixed_ns,
            nbytes,
            own,
        )
        mem[link + r.FLOW_ORDER] = mem[job + r.JOB_ORDER]
    return True, num_works


@kept
def _moves_on(mem, flow, now):  # type: ignore[no-untyped-def]
    """End the fixed part of a flow, so that its bytes move; return False if it is over instead."""
    mem[flow + r.FLOW_ON] = FAR
    if mem[flow + r.FLOW_MOVES] or not mem[flow + r.FLOW_NBYTES]:
        mem[flow + r.FLOW_MOVES] = 0
        return False
    mem[flow + r.FLOW_MOVES], mem[flow + r.FLOW_RATE], mem[flow + r.FLOW_SINCE] = 1, 0, now
    mem[flow + r.FLOW_REST] = mem[flow + r.FLOW_NBYTES] * 1_000_000_000
    return True


@kept
def _change_rates(mem, at, now):  # type: ignore[no-untyped-def]
    """Give both flows their fair rates, as `flows.fair_rates`."""
    one, other, capacity = at.flows, at.flows + r.FLOW_WORDS, at.capacity
    if not mem[other + r.FLOW_MOVES]:
        if mem[one + r.FLOW_MOVES]:
            _set_rate(mem, one, now, min(mem[one + r.FLOW_OWN], capacity))
        return
    if not mem[one + r.FLOW_MOVES]:
        _set_rate(mem, other, now, min(mem[other + r.FLOW_OWN], capacity))
        return
    half = capacity // 2
    low_one, low_other = min(mem[one + r.FLOW_OWN], half), min(mem[other + r.FLOW_OWN], half)
    later = low_other < low_one
    if low_other == low_one:
        later = mem[other + r.FLOW_OWN] < mem[one + r.FLOW_OWN] or (
            mem[other + r.FLOW_OWN] == mem[one + r.FLOW_OWN]
            and mem[other + r.FLOW_ORDER] < mem[one + r.FLOW_ORDER]
        )
    if later:
        one, other, low_one = other, one, low_other
    low_one = max(1, low_one)
    _set_rate(mem, one, now, low_one)
    _set_rate(mem, other, now, min(mem[other + r.FLOW_OWN], capacity - low_one))


@kept
def _set_rate(mem, flow, now, rate):  # type: ignore[no-untyped-def]
    rate = max(1, rate)
    mem[flow + r.FLOW_REST] -= mem[flow + r.FLOW_RATE] * (now - mem[flow + r.FLOW_SINCE])
    mem[flow + r.FLOW_SINCE], mem[flow + r.FLOW_RATE] = now, rate
    mem[flow + r.FLOW_ON] = now - (-mem[flow + r.FLOW_REST] // rate)
