"""Text from a real model whose experts do not all fit: a server on the real machine, routed live.

Nothing is known beforehand here. The ids of each layer come from the model itself, once they are
on the host, and so do the tokens that the next step begins with. What policies decide changes when
a token appears, and never which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moesim.errors import InvariantError, UsageError
from moesim.machine.journal import Journal
from moesim.machine.real.device import Device, open_device
from moesim.machine.real.executor import Batch, Executor
from moesim.machine.real.machine import RealMachine
from moesim.machine.real.run import spans_of
from moesim.policies import Key, find, parse_options
from moesim.policies.eviction.base import CacheContext
from moesim.record.routers import MoeLayer, find_moe_layers
from moesim.serving.budget import split_slots
from moesim.serving.invariants import check_run
from moesim.serving.kv import BlockPool
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache, ExpertSizes, Staging
from moesim.serving.routing import StepRouting, count_keys
from moesim.serving.scheduler import Scheduler
from moesim.serving.server import Server
from moesim.serving.step import Step
from moesim.streams import stream

__all__ = ["Generation", "Serving", "generate"]


@dataclass(frozen=True, slots=True)
class Serving:
    """How to serve: the scenario's sections `cache`, `prefetch`, `batching`, `memory` in small.

    `slots` counts expert slots, of all layers together; `kv_tokens` is the room for keys and values
    of all sequences together (None: enough for all); `profile` counts past uses of expert keys, for
    the policy `static`.
    """

    eviction: str = "lru"
    slots: int = 0
    scope: Literal["per_layer", "global"] = "per_layer"
    admission: Literal["bypass", "always"] = "bypass"
    staging: int = 1
    prefetch: str = "none"
    prefetch_options: Mapping[str, Any] | None = None
    batching: str = "decode_first"
    token_budget: int = 256
    max_sequences: int = 16
    kv_tokens: int | None = None
    profile: Mapping[Key, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = {"slots": 0, "staging": 1, "token_budget": 1, "max_sequences": 1, "kv_tokens": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} ({value}) must be at least {least}")
        for family, policy in (("eviction", self.eviction), ("prefetch", self.prefetch)):
            if find(family, policy).clairvoyant:
                raise UsageError(
                    f"{family} policy {policy!r} sees the future, which a model that generates "
                    "does not know; it runs on a trace only"
                )


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated, in order of the prompts, and how."""

    tokens: list[list[int]]
    logits: list[Tensor]
    """Of each token, before the choice: `[tokens, vocabulary]` on the host."""
    server: Server
    journal: Journal
    now_ns: int


