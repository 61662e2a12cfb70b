"""Calls and copies of the kernel of overlapping events: they are issued, wait, and end."""

from __future__ import annotations

from moesim.machine.work import FAR
from moesim.serving.compiled import records as r
from moesim.serving.compiled.keep import kept

__all__ = [
    "await_copy", "await_states", "count_at", "issue_call", "issue_copy", "land", "new_job",
    "promote", "push", "ready_ns",
]  # fmt: skip


@kept
def issue_call(mem, at, lasts_ns, issue_ns, cause, layer, kind):  # type: ignore[no-untyped-def]
    """Issue a call on the GPU that waits for no copy; return its number."""
    mem[r.HOST] += issue_ns + mem[r.EXTRA]
    mem[r.EXTRA] = 0
    number = mem[r.NUM_CALLS]
    mem[r.NUM_CALLS] += 1
    call = at.calls + number * r.CALL_WORDS
    mem[call + r.CALL_MAY] = mem[call + r.CALL_RELEASE] = mem[r.HOST]
    mem[call + r.CALL_LASTS], mem[call + r.CALL_CAUSE], mem[call + r.CALL_LANDED] = (
        lasts_ns,
        cause,
        0,
    )
    mem[call + r.CALL_CAUSE_LAYER] = layer
    mem[call + r.CALL_LAYER], mem[call + r.CALL_FINISH], mem[call + r.CALL_KIND] = layer, FAR, kind
    return mem[r.BASE] + number


@kept
def await_copy(mem, at, number, slot, landing_ns):  # type: ignore[no-untyped-def]
    """Let a call wait for the copy that fills a slot."""
    call, job = at.calls + (number - mem[r.BASE]) * r.CALL_WORDS, mem[slot + r.SLOT_JOB]
    if job >= 0:
        mem[call + r.CALL_MAY] = FAR
        mem[job + r.JOB_CALL] = call
    else:
        mem[call + r.CALL_LANDED] = mem[slot + r.SLOT_LAND]
        mem[call + r.CALL_MAY] = max(mem[call + r.CALL_MAY], mem[slot + r.SLOT_LAND] + landing_ns)


@kept
def await_states(mem, at, number):  # type: ignore[no-untyped-def]
    """Let a call wait for the hidden states from the CPU, if they are on their way."""
    if mem[r.UP] >= 0:
        call = at.calls + (number - mem[r.BASE]) * r.CALL_WORDS
        mem[call + r.CALL_MAY], mem[call + r.CALL_CAUSE], mem[call + r.CALL_CAUSE_LAYER] = (
            FAR, r.SUM_STALL_CPU, mem[r.UP_LAYER],
        )  # fmt: skip
        mem[mem[r.UP] + r.JOB_CALL] = call
        mem[r.UP] = -1


@kept
def push(mem, queue, mask, first, last, job, column):  # type: ignore[no-untyped-def]
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
def new_job(mem, at, key, slot, issue_ns, kind):  # type: ignore[no-untyped-def]
    """Return a new job of the link that waits for nothing."""
    mem[r.HOST] += issue_ns + mem[r.EXTRA]
    mem[r.EXTRA] = 0
    mem[r.FREE_JOBS] -= 1
    job = mem[at.idle_jobs + mem[r.FREE_JOBS]]
    mem[job + r.JOB_READY] = mem[r.HOST]
    mem[job + r.JOB_AFTER_CALL] = mem[job + r.JOB_NEXT] = mem[job + r.JOB_CALL] = -1
    mem[job + r.JOB_AFTER_JOB] = mem[job + r.JOB_BUSY] = 0
    mem[job + r.JOB_LEFT], mem[job + r.JOB_SLOT], mem[job + r.JOB_KEY] = at.num_pieces, slot, key
    mem[job + r.JOB_PROMOTED] = mem[job + r.JOB_START] = FAR
    mem[job + r.JOB_IS_AHEAD], mem[job + r.JOB_KIND] = kind == r.KIND_PREFETCH, kind
    mem[job + r.JOB_PLACE] = mem[job + r.JOB_TURN] = -1
    mem[job + r.JOB_ORDER] = mem[r.NUM_ISSUED]
    mem[r.NUM_ISSUED] += 1
    return job


