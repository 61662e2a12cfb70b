"""Text from a real model whose experts do not all fit: a server on the real machine.

Only what the model's router reveals is known ahead (`live.py`). Policies change when a token
appears, but never which token it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.executor.device import Device, open_device
from moesim.executor.executor import Executor
from moesim.executor.live import LiveRouting, RevealedRouting
from moesim.executor.machine import RealMachine
from moesim.executor.places import ModelPlaces
from moesim.executor.settings import Serving
from moesim.executor.token_router import PackedRouter
from moesim.policies import parse_options
from moesim.policies.eviction import CacheContext, Resident
from moesim.policies.guard import find_policy, make_batching, make_eviction, make_prefetch
from moesim.policies.prefetch import PrefetchContext
from moesim.serving.experts.prefetch_buffers import PrefetchBuffers
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.experts.slots import ExpertSizes, Staging
from moesim.serving.invariants import check_run
from moesim.serving.knowledge import KNOWLEDGE, Knowledge
from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.run_log import Issued, Observer, RunLog
from moesim.serving.scheduler import Scheduler
from moesim.serving.server import Server
from moesim.streams import stream

__all__ = ["Generation", "Serving", "generate"]


@dataclass(frozen=True, slots=True)
class Generation:
    """The generated texts in order of the prompts, and the run that made them."""

    tokens: list[list[int]]
    logits: list[Tensor]
    """Each text's logits before the choice: `[tokens, vocabulary]` on the host."""
    server: Server
    works: list[Issued]
    """All work of the run, in the order of issue."""
    now_ns: int


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    serving: Serving | None = None,
    *,
    device: str | Device = "cpu",
    patience_s: float = 60.0,
) -> Generation:
    """Generate greedy texts of `max_new_tokens` tokens for each prompt (token ids, none empty).

    `model` is a Hugging Face decoder with routed experts; it is restored afterwards. The length is
    fixed: an end token does not end a text.

    Raise `UsageError` for a model, prompts or policies that cannot be served, `DeviceError` if the
    device fails, `InvariantError` if nothing happens for `patience_s`.
    """
    serving = serving or Serving()
    if max_new_tokens < 1 or not all(prompts):
        raise UsageError("every prompt needs at least one token, and one token to generate")
    prefetch = find_policy("prefetch", serving.prefetch)
    options = parse_options(prefetch, serving.prefetch_options or {})
    knowledge = KNOWLEDGE["layerwise" if PackedRouter.of(model) is None else "decoupled"]
    _check_knowledge(model, serving, options, knowledge)
    places = ModelPlaces.of(model, serving)
    opened = open_device(device) if isinstance(device, str) else device
    try:
        executor = Executor(
            model,
            buffers=sum(places.slots) + serving.staging + serving.prefetch_buffers,
            device=opened.torch_device,
            pinned=opened.pins and places.host is None,
            # The layers of a decoupled model have no gates to predict with.
            prediction_depth=0 if knowledge.queued else prefetch.prediction_depth(options),
        )
        machine = RealMachine(executor, opened, topology=places.topology, patience_s=patience_s)
        log = RunLog(Issued)
        try:
            requests = _requests(prompts, max_new_tokens)
            routing = (
                RevealedRouting(executor, prompts, requests)
                if knowledge.queued
                else LiveRouting(executor, prompts)
            )
            server = _server(machine, requests, routing, serving, places, options, [log])
            machine.serve(server)
            routing.collect()
        finally:
            executor.close()
    finally:
        if opened is not device:  # a device that the caller opened stays open
            opened.close()
    flying = server.ledger.finish(machine.now_ns)
    check_run(requests, server.ledger, server.scheduler.pool, flying)
    texts = zip(routing.texts, prompts, strict=True)
    return Generation(
        [text[len(prompt) :] for text, prompt in texts],
        [torch.stack(rows) for rows in routing.logits],
        server,
        log.of(Issued),
        machine.now_ns,
    )


