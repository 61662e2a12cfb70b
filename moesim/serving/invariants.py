"""Invariants: rules that hold at the end of every run, with the numbers of docs/invariants.md.

The other rules of that document are checked during the run, where they could break.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.errors import InvariantError
from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.stalls import OTHER


def check_run(
    requests: Sequence[Request], ledger: Ledger, pool: BlockPool, in_flight_bytes: int
) -> None:
    """Raise `InvariantError` for the first rule that does not hold.

    `in_flight_bytes` are those of expert copies that were issued and had not landed at the end.
    """
    _check_requests(requests)
    held = sum(request.blocks for request in requests)
    if held + pool.free != pool.total or held:
        raise InvariantError(3, f"{held} KV blocks held and {pool.free} free of {pool.total}")
    # Counted from the log of unions, which is independent of the counters of hits and misses.
    accesses = int(ledger.accesses_by_layer()[1].sum())
    hits = sum(ledger.hits) + sum(ledger.late_hits)
    misses = sum(ledger.demand_copies) + sum(ledger.elsewhere)
    if hits + misses != accesses:
        raise InvariantError(6, f"{hits} hits + {misses} misses are not {accesses} accesses")
    landed = sum(ledger.demand_bytes) + sum(ledger.prefetch_bytes) - in_flight_bytes
    moved = ledger.moved_bytes["demand"] + ledger.moved_bytes["prefetch"]
    if landed != moved:
        raise InvariantError(7, f"copies of {landed} bytes landed, but {moved} bytes were counted")


def check_arrivals(requests: Sequence[Request], clients: int) -> None:
    """Check that requests arrive in their order, and that each of `clients` waits for its own.

    In a closed loop, each client has one request in the system or thinks. Raise `InvariantError`
    otherwise.
    """
    arrivals = [request.arrival_ns for request in requests]
    if arrivals != sorted(arrivals):
        raise InvariantError(16, f"requests arrive out of order: {arrivals}")
    # A rejected request has no time of its end. Without it the rule is weaker, but still true.
    served = [request for request in requests if request.status == "finished"]
    ready = sorted(
        request.token_ns[-1] + request.think_ns
        for request in served
        if request.think_ns is not None
    )
    for ready_ns, request in zip(ready, served[clients:], strict=False):
        if request.arrival_ns < ready_ns:
            raise InvariantError(
                16,
                f"request {request.index} arrives at {request.arrival_ns} ns, before a client is "
                f"ready at {ready_ns} ns",
            )


def check_lanes(ledger: Ledger, now_ns: int) -> None:
    """Check the rules of virtual time, in which work takes exactly as long as its price says.

    No lane is busy for longer than the time that passed, and the GPU idles only for a known cause.
    Raise `InvariantError` otherwise.
    """
    for lane, busy_ns in ledger.busy_ns.items():
        if busy_ns > now_ns:
            raise InvariantError(9, f"lane {lane} was busy for {busy_ns} ns of {now_ns} ns")
    idle_ns = sum(ledger.stall_ns[OTHER])
    if idle_ns:
        raise InvariantError(10, f"the GPU idled for {idle_ns} ns while work was ready")


def _check_requests(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.status not in ("finished", "rejected"):
            raise InvariantError(1, f"request {request.index} ends as {request.status}")
        if request.status == "rejected":
            continue
        moments = [request.arrival_ns, request.scheduled_ns, *request.token_ns]
        if moments != sorted(moments):
            raise InvariantError(8, f"request {request.index} has times out of order: {moments}")
        if len(request.token_ns) != request.output_tokens:
            raise InvariantError(
                1,
                f"request {request.index} has {len(request.token_ns)} tokens of "
                f"{request.output_tokens}",
            )
