"""The server: the serving logic, written once, for every machine.

A generator that only says *copy this*, *compute that*, *wait for those*. Each step: the
scheduler forms a batch; layer by layer, attention and router run, the ids come back to the
host, and the layer event is decided and issued; at the end the sampled tokens come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moesim.errors import InvariantError
from moesim.hardware.ops import BatchShape, Dense, Front, Tail
from moesim.machine.base import D2H, DEMAND, GPU, READBACK, Machine, Wait
from moesim.policies.batching.base import Plan
from moesim.policies.prefetch.base import Prefetch
from moesim.policies.view import View
from moesim.serving.ledger import DENSE, FRONT, TAIL, Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache
from moesim.serving.routing import RoutingSource, StepRouting, StepView
from moesim.serving.scheduler import Scheduler

_ID_BYTES = 4  # an expert id or a sampled token on its way to the host


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The model as the server walks it: `dense_before[l]` are the model layers without routed
    experts before trace layer l (the last entry: after all), `model_layers[l]` is its own."""

    model_layers: tuple[int, ...]
    dense_before: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model_layers: Sequence[int], num_layers: int) -> LayerPlan:
        bounds = [-1, *model_layers, num_layers]
        gaps = [tuple(range(low + 1, high)) for low, high in pairwise(bounds)]
        return cls(tuple(model_layers), tuple(gaps))


