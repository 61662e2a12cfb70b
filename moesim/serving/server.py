"""The server: the serving logic, the same for every machine.

`Server.run` is a generator that submits work and waits for it. One step:

1. the scheduler forms a batch;
2. in each layer, attention and router run, the expert ids return to the host, and the layer event
   is decided: where its experts run, which are copied in, and which leave;
3. at the end, the sampled tokens return to the host.

A decision is data (`moesim/serving/experts/decision.py`). `Program` turns it into work, and the
`Issuer` hands the work to the machine. Where all decisions of a step can be made before its work is
issued, a `StepMemo` times the whole step at once; the result is the same. Observers receive records
of all this (`moesim/serving/run_log.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.ops import Dense, Front, Readback, Tail
from moesim.hardware.topology import D2H, GPU
from moesim.machine.protocol import Machine, Wait
from moesim.machine.work import FAR, Work
from moesim.policies.prefetch.base import Prefetch
from moesim.policies.view import Key, View
from moesim.progress import Counter
from moesim.serving import stalls
from moesim.serving.arrivals import Arrivals
from moesim.serving.experts.program import Hidden, Program
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.issue import Execution, Issuer, ObservedIssuer
from moesim.serving.knowledge import EVERYTHING, KNOWLEDGE, Knowledge
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.routing import RoutingSource, StepRouting, StepView
from moesim.serving.run_log import (
    Decided,
    DecidedAhead,
    Issued,
    Observer,
    PlanRecord,
    StepEnded,
    StepStarted,
    listener,
)
from moesim.serving.scheduler import Scheduler
from moesim.serving.step import Step
from moesim.serving.step_memo import EventTimes, StepBytes, StepMemo, Twinned

if TYPE_CHECKING:
    from moesim.serving.compiled.stretch import Stretches

_ID_BYTES = 4  # an expert id or a sampled token on its way to the host
# Layer events decided together: enough to share the fixed work of several steps, and few enough to
# be freed before Python's garbage collector examines them.
_EVENTS_TOGETHER = 256


class Server:
    """Serves `requests` (in order of arrival) on a machine, with given caches and policies.

    `caches[l]` is the cache of trace layer l; if the cache is global, it is the same object for all
    layers. `knowledge` is what the router reveals in advance. A clairvoyant prefetch policy sees
    the whole step, and the rows of the next step whose tokens exist. After each step, `progress`
    receives the numbers of rows served and to serve. `observers` receive the records of the run,
    except plans, which the scheduler records.
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
        execution: Execution,
        knowledge: Knowledge = KNOWLEDGE["layerwise"],
        sequential: bool = False,
        progress: Counter | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.machine = machine
        self.requests = requests
        self.scheduler = scheduler
        self.caches = caches
        self.ledger = ledger
        self.prefetch = prefetch
        self._routing = routing
        self._layers = layers
        self._num_layers = routing.num_layers
        self.knowledge = knowledge
        self._ids_return = [knowledge.comes_back(layer) for layer in range(self._num_layers)]
        self._foresight = EVERYTHING if prefetch.clairvoyant else knowledge.reach
        # Whether prefetches depend on what a layer's front computes: its ids, or predictions.
        revealed = prefetch.clairvoyant or (knowledge.queued and not prefetch.needs_predictions)
        self._fetches_by_front = prefetch.active and not revealed
        self.sequential = sequential
        self.arrivals = Arrivals(requests)
        self._steps = 0
        self._eviction = caches[-1].policy  # the first caches may hold resident initial layers
        self.execution = execution
        self._program = self._program_on(machine)
        issuing = machine.submit, ledger.log, execution.topology, execution.host
        tell = listener(observers, Issued)
        self._issue = Issuer(*issuing) if tell is None else ObservedIssuer(*issuing, tell)
        self._tell_started = listener(observers, StepStarted)
        self._tell_decided = listener(observers, Decided)
        self._tell_ahead = listener(observers, DecidedAhead)
        self._tell_ended = listener(observers, StepEnded)
        self._hidden = Hidden(GPU)
        # Whether hidden states move between lanes; else what the GPU waits for need not be known.
        self.moves_states = bool(execution.lanes) or any(cache.places for cache in caches)
        self._memo = self._make_memo(machine)
        # Policies that read the queue must run before later steps are formed.
        together = self._memo is not None and not self._eviction.looks_ahead
        self._most_steps = max(1, _EVENTS_TOGETHER // self._num_layers) if together else 1
        # Times steps in place of the memo, where it can; set before the run.
        self.compiled: Stretches | None = None
        self._rows = sum(request.max_kv_tokens for request in requests)
        self._progress = progress
        self._to_serve = sum(r.max_kv_tokens - r.position for r in requests)
        self._served = 0
        self._place: tuple[int, int | None] = 0, None  # step and layer, for messages
        self._distinct_caches = list({id(cache): cache for cache in caches}.values())
        numbers = {id(cache): number for number, cache in enumerate(self._distinct_caches)}
        self.cache_numbers = [numbers[id(cache)] for cache in caches]

    def _program_on(self, machine: Machine) -> Program:
        it = self.execution
        return Program(machine, it.topology, it.nbytes, it.state_bytes, self._routing.num_experts)

    @property
    def times_steps(self) -> bool:
        """Whether whole steps are timed at once, since each layer event begins on idle lanes."""
        return self._memo is not None

    @property
    def observed(self) -> bool:
        """Whether an observer wants records of steps, decisions or issued work."""
        issued = isinstance(self._issue, ObservedIssuer) or self._tell_ahead
        return any((self._tell_started, self._tell_decided, self._tell_ended, issued))

    def _make_memo(self, machine: Machine) -> StepMemo | None:
        """Return a memo of whole steps where it may be used.

        It needs layer events that begin and end on idle lanes, and ids that return in every layer
        or in none. Copies ahead and write-backs leave copies under way; a host that takes time to
        issue work may fall behind the lanes. An observer may want each work.
        """
        it, knowledge = self.execution, self.knowledge
        ahead = self.prefetch.active or it.copies_later or self.caches[0].write_back
        layerwise = self.sequential or bool(it.lanes) or it.sorts_on_device
        # A memo knows copies by slots that are used again, not by bytes.
        unequal = self.caches[0].policy.sizes is not None
        if ahead or layerwise or unequal or not knowledge.uniform or not self._issue.free:
            return None
        if isinstance(self._issue, ObservedIssuer) or not isinstance(machine, Twinned):
            return None
        return StepMemo(machine, self._program_on, it.topology, self.ledger, it.kind_of)

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
            if steps and self.compiled is not None:
                yield from self._run_compiled(steps[0], self.compiled)
            elif steps and self._memo is not None:
                yield from self._run_timed(steps, self._memo)
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
        if self._memo is not None:
            self._memo.flush()
        if self.compiled is not None:
            self.compiled.flush(machine.now_ns)
        for number in range(len(self._distinct_caches)):
            self._audit_cache(number)
        machine.close()

    def _report(self, steps: Sequence[Step], progress: Counter) -> None:
        """Call `progress` with the numbers of rows served and to serve."""
        # Rows that a preemption loses are served twice, so the count can exceed the total.
        self._served += sum(len(step.rows) for step in steps)
        done = self._served + self.scheduler.pool.reused_tokens
        progress(min(done, self._to_serve), self._to_serve)

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
        most = self._most_steps if self.compiled is None else 1
        while len(steps) < most:
            number = self._steps + len(steps)
            self._place = number, None
            plan = scheduler.next_step()
            if not plan:
                break
            blocks = pool.total - pool.free
            step = Step(plan, number, blocks, future_tokens=self.knowledge.future_tokens)
            steps.append(step)
            for request in step.finished:
                scheduler.finish(request)
            # A request may arrive during this step, or when it ends, and belong to the next one.
            if arrivals.due_ns is not None or (step.finished and arrivals.unsent):
                break
        return steps

    def _run_timed(self, steps: Sequence[Step], memo: StepMemo) -> Wait:
        """Run steps whose decisions do not depend on time: decide all, then time each."""
        ledger, start = self.ledger, self.machine.now_ns
        routings = [self._routing.step(step) for step in steps]
        decided = [
            (self._decide(*pair, memo), self._residents())
            for pair in zip(steps, routings, strict=True)
        ]
        for step, routing, (events, residents) in zip(steps, routings, decided, strict=True):
            number, sizes = ledger.num_steps, self._sizes(step)
            finish = memo.step(number, start, step.batch, events, sizes, step.facts, residents)
            if finish >= FAR:
                break  # the wait refuses it
            ledger.num_steps += 1
            step.stamp(start, finish)
            self._record_step(number, step, start, finish)
            if number in ledger.timeline_steps:
                memo.show(number, start, step.batch, routing.unions)
            ledger.log_unions(routing.unions)
            start = finish
        yield from self.machine.wait_any((), until_ns=finish)

    def _run_compiled(self, step: Step, compiled: Stretches) -> Wait:
        """Run a step, and the decode steps after it that repeat it, by the compiled back end."""
        start, due_ns = self.machine.now_ns, self.arrivals.due_ns
        until = FAR if due_ns is None else due_ns
        requests, more = compiled.repeats(step, self.scheduler, until - start)
        sizes, later = self._sizes(step), self._sizes_of(len(step.parts), len(step.parts))
        finish_ns = compiled.run(step, requests, more, start, until, sizes, later)
        if finish_ns[-1] < FAR:
            step.stamp(start, int(finish_ns[0]))
            self._steps += len(finish_ns)
            self._check_progress()
            self._served += (len(finish_ns) - 1) * len(requests)
            self._repeat(requests, finish_ns[1:].tolist())
        yield from self.machine.wait_any((), until_ns=int(finish_ns[-1]))

    def _repeat(self, requests: Sequence[Request], finish_ns: Sequence[int]) -> None:
        """Bring requests behind decode steps of all of them, which end at `finish_ns`."""
        if not finish_ns:
            return
        scheduler, steps = self.scheduler, len(finish_ns)
        batch = [(request, 1) for request in requests]
        for request, _ in batch:
            scheduler.pool.grow(request, steps)
            request.decode(steps, finish_ns)
        if scheduler.observed:
            for later in range(steps, 0, -1):
                scheduler.record(batch, later)
        for request, _ in batch:
            if request.finished:
                scheduler.finish(request)
                self.arrivals.end(request, finish_ns[-1])

    def _residents(self) -> int:
        """Return the number of experts that have a slot, also while their copies are under way."""
        return sum([len(cache.slots) for cache in self._distinct_caches])

    def _record_step(self, number: int, step: Step, start_ns: int, finish_ns: int) -> None:
        """Pass the start and end of a step that was timed at once to the observers."""
        if self._tell_started is not None:
            self._tell_started(StepStarted(number, start_ns, _parts(step)))
        if self._tell_ended is not None:
            self._tell_ended(StepEnded(number, finish_ns))

    def _decide(self, step: Step, routing: StepRouting, memo: StepMemo) -> list[EventTimes]:
        """Decide all layer events of a step that will be timed at once."""
        views, total = self._view(step, routing).layers(), step.batch.tokens
        tell = self._tell_decided
        events = []
        for layer, (cache, view) in enumerate(zip(self.caches, views, strict=True)):
            self._place = self._steps, layer
            decision = cache.decide(layer, view, total)
            if tell is not None:
                tell(Decided(self._steps, self.cache_numbers[layer], decision))
            events.append(memo.event(decision, view.union, view.tokens, total))
        self._audit()
        return events

    def _sizes(self, step: Step) -> StepBytes:
        """Return the sizes of the step's readbacks.

        At least one token returns, even if none is sampled, since the host must learn the end.
        """
        return self._sizes_of(len(step.rows), step.batch.sampled)

    def _sizes_of(self, rows: int, sampled: int) -> StepBytes:
        ids = 0 if self.knowledge.queued else _ID_BYTES * rows * self._routing.top_k
        return StepBytes(ids, _ID_BYTES * max(1, sampled))

    def _view(self, step: Step, routing: StepRouting) -> StepView:
        """Return the view of a step for eviction policies."""
        policy = self._eviction
        looks = policy.looks_ahead and self.knowledge.queued
        queue = self._routing.first_uses(self._queued(step)) if looks else None
        requests = _requests(step) if policy.sees_requests else ()
        return StepView(routing, self.knowledge.reach, policy.name, queue=queue, requests=requests)

    def _queued(self, step: Step) -> npt.NDArray[np.int64]:
        """Return the rows queued behind a step: of running requests, then of waiting ones.

        Tokens that this step samples have no row, because they are not known yet. Guesses may stand
        between the two groups instead. A static router needs none of them: one row has the keys of
        all rows of its request.
        """
        scheduler = self.scheduler
        if self.knowledge.future_tokens:
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
        sees_next = self.prefetch.clairvoyant or self.knowledge.queued
        next_rows = step.known_ahead if sees_next and self.prefetch.active else ()
        next_unions = self._routing.unions(step.known_ahead)[0] if len(next_rows) else ()
        return StepView(
            routing,
            self._foresight,
            self.prefetch.name,
            next_unions,
            requests=_requests(step),
            is_resident=self._is_resident,
        )

    def _is_resident(self, key: Key) -> bool:
        """Return whether a key is in GPU memory or on its way there."""
        layer = key // self._routing.num_experts
        if not 0 <= layer < self._num_layers:
            return False
        cache = self.caches[layer]
        return key in cache.slots or key in cache.guesses

    def _run_layers(self, step: Step) -> Wait:
        """Run one step layer by layer, on any machine."""
        machine, ledger, issue = self.machine, self.ledger, self._issue
        batch, sizes, started_ns = step.batch, self._sizes(step), machine.now_ns
        ids = Readback(sizes.ids)
        routing = self._routing.step(step)
        ledger.begin_step(started_ns)
        if self._tell_started is not None:
            self._tell_started(StepStarted(self._steps, started_ns, _parts(step)))
        issue.step = self._steps
        issue.decided_ns, issue.waited = started_ns, stalls.READBACK
        prefetching = self.prefetch.active
        self._place = self._steps, None
        # Two views, because the prefetch policy may see further ahead than the eviction policy.
        view = self._view(step, routing)
        ahead = self._view_ahead(step, routing)
        if prefetching:
            self._issue_prefetches(ahead)
        self._hidden = Hidden(self.execution.lane(0))
        for layer, cache in enumerate(self.caches):
            for dense in self._layers.dense_before[layer]:
                self._run_layer(Dense(dense, batch), dense, "dense", layer)
            model_layer = self._layers.model_layers[layer]
            front = self._run_layer(Front(model_layer, batch), model_layer, "front", layer)
            decides = not self._stays_on_device(layer, cache)
            if decides:
                yield from machine.wait_any((self._ids_ready(front, layer, ids),))
                issue.decided_ns = machine.now_ns
            view.move_to(layer)
            self._place = self._steps, layer
            if cache.guesses:
                cache.drop_wrong(layer, view.union)
            self._run_event(layer, cache, view, batch.tokens, decides)
            if prefetching:
                ahead.move_to(layer)
                self._issue_prefetches(ahead)
        yield from self._end_step(step, sizes, started_ns)
        if self._tell_ended is not None:
            self._tell_ended(StepEnded(self._steps, machine.now_ns))
        unions = routing.unions
        ledger.end_step(
            machine.now_ns, step.facts, unions, routing.tokens, issue.waited, self._residents()
        )
        ledger.log_unions([[k] for union in unions for k in union] if self.sequential else unions)
        self._audit()

    def _run_layer(self, op: Dense | Front | Tail, model_layer: int, kind: str, layer: int) -> Work:
        """Issue a layer without its routed experts on its lane, where the hidden states go too."""
        if not self.moves_states:  # the GPU is first in first out
            return self._issue(Work(GPU, op), kind, layer)
        lane = self.execution.lane(model_layer)
        hidden = self._hidden
        if hidden.lane != lane:
            tokens = op.batch.tokens
            hidden = self._program.move(hidden, lane, layer, tokens, self._issue)
        # A lane is first in first out, so its own earlier work need not be waited for.
        after = tuple([work for work in hidden.after if work.lane != lane])
        work = self._issue(Work(lane, op, after), kind, layer, hidden.waits)
        self._hidden = Hidden(lane, (work,), () if lane == GPU else ((work, stalls.CPU, layer),))
        return work

    def _stays_on_device(self, layer: int, cache: ExpertCache) -> bool:
        """Return whether the host issues a layer event without waiting for the layer's ids.

        The engine must sort on the GPU, all experts must be there, and no prefetch may depend on
        what the front computes.
        """
        if not self.execution.sorts_on_device or self._fetches_by_front:
            return False
        return self._hidden.lane == GPU and cache.holds(layer, self._routing.num_experts)

    def _ids_ready(self, front: Work, layer: int, ids: Readback) -> Work:
        """Return the work after which the host knows the ids of a layer.

        Ids that are known in advance, or chosen on the CPU, need no copy: the layer event follows
        the front directly.
        """
        on_gpu = front.lane == GPU
        self._issue.waited = stalls.READBACK if on_gpu else stalls.CPU
        if not on_gpu or not self._ids_return[layer]:
            return front
        return self._issue(Work(D2H, ids, (front,)), "readback", layer)

    def _run_event(
        self, layer: int, cache: ExpertCache, view: StepView, rows: int, decides: bool
    ) -> None:
        """Decide and issue one layer event, or with sequential replay one for each key.

        `decides`: the host decides it, which takes the host's time. Else the engine needs no
        decision, since the GPU sorts the tokens and has all experts.
        """
        if not self.sequential:
            self._hidden = self._decide_and_issue(layer, cache, view, rows, self._hidden, decides)
            return
        inputs, pairs = self._hidden, zip(view.union, view.tokens, strict=True)
        events = [View(layer, (key,), (count,)) for key, count in pairs]
        results = [
            self._decide_and_issue(layer, cache, event, rows, inputs, decides) for event in events
        ]
        after = tuple([work for hidden in (inputs, *results) for work in hidden.after])
        waits = tuple([wait for hidden in results for wait in hidden.waits])
        self._hidden = Hidden(inputs.lane, after, waits)

    def _decide_and_issue(
        self,
        layer: int,
        cache: ExpertCache,
        view: View,
        rows: int,
        inputs: Hidden,
        decides: bool,
    ) -> Hidden:
        decision = cache.decide(layer, view, rows)
        self.ledger.decided(decision)
        if self._tell_decided is not None:
            self._tell_decided(Decided(self._steps, self.cache_numbers[layer], decision))
        if decides and not self._issue.free:
            self._issue.event_decided()
        return self._program.event(decision, inputs, rows, self._issue)

    def _end_step(self, step: Step, sizes: StepBytes, started_ns: int) -> Wait:
        """Run what follows the last layer with routed experts, until the host has the tokens."""
        batch, last, issue = step.batch, self._num_layers, self._issue
        for dense in self._layers.dense_before[last]:
            self._run_layer(Dense(dense, batch), dense, "dense", last)
        tokens_ready = self._run_layer(Tail(batch), -1, "tail", last)
        issue.waited = stalls.CPU
        if tokens_ready.lane == GPU:
            issue.waited = stalls.READBACK
            work = Work(D2H, Readback(sizes.sampled), (tokens_ready,))
            tokens_ready = issue(work, "readback", last)
        yield from self.machine.wait_any((tokens_ready,))
        step.stamp(started_ns, self.machine.now_ns)

    def _issue_prefetches(self, view: StepView) -> None:
        """Copy the absent keys that the prefetch policy returns, most urgent first."""
        keys = self.prefetch.wanted(view)
        if not keys:
            return
        protected: frozenset[Key] | None = None
        experts, ledger = self._routing.num_experts, self.ledger
        for key in dict.fromkeys(keys):  # without repetitions, in order of urgency
            layer = key // experts
            if not 0 <= layer < self._num_layers:
                most = self._num_layers * experts - 1
                reason = f"is not a key of this model; keys are 0 to {most}"
                raise PolicyViolation(self.prefetch.name, key, reason)
            cache = self.caches[layer]
            if key in cache.slots or key in cache.guesses:
                continue
            if protected is None:
                # A prefetch must not evict what this layer or another prefetch of the call needs.
                protected = frozenset((*keys, *view.union))
            decision = cache.prefetch(layer, key, protected)
            if self._tell_ahead is not None:
                number = self.cache_numbers[layer]
                self._tell_ahead(DecidedAhead(self._steps, number, key, decision))
            if decision is None:
                ledger.prefetch_refused += 1
            else:
                ledger.prefetch_copies[layer] += 1
                self._program.ahead(decision, self._issue)

    def _audit(self) -> None:
        """Audit one cache after a step was decided, and check that the run makes progress."""
        # One cache a step, in turn: an audit of all after every step would take much of a run.
        self._steps += 1
        self._audit_cache(self._steps % len(self._distinct_caches))
        self._check_progress()

    def _check_progress(self) -> None:
        # Each step computes at least one row, and a preemption loses at most all of them.
        if self._steps > self._rows * (2 + self.scheduler.preemptions):
            raise InvariantError(14, f"{self._steps} steps without an end in sight")

    def _audit_cache(self, number: int) -> None:
        caches = self._distinct_caches
        # With scope `global`, the last cache is that of several layers.
        shared = number == len(caches) - 1 and len(caches) < self._num_layers
        self._place = self._steps - 1, None if shared else number
        caches[number].audit()


def _requests(step: Step) -> tuple[int, ...]:
    """Return the numbers of the requests of a step."""
    return tuple([request.index for request, *_ in step.parts])


def _parts(step: Step) -> PlanRecord:
    """Return the requests of a step for the run log."""
    return tuple([(request.index, first, tokens) for request, first, tokens, _ in step.parts])
