"""The records of the kernel of overlapping events: the words of its memory, and what it is given.

Slots, copies (*jobs*) and calls are records in one array, the memory. Each is known by its address
there, and -1 stands for none. `memory[slot + SLOT_LAND]` is a word of the record at `slot`. Arrays
that are passed on or taken from tuples cost more here than all other work, because numba counts
references to them.

Shapes: S steps, L layers, C columns of sums.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from moesim.hardware.topology import CPU, D2H, GPU, H2D

COLUMNS: Final = (
    "hits", "late_hits", "demand_copies", "missed_rows", "rows", "waves", "waves_events",
    "nonempty", "prefetch_copies", "prefetch_useful", "prefetch_late", "prefetch_wasted",
    "prefetch_refused", "prefetch_pollution", "landed", "busy gpu", "busy d2h", "stall readback",
    "stall demand", "stall late", "stall cpu", "stall host", "stall other", "fixed", "elsewhere",
    "states", "busy cpu", "busy h2d",
)  # fmt: skip
"""What is summed, in the order of the last axis of the sums."""
(
    SUM_HITS, SUM_LATE_HITS, SUM_COPIES, SUM_MISSED, SUM_ROWS, SUM_WAVES, SUM_WAVES_EVENTS,
    SUM_NONEMPTY, SUM_AHEAD, SUM_USEFUL, SUM_LATE, SUM_WASTED, SUM_REFUSED, SUM_POLLUTION,
    SUM_LANDED, SUM_BUSY, SUM_BUSY_D2H, SUM_READBACK, SUM_STALL_DEMAND, SUM_STALL_LATE,
    SUM_STALL_CPU, SUM_STALL_HOST, SUM_OTHER, SUM_FIXED, SUM_ELSEWHERE, SUM_STATES,
    SUM_BUSY_CPU, SUM_BUSY_H2D, NUM_SUMS,
) = range(len(COLUMNS) + 1)  # fmt: skip
SHOWN_KINDS: Final = (
    (GPU, "dense"), (GPU, "front"), (GPU, "experts"), (GPU, "tail"), (D2H, "readback"),
    (H2D, "demand"), (H2D, "prefetch"), (D2H, "states"), (CPU, "experts"), (H2D, "states"),
)  # fmt: skip
"""Lanes and kinds of shown works, by number."""
(
    KIND_DENSE, KIND_FRONT, KIND_EXPERTS, KIND_TAIL, KIND_BACK, KIND_DEMAND, KIND_PREFETCH,
    KIND_STATES_DOWN, KIND_ON_CPU, KIND_STATES_UP,
) = range(len(SHOWN_KINDS))  # fmt: skip

# Times are in ns, and FAR while they are not known.

# A slot.
(
    SLOT_LAND,  # when its copy lands
    SLOT_JOB,  # the job of that copy
    SLOT_READER,  # the number of the last call that reads it
    SLOT_FRESH,  # whether its expert was copied ahead and not used
    SLOT_ISSUED,  # the number of that copy
    SLOT_MARK,  # the last event that reads it
    SLOT_WORDS,
) = range(7)
# A job of the link: a copy of an expert or, without a slot, of hidden states.
(
    JOB_READY,  # when it may start, but for what it waits for
    JOB_AFTER_CALL,  # the call that it waits for
    JOB_AFTER_JOB,  # whether it waits for a job
    JOB_NEXT,  # the job that waits for it
    JOB_LEFT,  # pieces left
    JOB_PROMOTED,  # when it was promoted
    JOB_SLOT,
    JOB_CALL,  # the call that waits for it
    JOB_START,
    JOB_KEY,  # of hidden states, the duration
    JOB_IS_AHEAD,
    JOB_PLACE,  # in the queue of copies ahead
    JOB_TURN,  # in the queue of urgent copies
    JOB_ORDER,  # its number in the order of issue
    JOB_BUSY,  # how long the link worked on it
    JOB_KIND,  # as it is shown
    JOB_WORDS,
) = range(17)
# A call on the GPU.
(
    CALL_MAY,  # when it may start
    CALL_LASTS,
    CALL_RELEASE,  # when the host has issued it
    CALL_CAUSE,  # the stall of a wait for it
    CALL_CAUSE_LAYER,  # and the layer that this counts for
    CALL_LANDED,  # when the copy that it waits for landed
    CALL_LAYER,
    CALL_FINISH,
    CALL_KIND,  # as it is shown
    CALL_WORDS,
) = range(10)
# A copy that landed and is not counted.
(
    LANDED_LAYER,
    LANDED_KEY,
    LANDED_START,
    LANDED_FINISH,
    LANDED_AHEAD,  # whether it is a copy ahead
    LANDED_BUSY,  # how long the link worked on it
    LANDED_KIND,  # as it is shown
    LANDED_WORDS,
) = range(8)
# What moves bytes through host memory: the piece on the link, and the call on the CPU.
(
    FLOW_ON,  # when its fixed part or its bytes end
    FLOW_MOVES,  # whether its bytes move
    FLOW_REST,  # bytes left times 10^9
    FLOW_RATE,
    FLOW_OWN,  # the highest rate
    FLOW_SINCE,  # when the rate last changed
    FLOW_NBYTES,
    FLOW_ORDER,  # its number in the order of issue
    FLOW_BEGAN,
    FLOW_JOB,  # its job; of the CPU, the job that waits for it
    FLOW_WORDS,
) = range(11)
# A key that left for another one, which took its slot. A pair is in two lists.
(
    PAIR_VICTIM,
    PAIR_TAKER,
    PAIR_BEFORE_V,  # neighbours in the list of the victim
    PAIR_AFTER_V,
    PAIR_BEFORE_T,  # and of the taker
    PAIR_AFTER_T,
    PAIR_WORDS,
) = range(7)
# The machine, at address 0.
(
    NOW,
    HOST,  # when the host has issued everything so far
    EXTRA,  # time of the host before its next issue
    LINK_FREE,  # when the link has ended its piece
    GPU_FREE,  # when the GPU has ended its last call
    BASE,  # how many calls earlier periods had
    NUM_CALLS,  # of this period
    NUM_SETTLED,  # those of them whose times are known
    URGENT_HEAD,
    URGENT_TAIL,
    AHEAD_HEAD,
    AHEAD_TAIL,
    NUM_AHEAD,  # copies ahead so far
    FREE_JOBS,  # how many records are idle
    NUM_WAITING,  # jobs that wait for a call
    NUM_LANDED,
    NUM_PAIRS,
    FREE_PAIRS,
    NEXT_BUFFER,  # of the staging buffers
    SHOWN,  # whether works of this step are shown
    DECIDED,  # when the layer event was decided
    EVENT,  # the number of the layer event
    NUM_ISSUED,  # works so far
    CPU_READY,  # when the call on the CPU may start
    CPU_FIXED,  # the fixed part of its duration
    UP,  # the job that brings hidden states back, until a call waits for it
    UP_LAYER,
    STATE_WORDS,
) = range(28)


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
