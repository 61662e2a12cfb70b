"""The queue: who runs in the next step, under the token budget, the sequence cap and KV memory.

A batching policy proposes; memory disposes. A running request that finds no block preempts the
youngest running one that is not in the step yet (recompute: it loses its blocks and queues
again). Waiting requests are shown to the policy only as far as free blocks reach.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NoReturn

from moesim.errors import InvariantError, PolicyViolation
from moesim.policies.batching.base import Batching, Candidate, ClairvoyantCandidate, Queue
from moesim.policies.view import Key
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request

Batch = list[tuple[Request, int]]
"""Requests of a step, each with how many of its tokens are computed."""


class Scheduler:
    """Holds the waiting and the running requests; the policy sees candidates in their place."""

    def __init__(
        self,
        policy: Batching,
        pool: BlockPool,
        *,
        token_budget: int,
        max_sequences: int,
        experts: Callable[[Request, int], Sequence[Sequence[int]]] | None = None,
        wants: Callable[[Request], frozenset[Key]] | None = None,
    ) -> None:
        """What the router reveals: `experts` of queued tokens, `wants` of all tokens for ever."""
        self._policy = policy
        # Most policies are always ready, and many requests may wait: ask only those that say more.
        self._may_wait = getattr(policy.ready, "__func__", None) is not Batching.ready
        self._revealed_experts = experts
        self._revealed_wants = wants
        self._candidates: dict[Request, Candidate] = {}
        self._requests: dict[Candidate, Request] = {}
        self.pool = pool
        self._token_budget = token_budget
        self._max_sequences = max_sequences
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0

    def arrive(self, request: Request) -> bool:
        """Queue a request; False if it could never fit, even alone (it is rejected)."""
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
        """(request, tokens) pairs with their KV blocks taken; empty if nothing is queued, or if
        the policy would rather wait for the next arrival."""
        if not self.waiting and not self.running:
            return []
        if self._may_wait and not self._policy.ready(
            self._show(self.running), self._show(self.waiting)
        ):
            return []
        waiting = self._admissible()
        while True:
            preemptions = self.preemptions
            if step := self._realise(self._ask(waiting)):
                return step
            if not waiting and self.preemptions == preemptions:
                raise PolicyViolation(
                    self._policy.name, "step", "formed an empty step while work is queued"
                )
            # Nobody new is let in; or one that was planned alone found no block but its own and
            # went, which leaves room for others. The last one that runs always fits.
            waiting = []

    def finish(self, request: Request) -> None:
        """A request emitted its last token."""
        request.status = "finished"
        self.running.remove(request)
        self.pool.release(request)
        del self._requests[self._candidates.pop(request)]

    def close(self) -> None:
        """No request is still to arrive, and no step was formed: the queue must be empty.

        Raises `PolicyViolation` if requests are left, for which only the policy can be to blame.
        """
        if left := len(self.waiting) + len(self.running):
            self._refuse("ready", f"waits while no request is to arrive and {left} are queued")

    def _show(self, requests: Sequence[Request]) -> tuple[Candidate, ...]:
        """The candidates that stand for these requests, brought up to date."""
        shown = []
        for request in requests:
            candidate = self._candidates[request]
            candidate._update(request.emitted, request.position)
            shown.append(candidate)
        return tuple(shown)

    def _admissible(self) -> list[Request]:
        """The waiting requests whose next rows fit into free blocks, in order, without gaps."""
        pool = self.pool
        free = pool.free - len(self.running)  # each running decode may need one more
        if not self.running:
            free = pool.free
        fitting = []
        for request in self.waiting[: max(0, self._max_sequences - len(self.running))]:
            free -= pool.blocks_for(
                request.position + min(request.tokens_wanted, self._token_budget)
            )
            if free < 0:
                break
            fitting.append(request)
        return fitting

    def _ask(self, waiting: Sequence[Request]) -> Batch:
        running = self.running
        shown = self._show(running), self._show(waiting)
        free = self._max_sequences - len(running)
        queue = Queue(*shown, self._token_budget, free, self._experts, self._wants)
        left = dict(zip(chain(*shown), chain(running, waiting), strict=True))
        batch: Batch = []
        total = 0
        for candidate, tokens in self._policy.plan(queue):
            request = left.pop(candidate, None)
            if request is None:
                twice = candidate in chain(*shown)
                self._refuse(
                    candidate,
                    "is planned twice in one step" if twice else "is not in the queue it was shown",
                )
            if not 1 <= tokens <= request.tokens_wanted:
                self._refuse(candidate, f"gets {tokens} tokens and wants {request.tokens_wanted}")
            batch.append((request, tokens))
            total += tokens
        if total > self._token_budget:
            self._refuse("step", f"has {total} tokens, over the budget of {self._token_budget}")
        return batch

    def _experts(self, candidate: Candidate, tokens: int) -> Sequence[Sequence[int]]:
        """What `Queue.experts` answers: of tokens that exist, and of no others."""
        request = self._requests.get(candidate)
        if self._revealed_experts is None:
            self._refuse(candidate, "asks for experts, which this router does not reveal")
        if request is None:
            self._refuse(candidate, "is asked about and is not queued")
        if not 0 <= tokens <= request.tokens_wanted:
            self._refuse(
                candidate, f"asks for experts of {tokens} tokens; {request.tokens_wanted} exist"
            )
        return self._revealed_experts(request, tokens)

    def _wants(self, candidate: Candidate) -> frozenset[Key]:
        """What `Queue.wants` answers."""
        request = self._requests.get(candidate)
        if self._revealed_wants is None:
            self._refuse(candidate, "asks what it will ever want: this router does not reveal it")
        if request is None:
            self._refuse(candidate, "is asked about and is not queued")
        return self._revealed_wants(request)

    def _refuse(self, key: object, reason: str) -> NoReturn:
        name = repr(key) if isinstance(key, Candidate) else key
        raise PolicyViolation(self._policy.name, name, reason)

    def _realise(self, plan: Batch) -> Batch:
        step: Batch = []
        chosen: set[int] = set()
        was_running = {id(request) for request in self.running}
        for request, tokens in plan:
            if id(request) in was_running and (
                request.status == "waiting"  # preempted a moment ago, for this very step
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
        """Preempt the youngest idle requests until `tokens` more rows fit; False if `request`
        itself had to go, or must sit this step out."""
        while self.pool.missing(request, tokens) > self.pool.free:
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
        self.running.remove(request)
        self.pool.release(request)
        request.restart()
        insort(self.waiting, request, key=lambda other: other.index)
        self.preemptions += 1
