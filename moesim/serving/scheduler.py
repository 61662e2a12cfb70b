"""The queue: who runs in the next step, under the token budget, the sequence cap and KV memory.

A batching policy proposes; memory disposes. A running request that finds no block preempts the
youngest running one that is not in the step yet (recompute: it loses its blocks and queues
again). Waiting requests are shown to the policy only as far as free blocks reach.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import index
from typing import NoReturn

from moesim.errors import InvariantError, PolicyViolation
from moesim.policies.batching.base import (
    Batching,
    Experts,
    Plan,
    Queue,
    Wants,
    unknown_experts,
    unknown_wants,
)
from moesim.serving.kv import BlockPool
from moesim.serving.request import Request


class Scheduler:
    """Holds the waiting and the running requests."""

    def __init__(
        self,
        policy: Batching,
        pool: BlockPool,
        *,
        token_budget: int,
        max_sequences: int,
        experts: Experts = unknown_experts,
        wants: Wants = unknown_wants,
    ) -> None:
        """What the router reveals: `experts` of queued tokens, `wants` of all tokens for ever."""
        self._policy = policy
        self._revealed = experts, wants
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
        self.waiting.append(request)
        return True

    def next_step(self) -> Plan:
        """(request, tokens) pairs with their KV blocks taken; empty if nothing is queued, or if
        the policy would rather wait for the next arrival."""
        if not self.waiting and not self.running:
            return []
        if not self._policy.ready(self.running, self.waiting):
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

    def _ask(self, waiting: Sequence[Request]) -> Plan:
        free_sequences = self._max_sequences - len(self.running)
        queue = Queue(
            tuple(self.running), tuple(waiting), self._token_budget, free_sequences, *self._revealed
        )
        answer = self._policy.plan(queue)
        try:
            plan = [(request, index(tokens)) for request, tokens in answer]
        except (TypeError, ValueError):
            self._refuse("step", "is no list of pairs: a request and a whole number of tokens")
        known = {id(request) for request in (*self.running, *waiting)}
        seen: set[int] = set()
        total = 0
        for request, tokens in plan:
            if id(request) not in known:
                self._refuse(request, "is not in the queue it was shown")
            if id(request) in seen:
                self._refuse(request, "is planned twice in one step")
            if not 1 <= tokens <= request.tokens_wanted:
                self._refuse(request, f"gets {tokens} tokens and wants {request.tokens_wanted}")
            seen.add(id(request))
            total += tokens
        if total > self._token_budget:
            self._refuse("step", f"has {total} tokens, over the budget of {self._token_budget}")
        return plan

    def _refuse(self, key: object, reason: str) -> NoReturn:
        name = f"request {key.index}" if isinstance(key, Request) else key
        raise PolicyViolation(self._policy.name, name, reason)

    def _realise(self, plan: Plan) -> Plan:
        step: Plan = []
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