def _check_knowledge(
    model: nn.Module, serving: Serving, prefetch_options: Any, knowledge: Knowledge
) -> None:
    """Raise `UsageError` for a policy that needs more than the model's router reveals."""
    kind = f"the routers of {type(model).__name__} reveal theirs layer by layer"
    batching = find_policy("batching", serving.batching)
    if batching.needs_routing and not knowledge.queued:
        raise UsageError(f"{serving.batching} needs the experts of queued tokens; {kind} only")
    if batching.needs_static and not knowledge.future_tokens:
        raise UsageError(
            f"{serving.batching} needs the experts of all tokens of a request; only a static "
            f"router reveals them, and {type(model).__name__} has none"
        )
    if find_policy("prefetch", serving.prefetch).needs_routing and not knowledge.reach:
        depth = getattr(prefetch_options, "depth", 1)
        raise UsageError(f"{serving.prefetch} has depth {depth}; {kind} only")


def _requests(prompts: Sequence[Sequence[int]], new: int) -> list[Request]:
    """Return requests that all arrive at once; no two share rows, because there is no trace."""
    ends = np.cumsum([0, *(len(prompt) + new - 1 for prompt in prompts)]).tolist()
    return [
        Request(
            index,
            arrival_ns=0,
            prompt_tokens=len(prompt),
            output_tokens=new,
            rows=np.arange(*rows),
        )
        for index, (prompt, rows) in enumerate(zip(prompts, pairwise(ends), strict=True))
    ]


def _server(
    machine: RealMachine,
    requests: Sequence[Request],
    routing: LiveRouting,
    serving: Serving,
    places: ModelPlaces,
    prefetch_options: Any,
    observers: Sequence[Observer],
) -> Server:
    plan = routing.layer_plan
    ledger = Ledger(plan, routing.num_experts, places.topology)
    tokens = [request.max_kv_tokens for request in requests]
    room = sum(tokens) if serving.kv_tokens is None else serving.kv_tokens
    if max(tokens) > room:
        raise UsageError(
            f"the longest request needs room for the keys and values of {max(tokens)} tokens; "
            f"there is room for {room}"
        )
    batching = find_policy("batching", serving.batching)
    return Server(
        machine,
        requests,
        scheduler=Scheduler(
            make_batching(batching, parse_options(batching, serving.batching_options or {})),
            # The KV store has no blocks, so a block is one token.
            BlockPool(room, 1),
            token_budget=serving.token_budget,
            max_sequences=serving.max_sequences,
            experts=routing.experts if routing.knowledge.queued else None,
            wants=routing.wants if routing.knowledge.future_tokens else None,
            observers=observers,
        ),
        caches=_caches(machine, ledger, routing, serving, places),
        prefetch=make_prefetch(
            find_policy("prefetch", serving.prefetch),
            prefetch_options,
            PrefetchContext(
                routing.num_layers,
                routing.num_experts,
                routing.top_k,
                stream(serving.seed, "prefetch"),
            ),
        ),
        routing=routing,
        layers=plan,
        ledger=ledger,
        execution=places.execution(),
        knowledge=routing.knowledge,
        observers=observers,
    )


def _caches(
    machine: RealMachine,
    ledger: Ledger,
    routing: LiveRouting,
    serving: Serving,
    places: ModelPlaces,
) -> list[ExpertCache]:
    """Return the cache of each layer; all layers share it if the scope is global."""
    policy = find_policy("eviction", serving.eviction)
    every = routing.num_layers * routing.num_experts
    staging, sizes = Staging(serving.staging), ExpertSizes(routing.expert_bytes)
    ahead = serving.prefetch_buffers
    buffers = PrefetchBuffers(staging.slots(ahead)) if ahead else None
    caches = []
    for number, capacity in enumerate(places.slots):
        first = number * routing.num_experts
        own = range(first, first + routing.num_experts)
        context = CacheContext(
            capacity=capacity,
            universe=own if serving.scope == "per_layer" else range(every),
            admission=serving.admission,
            rng=stream(serving.seed, "eviction", number),
            popularity=None if serving.profile is None else lambda _: serving.profile or {},
            experts_per_layer=routing.num_experts,
            top_k=routing.top_k,
        )
        if places.residents is None:
            eviction = make_eviction(policy, context, parse_options(policy, {}))
        else:
            universe = set(context.universe)
            eviction = Resident(context, [key for key in places.residents if key in universe])
        cache = ExpertCache(
            eviction,
            machine,
            ledger,
            staging,
            sizes,
            place=places.place,
            host=places.host,
            buffers=buffers,
        )
        caches.append(cache)
    return caches if serving.scope == "per_layer" else caches * routing.num_layers
