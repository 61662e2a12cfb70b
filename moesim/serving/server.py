"""The server: the serving logic, the same for every machine.

`Server.run` is a generator that issues copies and computations and waits for them. One step:

1. the scheduler forms a batch;
2. in each layer, attention and router run, the expert ids return to the host, and the layer event
   is decided: which experts are copied in, and which leave;
3. at the end, the sampled tokens return to the host.

There are two ways to run a step. `_run_layers` works with every machine. `_run_folded` is the fast
way for machines that can time a whole step at once; both give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.ops import BatchShape, Dense, Front, Readback, Tail
from moesim.hardware.topology import D2H, GPU
from moesim.machine.base import Folding, Machine, Wait
from moesim.machine.step_times import Event, StepBytes, StepTimes
from moesim.machine.work import Work
from moesim.policies.prefetch.base import Prefetch
from moesim.policies.view import View
from moesim.progress import Counter
from moesim.serving.arrivals import Arrivals
from moesim.serving.knowledge import EVERYTHING, KNOWLEDGE, Knowledge
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import DENSE, FRONT, TAIL, Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache
from moesim.serving.routing import RoutingSource, StepRouting, StepView
from moesim.serving.scheduler import Scheduler
from moesim.serving.step import Step

_ID_BYTES = 4  # an expert id or a sampled token on its way to the host
# Layer events decided together: enough to share the fixed work of several steps, and few enough to
# be freed before Python's garbage collector examines them.
_EVENTS_TOGETHER = 256

Fold = Callable[[BatchShape, Sequence[Event], StepBytes], StepTimes]


class Server:
    """Serves `requests` (in order of arrival) on a machine, with given caches and policies.

    `caches[l]` is the cache of trace layer l; if the cache is global, it is the same object for all
    layers. `knowledge` is what the router reveals in advance. A clairvoyant prefetch policy sees
    the whole step, and the rows of the next step whose tokens exist. After each step, `progress`
    receives the numbers of rows served and to serve.
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
        self.arrivals = Arrivals(requests)
        self._steps = 0
        self._expert_bytes = caches[0].expert_bytes
        self._eviction = caches[-1].policy  # the first caches may hold resident initial layers
        # `fold` needs layer events that begin on idle lanes, and ids that return in every layer or
        # in none. Prefetches and write-backs leave copies under way.
        stepwise = prefetch.active or sequential or caches[0].write_back or not knowledge.uniform
        self._fold = machine.fold if isinstance(machine, Folding) and not stepwise else None
        # Policies that read the queue must run before later steps are formed.
        together = self._fold is not None and not self._eviction.looks_ahead
        self._most_steps = max(1, _EVENTS_TOGETHER // self._num_layers) if together else 1
        self._rows = sum(request.max_kv_tokens for request in requests)
        self._progress = progress
        self._to_serve = sum(r.max_kv_tokens - r.position for r in requests)
        self._served = 0
        self._place: tuple[int, int | None] = 0, None  # step and layer, for messages
        self._distinct_caches = list({id(cache): cache for cache in caches}.values())

    def run(self) -> Wait:
        """Serve all requests. Use it as `yield from server.run()`, or pass it to a machine.

        Raise `PolicyViolation` or `InvariantError` if a policy or moesim breaks a rule.
        """
        try:
            yield from self._serve()
        except PolicyViolation as error:
            step, layer = self._place
            when = f"step {step}" if layer is None else f"step {step}, MoE layer {layer}"
            raise PolicyViolation(error.policy, error.key, error.reason, when) from error.__cause__

    def _serve(self) -> Wait:
        machine = self.machine
        while True:
            self._receive()
            steps = self._form_steps()
            if steps and self._fold is not None:
                yield from self._run_folded(steps, self._fold)
            elif steps:
                yield from self._run_layers(steps[0])
            elif (due_ns := self.arrivals.due_ns) is not None:
                yield from machine.wait_any((), until_ns=due_ns)
            else:
                self.scheduler.close()
                break
            for step in steps:
                for request in step.finished:
                    self.arrivals.end(request, request.token_ns[-1])
            if self._progress is not None:
                self._report(steps, self._progress)
        for number in range(len(self._distinct_caches)):
            self._audit_cache(number)
        machine.close()

    def _report(self, steps: Sequence[Step], progress: Counter) -> None:
        """Call `progress` with the numbers of rows served and to serve."""
        # Rows that a preemption loses are served twice, so the count can exceed the total.
        self._served += sum(len(step.rows) for step in steps)
        progress(min(self._served, self._to_serve), self._to_serve)

    def _receive(self) -> None:
        """Pass every request that has arrived by now to the scheduler."""
        now, arrivals = self.machine.now_ns, self.arrivals
        while (due_ns := arrivals.due_ns) is not None and due_ns <= now:
            request = arrivals.take()
            request.due = self._steps
            if request.finished:  # its only token is that of the skipped prefill
                request.scheduled_ns = now
                request.token_ns.append(now)
                request.status = "finished"
                arrivals.end(request, now)
            elif not self.scheduler.arrive(request):
                arrivals.end(request, now)

    def _form_steps(self) -> list[Step]:
        """Form the next step, and further ones if no request can arrive before them."""
        scheduler, pool, arrivals = self.scheduler, self.scheduler.pool, self.arrivals
        steps: list[Step] = []
        while len(steps) < self._most_steps:
            number = self._steps + len(steps)
            self._place = number, None
            plan = scheduler.next_step()
            if not plan:
                break
            blocks = pool.total - pool.free
            step = Step(plan, number, blocks, future_tokens=self._knowledge.future_tokens)
            steps.append(step)
            for request in step.finished:
                scheduler.finish(request)
            # A request may arrive during this step, or when it ends, and belong to the next one.
            if arrivals.due_ns is not None or (step.finished and arrivals.unsent):
                break
        return steps

    def _run_folded(self, steps: Sequence[Step], fold: Fold) -> Wait:
        """Run steps whose decisions do not depend on time: decide all, then time each."""
        routings = [self._routing.step(step) for step in steps]
        decided = [self._decide(*pair) for pair in zip(steps, routings, strict=True)]
        for step, routing, events in zip(steps, routings, decided, strict=True):
            step_times = fold(step.batch, events, self._sizes(step))
            step.stamp(step_times.start_ns, step_times.finish_ns)
            self.ledger.log_folded(step_times, events, routing.unions, step.facts)
        yield from self.machine.wait_any((), until_ns=step_times.finish_ns)

    def _decide(self, step: Step, routing: StepRouting) -> list[Event]:
        """Decide all layer events of a step that will be folded."""
        views = self._view(step, routing).layers()
        layers = zip(self.caches, views, routing.unions, routing.tokens, strict=True)
        events: list[Event] = []
        for layer, (cache, view, union, tokens) in enumerate(layers):
            self._place = self._steps, layer
            events.append(cache.decide(view, union, tokens))
        self._audit()
        return events

    def _sizes(self, step: Step) -> StepBytes:
        """Return the sizes of the step's copies.

        At least one token returns, even if none is sampled, since the host must learn the end.
        """
        return StepBytes(
            self._expert_bytes,
            0 if self._knowledge.queued else _ID_BYTES * len(step.rows) * self._routing.top_k,
            _ID_BYTES * max(1, step.batch.sampled),
        )

    def _view(self, step: Step, routing: StepRouting) -> StepView:
        """Return the view of a step for eviction policies."""
        policy = self._eviction
        looks = policy.looks_ahead and self._knowledge.queued
        queue = self._routing.first_uses(self._queued(step)) if looks else None
        return StepView(routing, self._knowledge.reach, policy.name, queue=queue)

    def _queued(self, step: Step) -> npt.NDArray[np.int64]:
        """Return the rows queued behind a step: of running requests, then of waiting ones.

        Tokens that this step samples have no row, because they are not known yet. Guesses may stand
        between the two groups instead. A static router needs none of them: one row has the keys of
        all rows of its request.
        """
        scheduler = self.scheduler
        if self._knowledge.future_tokens:
            rows = [request.first_row for request in (*scheduler.running, *scheduler.waiting)]
        else:
            sampling = set(map(id, step.emitting))
            running = [r for r in scheduler.running if id(r) not in sampling]
            sampled = [r for r in scheduler.running if id(r) in sampling]
            revealed, waiting = (
                [r.next_rows(r.tokens_wanted) for r in requests]
                for requests in (running, scheduler.waiting)
            )
            rows = [*revealed, *self._guesses(sampled), *waiting]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _guesses(self, sampled: Sequence[Request]) -> list[npt.NDArray[np.int64]]:
        """Return the rows that stand for those after the sampled tokens; the newest come first."""
        most = self._eviction.recent_rows
        recent = [request.last_rows(most) for request in sampled] if most else []
        return [rows[age : age + 1] for age in range(most) for rows in recent]

    def _view_ahead(self, step: Step, routing: StepRouting) -> StepView:
        """Return the view of a step for the prefetch policy.

        For clairvoyant policies, and where the router routes queued tokens, it includes the rows
        of the next step whose tokens exist.
        """
        sees_next = self._prefetch.clairvoyant or self._knowledge.queued
        next_rows = step.known_ahead if sees_next and self._prefetch.active else ()
        next_unions = self._routing.unions(step.known_ahead)[0] if len(next_rows) else ()
        return StepView(routing, self._foresight, self._prefetch.name, next_unions)

    def _run_layers(self, step: Step) -> Wait:
        """Run one step layer by layer, on any machine."""
        machine, ledger, layers = self.machine, self.ledger, self._layers
        batch, sizes, started_ns = step.batch, self._sizes(step), machine.now_ns
        routing = self._routing.step(step)
        ledger.begin_step(started_ns)
        submit, wait_any = machine.submit, machine.wait_any
        work, copies = ledger.work, ledger.copies
        knowledge, prefetching = self._knowledge, self._prefetch.active
        self._place = self._steps, None
        # Two views, because the prefetch policy may see further ahead than the eviction policy.
        view = self._view(step, routing)
        ahead = self._view_ahead(step, routing)
        if prefetching:
            self._issue_prefetches(ahead)

        for layer, cache in enumerate(self.caches):
            # All work up to the next wait is issued at once, so it has one time of issue.
            issued_ns = ledger.issued_ns
            for dense in layers.dense_before[layer]:
                ticket = Work(GPU, Dense(dense, batch))
                submit(ticket)
                work.append((ticket, issued_ns, DENSE, layer, None))
            front = Work(GPU, Front(layers.model_layers[layer], batch))
            submit(front)
            work.append((front, issued_ns, FRONT, layer, None))
            ids_ready = front
            if knowledge.comes_back(layer):
                ids_ready = Work(D2H, Readback(sizes.ids), (front,))
                submit(ids_ready)
                copies.append((ids_ready, "readback", layer, -1, sizes.ids, ()))
            # Ids known in advance need no copy; the layer event then follows the front directly.
            yield from wait_any((ids_ready,))
            ledger.issued_ns = machine.now_ns
            view.move_to(layer)
            self._place = self._steps, layer
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
            ticket = Work(GPU, Dense(dense, batch))
            submit(ticket)
            work.append((ticket, ledger.issued_ns, DENSE, last, None))
        tail = Work(GPU, Tail(batch))
        submit(tail)
        work.append((tail, ledger.issued_ns, TAIL, last, None))
        tokens_ready = Work(D2H, Readback(sizes.sampled), (tail,))
        submit(tokens_ready)
        copies.append((tokens_ready, "readback", last, -1, sizes.sampled, ()))
        yield from wait_any((tokens_ready,))
        step.stamp(started_ns, machine.now_ns)
        unions = routing.unions
        ledger.end_step(machine.now_ns, step.facts, self._expert_bytes, unions, routing.tokens)
        ledger.log_unions([[k] for union in unions for k in union] if self._sequential else unions)
        self._audit()

    def _issue_prefetches(self, view: StepView) -> None:
        """Copy the absent keys that the prefetch policy returns, most urgent first."""
        keys = self._prefetch.wanted(view)
        if not keys:
            return
        # One prefetch must not evict what this layer or another prefetch of the call needs.
        protected = frozenset((*keys, *view.union))
        experts = self._routing.num_experts
        for key in dict.fromkeys(keys):  # without repetitions, in order of urgency
            layer = key // experts
            if not 0 <= layer < self._num_layers:
                most = self._num_layers * experts - 1
                reason = f"is not a key of this model; keys are 0 to {most}"
                raise PolicyViolation(self._prefetch.name, key, reason)
            cache = self.caches[layer]
            if key not in cache.slots and not cache.prefetch(layer, key, protected):
                self.ledger.prefetch_refused += 1

    def _audit(self) -> None:
        """Audit one cache after a step was decided, and check that the run makes progress."""
        # One cache a step, in turn: an audit of all after every step would take much of a run.
        self._steps += 1
        self._audit_cache(self._steps % len(self._distinct_caches))
        # Each step computes at least one row, and a preemption loses at most all of them.
        if self._steps > self._rows * (2 + self.scheduler.preemptions):
            raise InvariantError(14, f"{self._steps} steps without an end in sight")

    def _audit_cache(self, number: int) -> None:
        caches = self._distinct_caches
        # With scope `global`, the last cache is that of several layers.
        shared = number == len(caches) - 1 and len(caches) < self._num_layers
        self._place = self._steps - 1, None if shared else number
        caches[number].audit()
