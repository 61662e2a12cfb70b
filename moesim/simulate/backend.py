"""Which back end serves a scenario: the reference, or the compiled one where it knows all of it.

The results are the same to the byte. The compiled back end needs the extra `fast` (numba).
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from moesim.cost.choice import cpu_cost_of
from moesim.errors import MissingExtra, ScenarioError
from moesim.hardware.ops import BatchShape
from moesim.hardware.topology import CPU, D2H, H2D
from moesim.policies.blame import is_foreign
from moesim.policies.eviction.resident import Resident
from moesim.policies.guard import unguarded
from moesim.policies.placement.cost import Cost
from moesim.policies.placement.cpu_experts import CPUExperts
from moesim.policies.placement.cpu_layers import CPULayers
from moesim.policies.prefetch.layer_ahead import LayerAhead
from moesim.policies.prefetch.none import NoPrefetch
from moesim.policies.prefetch.oracle import Oracle
from moesim.policies.prefetch.predicted import Predicted
from moesim.serving.experts.placing import Placing
from moesim.serving.knowledge import EVERYTHING

if TYPE_CHECKING:
    from moesim.policies.eviction.base import Eviction
    from moesim.serving.experts.residency import ExpertCache
    from moesim.serving.server import Server
    from moesim.serving.unions import UnionMemo
    from moesim.simulate.build import Plan

__all__ = ["AUTO_EVENTS", "choose_back_end", "why_not_compiled"]

AUTO_EVENTS: Final = 500_000
"""Layer events from which `auto` takes the compiled back end: loading it takes about a second."""
_LONGEST_NS: Final = 1 << 42
"""Sums of a step stay within 64 bits up to this time of one work: 73 minutes."""
_MOST_BYTES: Final = 9 * 10**9
_KNOWN: Final = (
    "lru", "fifo", "lfu", "lfu_in_cache", "lfu_decay", "lfru", "least_stale", "min", "static",
    "resident", "infinite",
)  # fmt: skip
_KNOWN_AHEAD: Final = (NoPrefetch, Predicted, Oracle, LayerAhead)


def choose_back_end(
    plan: Plan, server: Server, *, free_link: bool, main: bool, memo: UnionMemo | None = None
) -> None:
    """Give a server the compiled back end, if the scenario asks for it or it repays.

    `memo` keeps unions for other runs of the same rows. `main`: the run is the scenario's own; with
    a memo, its steps are kept for its bounds. A bound has other policies, so it may need the
    reference.

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
    from moesim.serving.compiled.overlaps import Issue, Overlaps
    from moesim.serving.compiled.stretch import Stretches

    kind: Any = Stretches
    if server.moves_states or not server.times_steps:
        issue = Issue(
            server.prefetch,
            server.knowledge,
            server.execution,
            server.caches[-1].place,
            plan.trace.predictions,
        )
        kind = partial(Overlaps, issue=issue)
    server.compiled = kind(
        plan.trace,
        server.caches,
        server.cache_numbers,
        plan.prices(free_link=free_link),
        plan.cost,
        server.ledger,
        staging=plan.scenario.memory.staging,
        block_tokens=server.scheduler.pool.block_tokens,
        memo=memo,
        keep=main and memo is not None,
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
        "whole layers run on the CPU": bool(server.execution.lanes),
        "the placement policy is not compiled": not _knows_placement(server),
        "host memory does not hold all experts": cache.host is not None,
        "requests share KV blocks": plan.scenario.memory.prefix_cache,
        "experts differ in size": plan.sizes is not None,
        "experts differ in how fast they are copied": plan.places.host.mixed,
        "GPU and CPU share one memory": (
            bool(plan.places.topology.resources) and plan.cost.hardware.unified
        ),
        "experts are written back to the host": cache.write_back,
        "experts are copied ahead to buffers of their own": cache.buffers is not None,
        "copies ahead are cancelled": server.prefetch.active and plan.scenario.prefetch.cancel,
        "each expert is an event of its own (sequential replay)": server.sequential,
        "the engine sorts tokens on the GPU": server.execution.sorts_on_device,
        "the prefetch policy is not compiled": not _knows_prefetch(plan, server),
        "the engine's calls are no sums over experts": (
            not plan.cost.sums_experts or (server.moves_states and plan.engine.cpu is not None)
        ),
        "the policy is not compiled": _unknown(server),
        "the policy's kernel has no function `insert`": _cannot_insert(server),
        "an observer reads steps": server.observed,
        "a layer's experts exceed 9 GB": _shares_much(plan),
        "one work takes over an hour": _slowest_ns(plan, server) > _LONGEST_NS,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _knows_placement(server: Server) -> bool:
    """Return whether the compiled back end knows where a placement policy runs experts."""
    return all(map(_knows_place, server.caches))


def _knows_place(cache: ExpertCache) -> bool:
    """Return whether it knows that of one cache.

    `cpu_layers` and `cpu_experts` also run experts on the CPU whose copies are under way. There are
    some only where their set of experts on the GPU is not fixed: in the bound of an infinite cache.
    """
    place = cache.place
    if place is None:
        return True
    kind = type(place.policy) if isinstance(place, Placing) else None
    fixed = type(cache.policy) is Resident
    return kind is Cost or (fixed and kind in (CPULayers, CPUExperts))


def _shares_much(plan: Plan) -> bool:
    """Return whether bytes of shared memory times 10^9 may exceed 64 bits in one layer event."""
    nbytes = plan.cost.expert_bytes * plan.trace.num_experts
    return bool(plan.places.topology.resources) and nbytes > _MOST_BYTES


def _knows_prefetch(plan: Plan, server: Server) -> bool:
    """Return whether the compiled back end knows what the prefetch policy wants."""
    policy, reach, depth = server.prefetch, server.knowledge.reach, 0
    kind = type(policy)
    if kind in (Oracle, LayerAhead):
        depth = policy.options.depth
        reach = EVERYTHING if kind is Oracle else reach
    # Further ahead than a step has layers, a layer of the next step is one of this step again.
    return kind in _KNOWN_AHEAD and depth <= min(reach, plan.trace.num_layers)


def _slowest_ns(plan: Plan, server: Server) -> int:
    """Return the longest of a copy, a readback, a computation, and the host's time for one of them.

    More rows than any step can have want the expert, as in the table of a stretch.
    """
    cost, nbytes, batching = plan.cost, plan.cost.expert_bytes, plan.scenario.batching
    tokens = [request.max_kv_tokens for request in server.requests]
    longest, sequences = max(tokens), min(batching.max_sequences, len(tokens))
    exceeding = 0 if batching.chunked_prefill else longest  # one whole prompt may exceed the budget
    rows = min(sum(tokens), batching.token_budget + exceeding)
    batch = BatchShape(rows, sequences * longest, rows * longest, rows, sequences)
    state_bytes, host = server.execution.state_bytes, server.execution.host
    copies = cost.copy_ns(H2D, nbytes), cost.readback_ns(nbytes)
    moved = [cost.states_ns(lane, rows * state_bytes) for lane in (H2D, D2H)]
    issued = host.launch_ns, host.copy_ns, host.event_ns
    computed = cost.expert_ns(2 * rows), *cost.layers_ns(batch), cost.tail_ns(batch)
    sharing = _slowest_sharing_ns(plan, 2 * rows)
    return max(*copies, *moved, *issued, cost.call_ns, *computed, sharing)


def _slowest_sharing_ns(plan: Plan, rows: int) -> int:
    """Return how long all experts of a layer take on the CPU at most, or their bytes at half of the
    shared bandwidth; 0 where nothing runs on the CPU.
    """
    resources, experts = plan.places.topology.resources, plan.trace.num_experts
    if CPU not in plan.places.topology.names:
        return 0
    nbytes = experts * plan.cost.expert_bytes
    on_cpu = cpu_cost_of(plan.cost).experts((rows,) * experts).duration_ns
    shared_ns: int = 2 * nbytes * 10**9 // min(resources.values())
    return max(on_cpu, shared_ns)


def _unknown(server: Server) -> bool:
    """Return whether a cache has a policy without compiled functions."""
    policies = [unguarded(cache.policy) for cache in server.caches]
    if any(policy.looks_ahead or policy.sees_requests for policy in policies):
        return True
    return not all(map(_has_functions, policies))


def _has_functions(policy: Eviction) -> bool:
    """Return whether a policy has compiled functions, or needs none."""
    # A class of another package may have the name of one of moesim's own bounds.
    own = policy.name in _KNOWN and not is_foreign(type(policy))
    return own or vars(type(policy)).get("kernel") is not None


def _cannot_insert(server: Server) -> bool:
    """Return whether experts are copied ahead, and a policy's own functions do not know of it."""
    kernels = [vars(type(unguarded(cache.policy))).get("kernel") for cache in server.caches]
    return server.prefetch.active and any(
        kernel is not None and getattr(kernel, "insert", None) is None for kernel in kernels
    )


def _events(server: Server) -> int:
    """Return how many layer events a run has at most, if no prompt is cut."""
    return sum(request.output_tokens for request in server.requests) * len(server.caches)
