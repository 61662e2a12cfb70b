"""Which back end serves a scenario: the reference, or the compiled one where it knows all of it.

The results are the same to the byte. The compiled back end needs the extra `fast` (numba).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from moesim.errors import MissingExtra, ScenarioError
from moesim.hardware.ops import BatchShape
from moesim.hardware.topology import H2D
from moesim.policies.blame import is_foreign
from moesim.policies.guard import unguarded
from moesim.serving.knowledge import KNOWLEDGE

if TYPE_CHECKING:
    from moesim.serving.server import Server
    from moesim.serving.unions import UnionMemo
    from moesim.simulate.build import Plan

__all__ = ["AUTO_EVENTS", "choose_back_end", "why_not_compiled"]

AUTO_EVENTS: Final = 500_000
"""Layer events from which `auto` takes the compiled back end: loading it takes about a second."""
_LONGEST_NS: Final = 1 << 42
"""Sums of a step stay within 64 bits up to this time of one work: 73 minutes."""
_KNOWN: Final = (
    "lru", "fifo", "lfu", "lfu_in_cache", "lfu_decay", "lfru", "least_stale", "min", "static",
    "resident", "infinite",
)  # fmt: skip


def choose_back_end(
    plan: Plan, server: Server, *, free_link: bool, main: bool, memo: UnionMemo | None = None
) -> None:
    """Give a server the compiled back end, if the scenario asks for it or it repays.

    `memo` keeps unions for other runs of the same rows. `main`: the run is the scenario's own. A
    bound has other policies, so it may need the reference.

    Raises:
        ScenarioError: `simulation` is compiled, and the scenario needs the reference, or numba
            cannot be imported.
        MissingExtra: the same, and numba is not installed.
    """
    wanted = plan.scenario.simulation
    short = wanted == "auto" and _events(server) < AUTO_EVENTS
    if wanted == "reference" or short:  # most runs are short, so no reason is sought for them
        return
    reason = why_not_compiled(plan, server)
    if wanted == "compiled" and main and reason:
        raise _refusal(plan, reason)
    if reason:
        return
    if find_spec("numba") is None:
        if wanted == "compiled":
            raise MissingExtra("fast", "the compiled back end")
        return
    if why := _fails_to_import():
        if wanted == "compiled":
            raise _refusal(plan, why)
        return
    from moesim.serving.compiled.stretch import Stretches

    scenario = plan.scenario
    server.compiled = Stretches(
        plan.trace,
        server.caches,
        server.cache_numbers,
        plan.prices(free_link=free_link),
        plan.cost,
        server.ledger,
        staging=scenario.memory.staging,
        block_tokens=server.scheduler.pool.block_tokens,
        memo=memo,
    )


def _refusal(plan: Plan, reason: str) -> ScenarioError:
    text = f"cannot be compiled: {reason}; write auto"
    return ScenarioError.at(plan.scenario, "simulation", text)


def _fails_to_import() -> str:
    """Return why numba, which is installed, cannot be imported; "" if it can."""
    try:
        import numba  # noqa: F401
    except (ImportError, OSError) as error:  # numba refuses a numpy that is newer than itself
        return f"numba cannot be imported: {error}"
    return ""


def why_not_compiled(plan: Plan, server: Server) -> str:
    """Return what of a scenario the compiled back end does not know, or "".

    Special reasons come first, because several of them make layer events overlap, too.
    """
    cache = server.caches[-1]
    reasons = {
        "experts run on the CPU": bool(server.moves_states),
        "host memory does not hold all experts": cache.host is not None,
        "requests share KV blocks": plan.scenario.memory.prefix_cache,
        "experts differ in size": plan.sizes is not None,
        "experts differ in how fast they are copied": plan.places.host.mixed,
        "processors share bandwidth": bool(plan.places.topology.resources),
        "a pre-gated router's ids return in the first layer alone": (
            not KNOWLEDGE[plan.trace.meta.router].uniform
        ),
        "layer events overlap (prefetch, write-back, sequential replay, or work that takes host "
        "time)": not server.times_steps,
        "the engine's calls are no sums over experts": not plan.cost.sums_experts,
        "the policy is not compiled": _unknown(server),
        "an observer reads steps": server.observed,
        "one work takes over an hour": _slowest_ns(plan, server) > _LONGEST_NS,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _slowest_ns(plan: Plan, server: Server) -> int:
    """Return the longest of a copy, a readback, and the computation of an expert or a layer.

    More rows than any step can have want the expert, as in the table of a stretch.
    """
    cost, nbytes, batching = plan.cost, plan.cost.expert_bytes, plan.scenario.batching
    tokens = [request.max_kv_tokens for request in server.requests]
    longest, sequences = max(tokens), min(batching.max_sequences, len(tokens))
    exceeding = 0 if batching.chunked_prefill else longest  # one whole prompt may exceed the budget
    rows = min(sum(tokens), batching.token_budget + exceeding)
    batch = BatchShape(rows, sequences * longest, rows * longest, rows, sequences)
    copies = cost.copy_ns(H2D, nbytes), cost.readback_ns(nbytes)
    computed = cost.expert_ns(2 * rows), *cost.layers_ns(batch), cost.tail_ns(batch)
    return max(*copies, cost.call_ns, *computed)


def _unknown(server: Server) -> bool:
    """Return whether a cache has a policy without compiled functions."""
    policies = [unguarded(cache.policy) for cache in server.caches]
    if any(policy.looks_ahead or policy.sees_requests for policy in policies):
        return True
    # A class of another package may have the name of one of moesim's own bounds.
    return not all(
        vars(type(policy)).get("kernel") is not None
        or (policy.name in _KNOWN and not is_foreign(type(policy)))
        for policy in policies
    )


def _events(server: Server) -> int:
    """Return how many layer events a run has at most, if no prompt is cut."""
    return sum(request.output_tokens for request in server.requests) * len(server.caches)
