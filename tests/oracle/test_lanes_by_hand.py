"""Runs with a CPU and a disk so small that their time is a sum that one can write down.

All figures are round, so that every term is a whole number of nanoseconds:
- the GPU moves 1000 bytes a nanosecond, its arithmetic is cheap, and each call takes 5000 ns more;
- an expert has 3 * 512 * 1024 weights of 2 bytes = 3,145,728 B: 3146 + 5000 = 8146 ns on the GPU;
- the link moves 49.152 bytes a nanosecond: a copy takes 10,000 + 64,000 ns;
- hidden states of a row are 1024 B: 20.8 ns of the link, so 10,021 ns;
- the CPU moves 4 * 12.288 = 49.152 bytes a nanosecond: 3000 + 64,000 ns for an expert;
- a front has 2,107,392 B of weights, and 4096 B of one KV entry read and one written: 2112 + 5000
  ns on the GPU, and 3000 + 42,959 ns on the CPU;
- the tail reads 1,025,024 B: 1026 + 5000 ns on the GPU, 3000 + 20,855 ns on the CPU;
- two ids, or one token, reach the host after 1000 + 10,000 + 1 ns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from random_lanes import Walking
from round_figures import FIGURES, same_experts
from watched_machines import enlist
from workloads import everything, plan_of, run_on, tiny_scenario

from moesim.machine.events import EventMachine
from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.serving.stalls import CAUSES
from moesim.simulate import Outcome

FRONT, IDS, TAIL, TOKEN = 2112 + 5000, 11_001, 1026 + 5000, 11_001
STATES, COPY, GPU_CALL, EXPERT = 10_021, 10_000 + 64_000, 5000, 3146
CPU_CALL, CPU_EXPERT, CPU_FRONT, CPU_TAIL = 3000, 64_000, 3000 + 42_959, 3000 + 20_855


def serve(rows: int = 1, hardware: dict[str, Any] | None = None, **changes: Any) -> Outcome:
    """Serve one request with a prompt of one row; each row wants experts 2 and 5 of every layer.

    Machines must agree, also where steps are walked layer by layer.
    """
    scenario = tiny_scenario(
        timeline={"steps": 1000}, hardware={**FIGURES, **(hardware or {})}, **changes
    )
    plan = plan_of(scenario, costed_trace(same_experts(rows), prompt=1))
    outcome = run_on(plan)
    assert everything(outcome) == everything(run_on(plan, EventMachine))
    assert everything(outcome) == everything(run_on(plan, Walking))
    return outcome


def spans(outcome: Outcome, lane: str, kind: str) -> list[tuple[int, int]]:
    """Return start and finish of each work of a kind on a lane, in order."""
    rows = sorted(outcome.ledger.timeline, key=lambda row: row[2])
    return [(row[2], row[3]) for row in rows if row[:2] == (lane, kind)]


def stall_ns(outcome: Outcome, cause: str) -> int:
    return sum(outcome.ledger.stall_ns[CAUSES.index(cause)])


def test_a_cpu_expert_beside_a_resident_one() -> None:
    """Experts 0 to 2 of each layer are on the GPU, so expert 5 runs on the CPU.

    Its input goes to the host, and its output comes back, while the GPU computes expert 2.
    """
    outcome = serve(placement={"policy": "cpu_experts"}, cache={"slots": "3/layer"})
    beside = STATES + (CPU_CALL + CPU_EXPERT) + STATES
    assert beside == 87_042 > EXPERT + GPU_CALL
    expected = 4 * (FRONT + IDS + beside) + TAIL + TOKEN
    assert outcome.now_ns == expected == 437_647
    ids_ns = FRONT + IDS
    assert spans(outcome, "gpu", "experts")[0] == (ids_ns, ids_ns + 8146)
    assert spans(outcome, "cpu", "experts")[0] == (ids_ns + 10_021, ids_ns + 77_021)
    assert outcome.ledger.busy_ns["cpu"] == 4 * 67_000
    assert outcome.ledger.moved_bytes["states"] == 4 * 2 * 1024
    # The GPU waits from the end of its expert until the output of the other is there.
    assert stall_ns(outcome, "cpu") == 4 * (beside - 8146)


def test_a_copy_and_the_cpu_share_host_memory() -> None:
    """Two missing experts: one is copied, the other runs on the CPU, and host memory is too slow.

    It moves 65.536 bytes a nanosecond, so 32.768 for each of the two that want 49.152:
    - the copy moves its bytes from 10,000 ns on, alone for 3021 ns: 148,488.192 B;
    - the CPU has its input at 10,021, and reads from 13,021 ns on. Both read at 32.768: the copy's
      2,997,239.808 B take 91,468.50 ns, so it lands at 104,490;
    - the CPU has read 91,469 * 32.768 = 2,997,256.192 B by then; the other 148,471.808 take
      3020.67 ns alone, so it is done at 107,511, and its output is back at 117,532;
    - the GPU computes the copied expert from 104,490 to 112,636.
    """
    hardware = {"host_memory_bandwidth": 65_536_000_000}
    outcome = serve(hardware=hardware, placement={"policy": "two_queue"}, cache={"slots": 0})
    assert outcome.now_ns == 4 * (FRONT + IDS + 117_532) + TAIL + TOKEN
    begin = FRONT + IDS
    assert spans(outcome, "h2d", "demand")[0] == (begin, begin + 104_490)
    assert spans(outcome, "cpu", "experts")[0] == (begin + 10_021, begin + 107_511)
    assert spans(outcome, "h2d", "states")[0] == (begin + 107_511, begin + 117_532)
    assert spans(outcome, "gpu", "experts")[0] == (begin + 104_490, begin + 112_636)
    keys = {row[1]: row[6] for row in outcome.ledger.timeline if row[5] == 0}
    assert keys["demand"] == 2  # of equal rows, the lower key is copied


def test_copies_do_not_wait_for_the_cpu_whose_outputs_use_the_same_link() -> None:
    """In roomy host memory the copy and the CPU each take the time that they take alone."""
    outcome = serve(placement={"policy": "two_queue"}, cache={"slots": 0})
    copied, computed = COPY + EXPERT + GPU_CALL, STATES + CPU_CALL + CPU_EXPERT + STATES
    assert (copied, computed) == (82_146, 87_042)
    assert outcome.now_ns == 4 * (FRONT + IDS + computed) + TAIL + TOKEN


@pytest.mark.parametrize("unit", ["expert", "page"])
def test_an_expert_that_is_not_in_host_memory_is_read_copied_and_computed(unit: str) -> None:
    """Host memory has room for one expert, so each is read: 80,000 / 4 ns and 3.145728 B/ns.

    The second is read while the first is copied and computed.
    """
    disk = {"disk": {"latency": "80us", "bandwidth": 3_145_728_000, "queue_depth": 4}}
    memory = {"host": 3_145_728, "host_cache": unit}
    outcome = serve(hardware=disk, memory=memory, cache={"slots": 0})
    read = 20_000 + 1_000_000
    event = 2 * read + COPY + EXPERT + GPU_CALL
    assert outcome.now_ns == 4 * (FRONT + IDS + event) + TAIL + TOKEN
    assert outcome.ledger.moved_bytes["read"] == 4 * 2 * 3_145_728
    first, second, *_ = spans(outcome, "disk", "read")
    assert second == (first[1], first[1] + read)
    assert spans(outcome, "h2d", "demand")[:2] == [
        (first[1], first[1] + COPY),
        (second[1], second[1] + COPY),
    ]
    # The GPU waits for the reads, and then for each copy. Beside the second read it computes.
    assert stall_ns(outcome, "disk") == 4 * (2 * read - COPY - EXPERT - GPU_CALL)
    assert stall_ns(outcome, "demand") == 4 * 2 * COPY


def test_an_expert_that_is_copied_ahead_is_read_first_and_once() -> None:
    """All experts are read in turn from the start of the step, and each is copied when it is there.

    A read takes 1,020,000 ns, longer than all else, so each layer waits for its second expert.
    """
    disk = {"disk": {"latency": "80us", "bandwidth": 3_145_728_000, "queue_depth": 4}}
    outcome = serve(
        hardware=disk,
        memory={"host": 3_145_728, "host_cache": "expert"},
        cache={"slots": "100%"},
        prefetch={"policy": "oracle"},
    )
    read = 20_000 + 1_000_000
    ends = [read * number for number in range(1, 9)]
    assert spans(outcome, "disk", "read") == [(end - read, end) for end in ends]
    assert spans(outcome, "h2d", "prefetch") == [(end, end + COPY) for end in ends]
    assert outcome.now_ns == ends[-1] + COPY + EXPERT + GPU_CALL + TAIL + TOKEN
    assert outcome.ledger.moved_bytes["read"] == 8 * 3_145_728


LAUNCH, COPY_LAUNCH, EVENT = 30_000, 4_000, 50_000
SLOW_HOST = {"launch": "30us", "copy_launch": "4us", "layer_event": "50us"}
RESIDENT = {"policy": "static", "slots": "100%"}


def test_a_host_that_issues_slower_than_the_gpu_computes_sets_the_time_of_a_step() -> None:
    """Without readbacks the host issues all work of a step in one go.

    In each layer: a front and the experts, without a decision. Then the tail; its token's readback
    is released before the tail ends. Every kernel is shorter than the time until the next is there.
    """
    outcome = serve(3, engine={**SLOW_HOST, "sorting": "device"}, cache=RESIDENT)
    assert max(FRONT, 2 * EXPERT + GPU_CALL, TAIL) < LAUNCH
    issued = 4 * (LAUNCH + LAUNCH) + LAUNCH
    assert issued == 270_000
    step = issued + max(TAIL, COPY_LAUNCH) + TOKEN
    assert outcome.requests[0].token_ns == [step, 2 * step, 3 * step]
    # Fronts of the second and third step read one and two KV entries more: 2 and 4 ns.
    kernels = 3 * (4 * (FRONT + 2 * EXPERT + GPU_CALL) + TAIL) + 4 * (2 + 4)
    # All of the GPU's idle time is the host's, but for the token at the end.
    assert stall_ns(outcome, "host") == 3 * (issued + TAIL) - kernels
    assert stall_ns(outcome, "readback") == 3 * TOKEN


def test_a_slow_host_that_reads_ids_back_waits_in_every_layer() -> None:
    """The next front is issued behind the experts, and released while they are over.

    The readback of ids is issued with the front, and released before the front ends.
    """
    outcome = serve(2, engine=SLOW_HOST, cache=RESIDENT)
    assert 2 * EXPERT + GPU_CALL < LAUNCH
    assert COPY_LAUNCH < FRONT
    layer = LAUNCH + FRONT + IDS + EVENT + LAUNCH  # until the host has issued the experts
    step = 4 * layer + LAUNCH + TAIL + TOKEN
    # The second step reads one KV entry more in each front: 2 ns.
    assert outcome.requests[0].token_ns == [step, 2 * step + 4 * 2]


def test_the_host_decides_only_layers_whose_ids_it_reads() -> None:
    """Layers 0 and 1 stay on the GPU. The host decides the others, whose experts may be missing."""
    cache = {"slots": 31, "scope": "global", "initial_layers": 2}
    engine = {"layer_event": "50us"}
    ends = {}
    for sorting in ("host", "device"):
        slow, fast = (
            serve(2, engine={"sorting": sorting, **times}, cache=cache) for times in (engine, {})
        )
        ends[sorting] = slow.now_ns - fast.now_ns
    assert ends == {"host": 2 * 4 * EVENT, "device": 2 * 2 * EVENT}


def test_whole_layers_on_the_cpu_are_copied_out_of_once() -> None:
    """Layers 0 and 1 run on the CPU: no ids come back. The states reach the GPU for layer 2."""
    placement = {"policy": "cpu_layers", "options": {"layers": 2, "whole_layers": 2}}
    outcome = serve(placement=placement, cache={"slots": "100%"})
    cpu_layer = CPU_FRONT + CPU_CALL + 2 * CPU_EXPERT
    assert cpu_layer == 176_959
    gpu_layer = FRONT + IDS + 2 * EXPERT + GPU_CALL
    assert outcome.now_ns == 2 * cpu_layer + STATES + 2 * gpu_layer + TAIL + TOKEN
    assert outcome.ledger.moved_bytes["states"] == 1024
    assert stall_ns(outcome, "cpu") == 2 * cpu_layer + STATES


def test_a_model_that_runs_entirely_on_the_cpu_copies_nothing() -> None:
    """Its KV entries grow: 2048 B more are read in each layer and step."""
    placement = {"policy": "cpu_layers", "options": {"whole_layers": "all"}}
    outcome = serve(2, placement=placement, cache={"slots": "100%"})
    cpu_layer = CPU_FRONT + CPU_CALL + 2 * CPU_EXPERT
    first = 4 * cpu_layer + CPU_TAIL
    # (2,107,392 + 2 * 2048 + 2048) / 49.152 = 43,000: 41 ns more than with one entry.
    second = 4 * (cpu_layer + 41) + CPU_TAIL
    assert outcome.requests[0].token_ns == [first, first + second]
    assert not any(outcome.ledger.moved_bytes.values())
    assert outcome.ledger.busy_ns == {"gpu": 0, "cpu": first + second, "h2d": 0, "d2h": 0}


def test_a_key_that_ran_on_the_cpu_and_is_kept_is_copied_for_later() -> None:
    """Both experts run on the CPU, in 67,000 < 74,000 + 8146 ns, and LRU keeps them.

    Their copies begin at once, behind all demand. The outputs of the CPU are ready at 141,021, in
    the second copy, and leave when it has landed. The next step finds both in GPU memory.
    """
    outcome = serve(2, placement={"policy": "cost"}, cache={"policy": "lru", "slots": "2/layer"})
    computed = STATES + CPU_CALL + 2 * CPU_EXPERT
    assert (computed, 2 * COPY) == (141_021, 148_000)
    event = 2 * COPY + STATES
    first = 4 * (FRONT + IDS + event) + TAIL + TOKEN
    # The second step has two entries of KV: 2048 B more are read, 2 ns in each layer.
    second = 4 * (FRONT + 2 + IDS + 2 * EXPERT + GPU_CALL) + TAIL + TOKEN
    assert outcome.requests[0].token_ns == [first, first + second]
    begin = FRONT + IDS
    assert spans(outcome, "h2d", "prefetch")[:2] == [
        (begin, begin + COPY),
        (begin + COPY, begin + 2 * COPY),
    ]
    ledger = outcome.ledger
    assert (sum(ledger.elsewhere), sum(ledger.prefetch_copies)) == (8, 8)
    assert (sum(ledger.hits), sum(ledger.late_hits), ledger.prefetch_useful) == (8, 0, 8)


def test_copies_for_later_are_overtaken_at_their_chunks() -> None:
    """In four chunks of 16,000 ns each, the outputs wait for the rest of one chunk only.

    The CPU reads 52.4288 B/ns without overhead, so they are ready at 10,021 + 2 * 60,000. The
    second copy's chunks end at 100,000, 116,000, 132,000 and 148,000. So the last one is overtaken.
    """
    hardware = {
        "h2d": {"bandwidth": 49_152_000_000, "latency": "10us", "chunk": 786_432},
        "core_memory_bandwidth": 13_107_200_000,
        "host_memory_bandwidth": 200_000_000_000,
        "cpu_overhead": "0us",
    }
    cache = {"policy": "lru", "slots": "2/layer"}
    outcome = serve(hardware=hardware, placement={"policy": "cost"}, cache=cache)
    assert STATES + 2 * 60_000 == 130_021
    event = 132_000 + STATES
    assert outcome.now_ns == 4 * (FRONT + IDS + event) + TAIL + TOKEN
    begin = FRONT + IDS
    assert spans(outcome, "h2d", "states")[0] == (begin + 132_000, begin + event)
    # The last chunk follows, 16,000 ns.
    assert spans(outcome, "h2d", "prefetch")[1][1] == begin + event + 16_000


class Guesses(Prefetch):
    """Guesses experts 7, 6 and 5 of layer 1 when the first step starts."""

    def wanted(self, view: View) -> Any:
        self.steps = getattr(self, "steps", 0) + (view.layer < 0)
        return [15, 14, 13] if view.layer < 0 and self.steps == 1 else ()


@pytest.mark.parametrize("buffers", [0, 3])
@pytest.mark.parametrize("cancel", [False, True])
def test_chunked_prefetches_are_overtaken_and_the_one_that_is_missing_is_raised(
    monkeypatch: pytest.MonkeyPatch, buffers: int, cancel: bool
) -> None:
    """Two layers, top-1. The first chunk of a copy takes 26,000 ns, each further one 16,000 ns.

    Layer 0 wants expert 2, and its ids are known at 18,113. The copy of key 15 has started at 0;
    its first chunk ends at 26,000. There the demand copy overtakes it and the two behind it, until
    100,000. Layer 1 wants expert 5, key 13, and its ids are known at 126,259. Key 15 is in the
    chunk that ends at 132,000. There key 13 goes next, though key 14 was queued before it. Key 15
    lands at 222,000. Then key 14 is copied, unless it was cancelled at 126,259.
    """
    name = enlist(monkeypatch, "prefetch", Guesses)
    hardware = {**FIGURES, "h2d": {**FIGURES["h2d"], "chunk": 786_432}}
    prefetch = {"policy": name, "buffers": buffers, "cancel": cancel}
    scenario = tiny_scenario(
        timeline={"steps": 1000}, hardware=hardware, prefetch=prefetch, cache={"slots": 8}
    )
    # A second row, so that the run lasts until all copies have landed.
    rows = np.array([[[2], [5]], [[2], [5]]])
    plan = plan_of(scenario, costed_trace(rows, prompt=1))
    outcome = run_on(plan)
    assert everything(outcome) == everything(run_on(plan, EventMachine))
    compute = GPU_CALL + EXPERT
    assert FRONT + IDS == 18_113
    assert 100_000 + compute + FRONT + IDS == 126_259
    assert spans(outcome, "h2d", "demand") == [(26_000, 100_000)]
    seventh, fifth = (0, 222_000), (132_000, 206_000)
    sixth = [] if cancel else [(222_000, 296_000)]
    assert spans(outcome, "h2d", "prefetch") == [seventh, fifth, *sixth]
    assert outcome.requests[0].token_ns[0] == 206_000 + compute + TAIL + TOKEN
    ledger = outcome.ledger
    assert (sum(ledger.late_hits), ledger.prefetch_late) == (1, 1)
    assert ledger.prefetch_cancelled == cancel