class Server:
    """Serves `requests` (in order of arrival) on a machine, with given caches and policies.

    `caches[l]` is the cache of trace layer l (the same object for all layers if global);
    `reach` is how many layers ahead the router reveals its choices within a step.
    """

    def __init__(
        self,
        machine: Machine,
        requests: Sequence[Request],
        *,
        scheduler: Scheduler,
        caches: Sequence[ExpertCache],
        prefetch: Prefetch,
        routing: RoutingSource,
        layers: LayerPlan,
        ledger: Ledger,
        reach: int = 0,
        sequential: bool = False,
    ) -> None:
        self.machine = machine
        self.requests = requests
        self.scheduler = scheduler
        self.caches = caches
        self.ledger = ledger
        self._prefetch = prefetch
        self._routing = routing
        self._layers = layers
        self._num_layers = routing.num_layers
        self._reach = self._num_layers if prefetch.clairvoyant else reach
        self._sequential = sequential
        self._next_arrival = 0
        self._expert_bytes = caches[0].expert_bytes
        self._rows = sum(request.max_kv_tokens for request in requests)
        self._distinct_caches = list({id(cache): cache for cache in caches}.values())

    def run(self) -> Wait:
        """Serve everything; `yield from` it, or hand it to a machine's runner."""
        machine, scheduler = self.machine, self.scheduler
        while True:
            self._receive()
            plan = scheduler.next_step()
            if plan:
                yield from self._step(plan)
            elif self._next_arrival < len(self.requests):
                arrival = self.requests[self._next_arrival].arrival_ns
                yield from machine.wait_any((), until_ns=arrival)
            else:
                break
        for cache in self._distinct_caches:
            cache.audit()
        machine.close()

    def _receive(self) -> None:
        """Take in every request that has arrived by now."""
        now = self.machine.now_ns
        while self._next_arrival < len(self.requests):
            request = self.requests[self._next_arrival]
            if request.arrival_ns > now:
                return
            self._next_arrival += 1
            if request.finished:  # its one token came with the skipped prefill
                request.scheduled_ns = now
                request.token_ns.append(now)
                request.status = "finished"
            else:
                self.scheduler.arrive(request)

    def _step(self, plan: Plan) -> Wait:
        machine, ledger, layers = self.machine, self.ledger, self._layers
        started_ns = machine.now_ns
        batch, prefill = self._form(plan, started_ns)
        rows = np.concatenate([request.next_rows(tokens) for request, tokens in plan])
        routing = StepRouting(self._routing, rows)
        ledger.begin_step(started_ns, routing.unions, routing.tokens)
        compute, copy, wait_any = machine.compute, machine.copy, machine.wait_any
        work, copies = ledger.work, ledger.copies
        id_bytes = _ID_BYTES * len(rows) * self._routing.top_k
        prefetching = self._prefetch.active
        view = StepView(routing, self._reach, self._prefetch.name)
        if prefetching:
            self._issue_prefetches(view)

        for layer, cache in enumerate(self.caches):
            issued_ns = ledger.issued_ns
            for dense in layers.dense_before[layer]:
                ticket = compute(GPU, Dense(dense, batch))
                work.append((ticket, issued_ns, DENSE, layer, None))
            front = compute(GPU, Front(layers.model_layers[layer], batch))
            work.append((front, issued_ns, FRONT, layer, None))
            known = copy(D2H, READBACK, id_bytes, DEMAND, (front,))
            copies.append((known, "readback", layer, READBACK, id_bytes, ()))
            yield from wait_any((known,))
            ledger.issued_ns = machine.now_ns
            view.move_to(layer)
            if self._sequential:
                for key, count in zip(view.union, view.tokens, strict=True):
                    cache.event(layer, View(layer, (key,), (count,)))
            else:
                cache.event(layer, view)
            if prefetching:
                self._issue_prefetches(view)

        last = self._num_layers
        for dense in layers.dense_before[last]:
            ticket = compute(GPU, Dense(dense, batch))
            work.append((ticket, ledger.issued_ns, DENSE, last, None))
        tail = compute(GPU, Tail(batch))
        work.append((tail, ledger.issued_ns, TAIL, last, None))
        sampled_bytes = _ID_BYTES * max(1, batch.sampled)
        known = copy(D2H, READBACK, sampled_bytes, DEMAND, (tail,))
        copies.append((known, "readback", last, READBACK, sampled_bytes, ()))
        yield from wait_any((known,))
        self._finish(plan, prefill)

    def _form(self, plan: Plan, now_ns: int) -> tuple[BatchShape, int]:
        """Advance the planned requests; answer the batch's shape and its prefill tokens."""
        total = entries = pairs = sampled = prefill = 0
        for request, tokens in plan:
            if request.scheduled_ns < 0:
                request.scheduled_ns = now_ns
                request.token_ns += [now_ns] * request.emitted  # of a skipped prefill
            if not request.decoding:
                prefill += tokens
            before = request.position
            total += tokens
            entries += before + tokens
            pairs += tokens * before + tokens * (tokens + 1) // 2
            sampled += tokens == request.tokens_wanted
        return BatchShape(total, entries, pairs, sampled), prefill

    def _issue_prefetches(self, view: StepView) -> None:
        """Fetch what the policy asks for and is absent, most urgent first."""
        keys = self._prefetch.wanted(view)
        if not keys:
            return
        spare = {*keys, *view.union}
        experts = self._routing.num_experts
        for key in dict.fromkeys(keys):
            layer = key // experts
            cache = self.caches[layer]
            if key not in cache.slots and not cache.prefetch(layer, key, spare):
                self.ledger.prefetch_refused += 1

    def _finish(self, plan: Plan, prefill: int) -> None:
        """The step's tokens are known: move requests on, close the books of the step."""
        now = self.machine.now_ns
        total = 0
        blocks = sum(request.blocks for request in self.scheduler.running)
        for request, tokens in plan:
            total += tokens
            request.position += tokens
            if request.position == request.target:
                request.emitted += 1
                request.token_ns.append(now)
                if request.finished:
                    self.scheduler.finish(request)
        self.ledger.end_step(
            now,
            prefill_tokens=prefill,
            decode_tokens=total - prefill,
            sequences=len(plan),
            blocks=blocks,
            expert_bytes=self._expert_bytes,
        )
        turn = len(self.ledger.steps) % len(self._distinct_caches)
        self._distinct_caches[turn].audit()
        # Each step computes at least one row, and a preemption loses at most all of them.
        if len(self.ledger.steps) > self._rows * (2 + self.scheduler.preemptions):
            raise InvariantError(14, f"{len(self.ledger.steps)} steps without an end in sight")
