"""The server: the serving logic, written once, for every machine.

A generator that only says *copy this*, *compute that*, *wait for those*. Each step: the
scheduler forms a batch; layer by layer, attention and router run, the ids come back to the
host, and the layer event is decided and issued; at the end the sampled tokens come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.ops import BatchShape, Dense, Front, Tail
from moesim.machine.base import D2H, DEMAND, GPU, READBACK, Folding, Machine, Wait
from moesim.machine.step_times import Event, StepBytes, StepTimes
from moesim.policies.prefetch.base import Prefetch
from moesim.policies.view import View
from moesim.progress import Counter
from moesim.serving.knowledge import EVERYTHING, KNOWLEDGE, Knowledge
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import DENSE, FRONT, TAIL, Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache
from moesim.serving.routing import RoutingSource, StepRouting, StepView
from moesim.serving.scheduler import Scheduler
from moesim.serving.step import Step

_ID_BYTES = 4  # an expert id or a sampled token on its way to the host
# Layer events decided at a stretch: enough to share what steps have in common, few enough that
# they are gone before Python's garbage collector looks at them.
_STRETCH_EVENTS = 256

Fold = Callable[[BatchShape, Sequence[Event], StepBytes], StepTimes]


class Server:
    """Serves `requests` (in order of arrival) on a machine, with given caches and policies.

    `caches[l]` is the cache of trace layer l (the same object for all layers if global);
    `knowledge` is what the router reveals ahead; a clairvoyant prefetch policy, and nobody else,
    sees the whole step, and of the next one what has a token already. After each step,
    `progress` is told how many of all rows are served.
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
        knowledge: Knowledge = KNOWLEDGE["layerwise"],
        sequential: bool = False,
        progress: Counter | None = None,
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
        self._knowledge = knowledge
        self._foresight = EVERYTHING if prefetch.clairvoyant else knowledge.reach
        self._sequential = sequential
        self._next_arrival = 0
        self._steps = 0
        self._expert_bytes = caches[0].expert_bytes
        self._eviction = caches[-1].policy  # the first caches may hold initial layers for good
        # Without copies under way a step has no surprises: it can be decided before it is timed.
        surprises = prefetch.active or sequential or caches[0].write_back or not knowledge.uniform
        self._fold = machine.fold if isinstance(machine, Folding) and not surprises else None
        # Who asks what is queued must be asked before the queue has moved on.
        at_once = self._fold is not None and not self._eviction.looks_ahead
        self._stretch = max(1, _STRETCH_EVENTS // self._num_layers) if at_once else 1
        self._rows = sum(request.max_kv_tokens for request in requests)
        self._progress = progress
        self._to_serve = sum(r.max_kv_tokens - r.position for r in requests)
        self._served = 0
        self._distinct_caches = list({id(cache): cache for cache in caches}.values())

    def run(self) -> Wait:
        """Serve everything; `yield from` it, or hand it to a machine's runner."""
        machine = self.machine
        while True:
            self._receive()
            steps = self._form_steps()
            if steps and self._fold is not None:
                yield from self._glide(steps, self._fold)
            elif steps:
                yield from self._walk(steps[0])
            elif self._next_arrival < len(self.requests):
                arrival = self.requests[self._next_arrival].arrival_ns
                yield from machine.wait_any((), until_ns=arrival)
            else:
                self.scheduler.close()
                break
            if self._progress is not None:
                self._report(steps, self._progress)
        for cache in self._distinct_caches:
            cache.audit()
        machine.close()

    def _report(self, steps: Sequence[Step], progress: Counter) -> None:
        """Tell an observer how many rows are served; those that preemptions lost count twice."""
        self._served += sum(len(step.rows) for step in steps)
        progress(min(self._served, self._to_serve), self._to_serve)

    def _receive(self) -> None:
        """Take in every request that has arrived by now."""
        now = self.machine.now_ns
        while self._next_arrival < len(self.requests):
            request = self.requests[self._next_arrival]
            if request.arrival_ns > now:
                return
            self._next_arrival += 1
            request.due = self._steps
            if request.finished:  # its one token came with the skipped prefill
                request.scheduled_ns = now
                request.token_ns.append(now)
                request.status = "finished"
            else:
                self.scheduler.arrive(request)

    def _form_steps(self) -> list[Step]:
        """The next step; and if nobody is still to arrive, so that no clock can change what
        follows, some of those after it."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        steps: list[Step] = []
        while len(steps) < self._stretch:
            plan = scheduler.next_step()
            if not plan:
                break
            number, blocks = self._steps + len(steps), pool.total - pool.free
            step = Step(plan, number, blocks, for_ever=self._knowledge.for_ever)
            steps.append(step)
            for request in step.finished:
                scheduler.finish(request)
            if self._next_arrival < len(self.requests):
                break
        return steps

    def _glide(self, steps: Sequence[Step], fold: Fold) -> Wait:
        """Steps in which nothing can surprise: decided first, then timed."""
        routings = [self._routing.step(step) for step in steps]
        decided = [self._decide(*pair) for pair in zip(steps, routings, strict=True)]
        for step, routing, events in zip(steps, routings, decided, strict=True):
            step_times = fold(step.batch, events, self._sizes(step))
            step.stamp(step_times.start_ns, step_times.finish_ns)
            self.ledger.log_folded(step_times, events, routing.unions, step.facts)
        yield from self.machine.wait_any((), until_ns=step_times.finish_ns)

    def _decide(self, step: Step, routing: StepRouting) -> list[Event]:
        """The layer events of a step that nothing can surprise."""
        views = self._view(step, routing).layers()
        layers = zip(self.caches, views, routing.unions, routing.tokens, strict=True)
        events = [cache.decide(view, union, tokens) for cache, view, union, tokens in layers]
        self._audit()
        return events

    def _sizes(self, step: Step) -> StepBytes:
        """What the step copies; at least one token comes back, to say that it is over."""
        return StepBytes(
            self._expert_bytes,
            0 if self._knowledge.queued else _ID_BYTES * len(step.rows) * self._routing.top_k,
            _ID_BYTES * max(1, step.batch.sampled),
        )

    def _view(self, step: Step, routing: StepRouting) -> StepView:
        """What eviction policies see of a step."""
        policy = self._eviction
        looks = policy.looks_ahead and self._knowledge.queued
        queue = self._routing.first_uses(self._queued(step)) if looks else None
        return StepView(routing, self._knowledge.reach, policy.name, queue=queue)

    def _queued(self, step: Step) -> npt.NDArray[np.int64]:
        """Rows of tokens queued behind a step in the order in which they may come: of running
        requests, then of those that wait. What the step samples is not known yet, unless routing
        is known for ever: then one row tells what a request wants in its next step and ever after.
        """
        scheduler = self.scheduler
        if self._knowledge.for_ever:
            rows = [request.first_row for request in (*scheduler.running, *scheduler.waiting)]
        else:
            sampling = set(map(id, step.emitting))
            running = (request for request in scheduler.running if id(request) not in sampling)
            rows = [r.next_rows(r.tokens_wanted) for r in (*running, *scheduler.waiting)]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _view_ahead(self, step: Step, routing: StepRouting) -> StepView:
        """What the prefetch policy sees of a step; where queued tokens are known, and for a
        clairvoyant one, also of the next."""
        sees = self._prefetch.clairvoyant or self._knowledge.queued
        known = step.known_ahead if sees and self._prefetch.active else ()
        next_unions = self._routing.unions(step.known_ahead)[0] if len(known) else ()
        return StepView(routing, self._foresight, self._prefetch.name, next_unions)

    def _walk(self, step: Step) -> Wait:
        """One step, layer by layer, on any machine."""
        machine, ledger, layers = self.machine, self.ledger, self._layers
        batch, sizes, started_ns = step.batch, self._sizes(step), machine.now_ns
        routing = self._routing.step(step)
        ledger.begin_step(started_ns)
        compute, copy, wait_any = machine.compute, machine.copy, machine.wait_any
        work, copies = ledger.work, ledger.copies
        knowledge, prefetching = self._knowledge, self._prefetch.active
        view = self._view(step, routing)
        ahead = self._view_ahead(step, routing)
        if prefetching:
            self._issue_prefetches(ahead)

        for layer, cache in enumerate(self.caches):
            issued_ns = ledger.issued_ns
            for dense in layers.dense_before[layer]:
                ticket = compute(GPU, Dense(dense, batch))
                work.append((ticket, issued_ns, DENSE, layer, None))
            front = compute(GPU, Front(layers.model_layers[layer], batch))
            work.append((front, issued_ns, FRONT, layer, None))
            known = front
            if knowledge.comes_back(layer):
                known = copy(D2H, READBACK, sizes.ids, DEMAND, (front,))
                copies.append((known, "readback", layer, READBACK, sizes.ids, ()))
            yield from wait_any((known,))
            ledger.issued_ns = machine.now_ns
            view.move_to(layer)
            if self._sequential:
                for key, count in zip(view.union, view.tokens, strict=True):
                    cache.event(layer, View(layer, (key,), (count,)))
            else:
                cache.event(layer, view)
            if prefetching:
                ahead.move_to(layer)
                self._issue_prefetches(ahead)

        last = self._num_layers
        for dense in layers.dense_before[last]:
            ticket = compute(GPU, Dense(dense, batch))
            work.append((ticket, ledger.issued_ns, DENSE, last, None))
        tail = compute(GPU, Tail(batch))
        work.append((tail, ledger.issued_ns, TAIL, last, None))
        known = copy(D2H, READBACK, sizes.sampled, DEMAND, (tail,))
        copies.append((known, "readback", last, READBACK, sizes.sampled, ()))
        yield from wait_any((known,))
        step.stamp(started_ns, machine.now_ns)
        unions = routing.unions
        ledger.end_step(machine.now_ns, step.facts, self._expert_bytes, unions, routing.tokens)
        ledger.log_unions([[k] for union in unions for k in union] if self._sequential else unions)
        self._audit()

    def _issue_prefetches(self, view: StepView) -> None:
        """Fetch what the policy asks for and is absent, most urgent first."""
        keys = self._prefetch.wanted(view)
        if not keys:
            return
        protected = frozenset((*keys, *view.union))
        experts = self._routing.num_experts
        for key in dict.fromkeys(keys):
            layer = key // experts
            if not 0 <= layer < self._num_layers:
                raise PolicyViolation(self._prefetch.name, key, "is no expert of this model")
            cache = self.caches[layer]
            if key not in cache.slots and not cache.prefetch(layer, key, protected):
                self.ledger.prefetch_refused += 1

    def _audit(self) -> None:
        """After a step is decided: one of the caches is audited, and there is an end."""
        self._steps += 1
        self._distinct_caches[self._steps % len(self._distinct_caches)].audit()
        # Each step computes at least one row, and a preemption loses at most all of them.
        if self._steps > self._rows * (2 + self.scheduler.preemptions):
            raise InvariantError(14, f"{self._steps} steps without an end in sight")
