"""The scheduler: it forms steps within the token budget, the sequence limit and KV memory.

A batching policy plans a step, and the scheduler takes KV blocks for it. If a running request finds
no free block, the youngest running request that is not in the step yet is preempted. It loses its
blocks and waits again (preemption by recompute, as in vLLM, arXiv 2309.06180).

The policy sees only the waiting requests for which there are enough free blocks. With a prefix
cache, these begin behind what is cached of their prompts.

With `whole_prompts` no prompt is cut: a step computes all wanted rows of a request, or none. The
rows that a preemption lost count as a prompt, too.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NoReturn

from moesim.errors import InvariantError, PolicyViolation
from moesim.policies.batching.base import Batching, Candidate, ClairvoyantCandidate, Queue
from moesim.policies.batching.fixed_order import DecodeFirst, FirstComeFirstServed, PrefillFirst
from moesim.policies.view import Key
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request
from moesim.serving.run_log import Observer, Planned, listener

_FIXED_ORDERS = (DecodeFirst, PrefillFirst, FirstComeFirstServed)
_NOT_QUEUED = "is not queued, so nothing is known of it; pass a candidate of the queue"

Batch = list[tuple[Request, int]]
"""Requests of a step, each with the number of its tokens that are computed."""


class Scheduler:
    """Holds the waiting and running requests. The policy sees read-only candidates instead."""

    def __init__(
        self,
        policy: Batching,
        pool: BlockPool,
        *,
        token_budget: int,
        max_sequences: int,
        whole_prompts: bool = False,
        experts: Callable[[Request, int], Sequence[Sequence[int]]] | None = None,
        wants: Callable[[Request], frozenset[Key]] | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Build an empty queue.

        `experts` and `wants` answer `Queue.experts` and `Queue.wants`. They are None where the
        router does not reveal the answer. `observers` receive the policy's plans.
        """
        self._policy = policy
        # `ready` gets all requests, which takes time; call it only where a policy has its own.
        self._may_wait = getattr(policy.ready, "__func__", None) is not Batching.ready
        self._revealed_experts = experts
        self._revealed_wants = wants
        self._tell_planned = listener(observers, Planned)
        self._candidates: dict[Request, Candidate] = {}
        self._requests: dict[Candidate, Request] = {}
        self.pool = pool
        self._token_budget = token_budget
        self._max_sequences = max_sequences
        self._whole_prompts = whole_prompts
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0

    def arrive(self, request: Request) -> bool:
        """Queue a request; return False and reject it if it could not even run alone."""
        if self.pool.blocks_for(request.max_kv_tokens) > self.pool.total:
            request.status = "rejected"
            return False
        lengths = request.index, request.prompt_tokens
        if self._policy.clairvoyant:
            candidate: Candidate = ClairvoyantCandidate(*lengths, request.output_tokens)
        else:
            candidate = Candidate(*lengths)
        self._candidates[request] = candidate
        self._requests[candidate] = request
        self.waiting.append(request)
        return True

    def next_step(self) -> Batch:
        """Return the requests of the next step and their tokens, with KV blocks taken.

        Empty if nothing is queued, or if the policy waits for the next arrival. Raises
        `PolicyViolation` if the policy's plan is impossible.
        """
        if not self.waiting and not self.running:
            return []
        if self._may_wait and not self._policy.ready(
            self._show(self.running), self._show(self.waiting)
        ):
            return []
        for request in self.running:
            self.pool.publish(request)
        waiting = self._admissible()
        while True:
            preemptions = self.preemptions
            if step := self._take_blocks(self._plan(waiting)):
                return step
            if not waiting and self.preemptions == preemptions:
                self._refuse(
                    "step",
                    "is an empty step while requests are queued; plan at least one, or return "
                    "False from `ready`",
                )
            # Blocks ran out for all planned requests. Without waiting requests, each further round
            # preempts at least one running request, and the last one left always fits.
            waiting = []

    def decodes_that_repeat(self, planned: int) -> Sequence[Request]:
        """Return the requests of the next steps in their order, if all steps decode just these.

        That holds until a request arrives or ends, or KV blocks run out. The last step emitted
        tokens of `planned` requests, and of no others. Empty if more may change: a policy without a
        fixed order, a running request that was not served, or a waiting one that is admissible.
        More decoding takes more blocks, so none becomes so.
        """
        kind = type(self._policy)
        if kind not in _FIXED_ORDERS or planned != len(self.running) or self._admissible():
            return ()
        if planned > self._token_budget:
            return ()
        if kind is FirstComeFirstServed:
            return sorted(self.running, key=lambda request: request.index)
        return tuple(self.running)

    def finish(self, request: Request) -> None:
        """Remove a request that emitted its last token, and free its blocks."""
        request.status = "finished"
        self.running.remove(request)
        self.pool.release(request)
        del self._requests[self._candidates.pop(request)]

    def close(self) -> None:
        """Check that the queue is empty, when no request will arrive and no step was formed.

        Raise `PolicyViolation` otherwise: only a policy that is not `ready` can leave requests.
        """
        if left := len(self.waiting) + len(self.running):
            self._refuse(
                "ready",
                f"returns False although no request will arrive and {left} are queued; return "
                "True then",
            )

    def _show(self, requests: Sequence[Request]) -> tuple[Candidate, ...]:
        """Return the up-to-date candidates of these requests."""
        candidates = []
        for request in requests:
            candidate = self._candidates[request]
            candidate._update(request.emitted, request.position)
            candidates.append(candidate)
        return tuple(candidates)

    def _admissible(self) -> list[Request]:
        """Return the first waiting requests whose next rows all fit into free blocks.

        A fixed order serves waiting requests one after another. So those are enough that want the
        whole token budget.
        """
        pool, fixed, left = self.pool, type(self._policy) in _FIXED_ORDERS, self._token_budget
        free = pool.free - len(self.running)  # each running decode may need one more
        if not self.running:
            free = pool.free
        # The first request that does not fit ends the list. If later, smaller ones could overtake
        # it, a long request might wait without end.
        fitting = []
        for request in self.waiting[: max(0, self._max_sequences - len(self.running))]:
            pool.find_prefix(request)
            wanted = request.tokens_wanted
            tokens = wanted if self._whole_prompts else min(wanted, self._token_budget)
            free -= pool.missing(request, tokens)
            if free < 0:
                break
            fitting.append(request)
            left -= wanted
            if fixed and left <= 0:
                break
        return fitting

    def _plan(self, waiting: Sequence[Request]) -> Batch:
        """Return the policy's plan, with requests for candidates. Refuse an impossible one."""
        running = self.running
        shown = self._show(running), self._show(waiting)
        free = self._max_sequences - len(running)
        queue = Queue(
            *shown, self._token_budget, free, self._experts, self._wants, self._whole_prompts
        )
        unplanned = dict(zip(chain(*shown), chain(running, waiting), strict=True))
        batch: Batch = []
        total = 0
        for candidate, tokens in self._policy.plan(queue):
            request = unplanned.pop(candidate, None)
            if request is None:
                twice = candidate in chain(*shown)
                self._refuse(
                    candidate,
                    "is planned twice in one step" if twice else "is planned but not in the queue",
                )
            most = request.tokens_wanted
            if not 1 <= tokens <= most:
                self._refuse(
                    candidate, f"is planned with {tokens} tokens; it wants {most}: plan 1 to {most}"
                )
            if self._whole_prompts and tokens < most:
                self._refuse(
                    candidate,
                    f"is planned with {tokens} of its {most} tokens, but batching.chunked_prefill "
                    "is false; plan all of them or none",
                )
            batch.append((request, tokens))
            total += tokens
        if total > self._token_budget and not self._may_exceed(batch):
            self._refuse(
                "step",
                f"has {total} tokens, over the budget of {self._token_budget}; `fill` plans within "
                "the budget",
            )
        self.record(batch)
        return batch

    @property
    def observed(self) -> bool:
        """Whether an observer wants plans."""
        return self._tell_planned is not None

    def record(self, batch: Batch, later: int = 0) -> None:
        """Pass a plan to the observers, whose requests are `later` rows behind it."""
        if self._tell_planned is not None:
            plan = [(request.index, request.position - later, tokens) for request, tokens in batch]
            self._tell_planned(Planned(tuple(plan)))

    def _may_exceed(self, batch: Batch) -> bool:
        """Return whether the last request of a batch is a prompt that may exceed the budget.

        It must be longer than the budget and the only prompt, and a token must be left for it.
        """
        *others, (_, tokens) = batch
        return (
            self._whole_prompts
            and tokens > self._token_budget
            and sum(count for _, count in others) < self._token_budget
            and all(request.decoding for request, _ in others)
        )

    def _experts(self, candidate: Candidate, tokens: int) -> Sequence[Sequence[int]]:
        """Answer `Queue.experts`, but only for tokens that exist."""
        request = self._requests.get(candidate)
        if self._revealed_experts is None:
            self._refuse(candidate, "has experts that this router does not reveal before a step")
        if request is None:
            self._refuse(candidate, _NOT_QUEUED)
        most = request.tokens_wanted
        if not 0 <= tokens <= most:
            self._refuse(
                candidate, f"is queried for experts of {tokens} tokens; {most} exist so far"
            )
        return self._revealed_experts(request, tokens)

    def _wants(self, candidate: Candidate) -> frozenset[Key]:
        """Answer `Queue.wants`."""
        request = self._requests.get(candidate)
        if self._revealed_wants is None:
            self._refuse(candidate, "has future keys, which this router does not reveal")
        if request is None:
            self._refuse(candidate, _NOT_QUEUED)
        return self._revealed_wants(request)

    def _refuse(self, key: object, reason: str) -> NoReturn:
        """Raise the violation of the batching policy at `key`, a candidate or a method."""
        # A violation is pickled for other processes, so it must not hold a candidate.
        name = repr(key) if isinstance(key, Candidate) else key
        raise PolicyViolation(self._policy.name, name, reason)

    def _take_blocks(self, plan: Batch) -> Batch:
        """Return the part of the plan for which KV blocks could be taken."""
        step: Batch = []
        chosen: set[int] = set()
        # Only requests that ran before may preempt others; a new one that does not fit waits on.
        was_running = {id(request) for request in self.running}
        for request, tokens in plan:
            if id(request) in was_running and (
                request.status == "waiting"  # an earlier request of this plan preempted it
                or not self._make_room(request, tokens, chosen)
            ):
                continue
            if not self.pool.grow(request, tokens):
                continue
            if request.status == "waiting":
                self.waiting.remove(request)
                request.status = "running"
                self.running.append(request)
            chosen.add(id(request))
            step.append((request, tokens))
        return step

    def _make_room(self, request: Request, tokens: int, chosen: set[int]) -> bool:
        """Preempt the youngest idle requests until `tokens` more rows fit.

        Return False if `request` itself was preempted.
        """
        while self.pool.missing(request, tokens) > self.pool.free:
            # `request` is idle as well, so there always is a victim.
            idle = [other for other in self.running if id(other) not in chosen]
            victim = idle[-1]
            if victim is request and len(self.running) == 1:
                raise InvariantError(
                    3, f"request {request.index} alone does not fit into KV memory"
                )
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        """Take all blocks from a running request and queue it again."""
        self.running.remove(request)
        self.pool.release(request)
        request.restart()
        # In order of arrival, so a preempted request waits in front of all that arrived later.
        insort(self.waiting, request, key=lambda other: other.index)
        self.preemptions += 1