@kept
def issue_copy(mem, at, key, slot, kind, issue_ns):  # type: ignore[no-untyped-def]
    """Issue a copy into a slot that may still be in use."""
    job = new_job(mem, at, key, slot, issue_ns, kind)
    if mem[slot + r.SLOT_READER] >= mem[r.BASE]:
        mem[job + r.JOB_AFTER_CALL] = (
            at.calls + (mem[slot + r.SLOT_READER] - mem[r.BASE]) * r.CALL_WORDS
        )
        mem[at.waiting + mem[r.NUM_WAITING]] = job
        mem[r.NUM_WAITING] += 1
    elif mem[slot + r.SLOT_JOB] >= 0:
        mem[job + r.JOB_AFTER_JOB] = 1
        mem[mem[slot + r.SLOT_JOB] + r.JOB_NEXT] = job
    else:
        mem[job + r.JOB_READY] = max(mem[job + r.JOB_READY], mem[slot + r.SLOT_LAND])
    mem[slot + r.SLOT_JOB], mem[slot + r.SLOT_LAND] = job, FAR
    if kind == r.KIND_PREFETCH:
        push(mem, at.ahead, at.mask, r.AHEAD_HEAD, r.AHEAD_TAIL, job, r.JOB_PLACE)
    else:
        push(mem, at.urgent, at.mask, r.URGENT_HEAD, r.URGENT_TAIL, job, r.JOB_TURN)


@kept
def promote(mem, at, job):  # type: ignore[no-untyped-def]
    """Give a copy ahead demand priority, if it is still queued."""
    if job < 0 or not mem[job + r.JOB_IS_AHEAD] or mem[job + r.JOB_PROMOTED] < FAR:
        return
    mem[job + r.JOB_PROMOTED] = mem[r.HOST]
    push(mem, at.urgent, at.mask, r.URGENT_HEAD, r.URGENT_TAIL, job, r.JOB_TURN)
    if mem[r.HOST] <= mem[r.NOW]:
        mem[at.ahead + (mem[job + r.JOB_PLACE] & at.mask)] = -1
        mem[job + r.JOB_PLACE] = -1


@kept
def ready_ns(mem, job):  # type: ignore[no-untyped-def]
    """Return when a job may start; FAR while that is not known."""
    if mem[job + r.JOB_AFTER_JOB]:
        return FAR
    if mem[job + r.JOB_AFTER_CALL] >= 0:
        return max(mem[job + r.JOB_READY], mem[mem[job + r.JOB_AFTER_CALL] + r.CALL_FINISH])
    return mem[job + r.JOB_READY]


@kept
def land(mem, at, job, finish_ns, landing_ns):  # type: ignore[no-untyped-def]
    """End a job whose finish is known: tell all that wait for it."""
    slot, after, call = mem[job + r.JOB_SLOT], mem[job + r.JOB_NEXT], mem[job + r.JOB_CALL]
    if slot >= 0 and mem[slot + r.SLOT_JOB] == job:
        mem[slot + r.SLOT_JOB], mem[slot + r.SLOT_LAND] = -1, finish_ns
    if after >= 0:
        mem[after + r.JOB_AFTER_JOB] = 0
        mem[after + r.JOB_READY] = max(mem[after + r.JOB_READY], finish_ns)
    if call >= 0:
        mem[call + r.CALL_LANDED] = finish_ns
        mem[call + r.CALL_MAY] = max(mem[call + r.CALL_RELEASE], finish_ns + landing_ns)
    if mem[job + r.JOB_IS_AHEAD] or mem[r.SHOWN]:
        row = at.landed + mem[r.NUM_LANDED] * r.LANDED_WORDS
        mem[row + r.LANDED_LAYER], mem[row + r.LANDED_KEY] = mem[r.UP_LAYER], mem[job + r.JOB_KEY]
        mem[row + r.LANDED_START], mem[row + r.LANDED_FINISH] = mem[job + r.JOB_START], finish_ns
        mem[row + r.LANDED_AHEAD], mem[row + r.LANDED_BUSY] = (
            mem[job + r.JOB_IS_AHEAD],
            mem[job + r.JOB_BUSY],
        )
        mem[row + r.LANDED_KIND] = mem[job + r.JOB_KIND]
        mem[r.NUM_LANDED] += 1
    if not mem[job + r.JOB_IS_AHEAD]:
        mem[at.sums + r.SUM_BUSY_H2D] += mem[job + r.JOB_BUSY]
    if mem[job + r.JOB_PLACE] >= 0:
        mem[at.ahead + (mem[job + r.JOB_PLACE] & at.mask)] = -1
    if mem[job + r.JOB_TURN] >= 0:
        mem[at.urgent + (mem[job + r.JOB_TURN] & at.mask)] = -1
    mem[at.idle_jobs + mem[r.FREE_JOBS]] = job
    mem[r.FREE_JOBS] += 1


@kept
def count_at(mem, at, layer, column, number):  # type: ignore[no-untyped-def]
    mem[at.by_layer + layer * r.NUM_SUMS + column] += number
    mem[at.sums + column] += number