class LiveStep:
    """The routing of a step as it becomes known; layers that nobody could know yet have none."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.num_experts = executor.num_experts
        self.unions = _AsKnown(executor.num_layers, lambda layer: list(self._counts(layer)))
        self.tokens = _AsKnown(
            executor.num_layers, lambda layer: tuple(self._counts(layer).values())
        )

    def _counts(self, layer: int) -> dict[Key, int]:
        return _count(self._executor.ids(layer), layer * self._executor.num_experts)

    def predicted(self, layer: int, depth: int) -> Sequence[Key]:
        executor = self._executor
        if layer + depth >= executor.num_layers:
            return ()
        guessed = executor.predicted(layer, depth)
        return list(_count(guessed, (layer + depth) * executor.num_experts))

    def gate_weights(self, layer: int) -> Sequence[float]:
        return ()  # they stay on the device


class LiveRouting:
    """Where ids come from when a model generates: from the model. It also keeps the texts, since
    the tokens of a step are those that the step before it chose."""

    def __init__(self, executor: Executor, prompts: Sequence[Sequence[int]]) -> None:
        self.num_layers = executor.num_layers
        self.num_experts = executor.num_experts
        self.top_k = executor.top_k
        self.expert_bytes = executor.expert_bytes
        self.layer_plan = LayerPlan.of(executor.model_layers, executor.num_model_layers)
        self.texts = [list(prompt) for prompt in prompts]
        self.logits: list[list[Tensor]] = [[] for _ in prompts]
        self._executor = executor
        self._last: Step | None = None

    def step(self, step: Step) -> StepRouting:
        self.collect()
        self._last = step
        tokens = [
            token
            for request, position, count, _ in step.parts
            for token in self.texts[request.index][position : position + count]
        ]
        self._executor.begin(Batch(spans_of(step), tokens))
        return LiveStep(self._executor)

    def collect(self) -> None:
        """Take what the step that is over has chosen."""
        if self._last is None:
            return
        emitting = [request.index for request, *_, emits in self._last.parts if emits]
        logits = self._executor.logits.to("cpu", copy=True)
        for row, (index, token) in enumerate(zip(emitting, self._executor.sampled(), strict=True)):
            self.texts[index].append(token)
            self.logits[index].append(logits[row])
        for request in self._last.finished:
            self._executor.release(request.index)
        self._last = None

    def unions(self, rows: object) -> NoReturn:
        raise InvariantError(12, "a model that generates reveals nothing of tokens to come")

    def first_uses(self, rows: object) -> NoReturn:
        raise InvariantError(12, "a model that generates reveals nothing of tokens to come")

    def experts(self, request: Request, tokens: int) -> NoReturn:
        raise InvariantError(12, "a model that generates reveals nothing of tokens to come")


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    serving: Serving | None = None,
    *,
    device: str | Device = "cpu",
    patience_s: float = 60.0,
) -> Generation:
    """Greedy texts of `max_new_tokens` tokens for each prompt (token ids, none empty).

    `model` is a Hugging Face decoder with routed experts, and is as before afterwards. The length
    is fixed: an end token is a token like any other.

    Raises `UsageError` for a model, prompts or policies that cannot be served, `DeviceError` if the
    device fails, `InvariantError` if nothing happens for `patience_s`.
    """
    serving = serving or Serving()
    if max_new_tokens < 1 or not all(prompts):
        raise UsageError("every prompt needs a token at least, and one to generate")
    options = parse_options(find("prefetch", serving.prefetch), serving.prefetch_options or {})
    capacities = _capacities(serving, find_moe_layers(model))
    opened = open_device(device) if isinstance(device, str) else device
    try:
        executor = Executor(
            model,
            buffers=sum(capacities) + serving.staging,
            device=opened.torch_device,
            pinned=opened.pins,
            prediction_depth=getattr(options, "depth", 0),
        )
        routing = LiveRouting(executor, prompts)
        machine = RealMachine(executor, opened, patience_s=patience_s)
        journal = Journal(machine)
        try:
            requests = _requests(prompts, max_new_tokens)
            server = _server(journal, requests, routing, serving, capacities, options)
            machine.serve(server)
            routing.collect()
        finally:
            executor.close()
    finally:
        if opened is not device:
            opened.close()
    flying = server.ledger.finish(machine.now_ns)
    check_run(requests, server.ledger, server.scheduler.pool, executor.expert_bytes, flying)
    texts = zip(routing.texts, prompts, strict=True)
    return Generation(
        [text[len(prompt) :] for text, prompt in texts],
        [torch.stack(rows) for rows in routing.logits],
        server,
        journal,
        machine.now_ns,
    )


def _capacities(serving: Serving, layers: Sequence[MoeLayer]) -> list[int]:
    """Slots of each cache."""
    experts = layers[0].num_experts
    if serving.scope == "per_layer":
        return split_slots(serving.slots, len(layers), experts)
    return [min(serving.slots, len(layers) * experts)]


def _requests(prompts: Sequence[Sequence[int]], new: int) -> list[Request]:
    """All at once; their rows are in no trace."""
    return [
        Request(
            index,
            arrival_ns=0,
            prompt_tokens=len(prompt),
            output_tokens=new,
            rows=np.arange(len(prompt) + new - 1),
        )
        for index, prompt in enumerate(prompts)
    ]


def _server(
    machine: Journal,
    requests: Sequence[Request],
    routing: LiveRouting,
    serving: Serving,
    capacities: Sequence[int],
    prefetch_options: Any,
) -> Server:
    plan = routing.layer_plan
    ledger = Ledger(plan, routing.num_experts)
    tokens = [request.max_kv_tokens for request in requests]
    room = sum(tokens) if serving.kv_tokens is None else serving.kv_tokens
    if max(tokens) > room:
        raise UsageError(
            f"the longest request needs room for the keys and values of {max(tokens)} tokens; "
            f"there is room for {room}"
        )
    batching = find("batching", serving.batching)
    return Server(
        machine,
        requests,
        scheduler=Scheduler(
            batching(parse_options(batching, {})),
            BlockPool(room, 1),
            token_budget=serving.token_budget,
            max_sequences=serving.max_sequences,
        ),
        caches=_caches(machine, ledger, routing, serving, capacities),
        prefetch=find("prefetch", serving.prefetch)(prefetch_options),
        routing=routing,
        layers=plan,
        ledger=ledger,
    )


def _caches(
    machine: Journal,
    ledger: Ledger,
    routing: LiveRouting,
    serving: Serving,
    capacities: Sequence[int],
) -> list[ExpertCache]:
    """The cache of each layer; the same one for all if there is but one."""
    policy = find("eviction", serving.eviction)
    every = routing.num_layers * routing.num_experts
    staging, sizes = Staging(serving.staging), ExpertSizes(routing.expert_bytes)
    caches = []
    for number, capacity in enumerate(capacities):
        first = number * routing.num_experts
        own = range(first, first + routing.num_experts)
        context = CacheContext(
            capacity=capacity,
            universe=own if serving.scope == "per_layer" else range(every),
            admission=serving.admission,
            rng=stream(serving.seed, "eviction", number),
            popularity=None if serving.profile is None else lambda _: serving.profile or {},
        )
        made = policy(context, parse_options(policy, {}))
        caches.append(ExpertCache(made, machine, ledger, staging, sizes))
    return caches if serving.scope == "per_layer" else caches * routing.num_layers


class _AsKnown(Sequence[Any]):
    """One thing a layer, worked out when it is asked for."""

    def __init__(self, num_layers: int, make: Callable[[int], Any]) -> None:
        self._made: list[Any] = [None] * num_layers
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, layer: Any) -> Any:
        if self._made[layer] is None:
            self._made[layer] = self._make(layer)
        return self._made[layer]


def _count(ids: npt.NDArray[np.int64], base: int) -> dict[Key, int]:
    """Rows that want each key of a layer whose first key is `base`."""
    return count_keys(np.where(ids < 0, -1, ids + base).reshape(-1).tolist())
