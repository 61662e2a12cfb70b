"""Batching: which queued requests form the next step, and how many tokens each computes.

A policy orders the candidates, and `fill` distributes the token budget in that order. A decoding
request needs one token. A prefilling request takes as many of its tokens as the budget allows
(chunked prefill), or all of them in one step (`Queue.whole_prompts`).

Policies ignore KV memory. The scheduler checks it afterwards, and may preempt or hold back
requests of a plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moesim.errors import PolicyViolation
from moesim.policies.base import Policy
from moesim.policies.view import Key


class Candidate:
    """A request as batching policies see it: read-only, and only what a real scheduler knows.

    The number of tokens that the request will emit is not part of it. One object represents a
    request as long as it is queued; the scheduler updates the object before each call.
    """

    __slots__ = (
        "_decoding",
        "_emitted",
        "_index",
        "_position",
        "_prompt_tokens",
        "_tokens_wanted",
    )

    def __init__(self, index: int, prompt_tokens: int) -> None:
        self._index = index
        self._prompt_tokens = prompt_tokens
        self._update(0, 0)

    @property
    def index(self) -> int:
        """Place in the order of arrival, from 0."""
        return self._index

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return self._prompt_tokens

    @property
    def emitted(self) -> int:
        """Number of tokens emitted so far."""
        return self._emitted

    @property
    def position(self) -> int:
        """Number of tokens whose keys and values are computed; a preemption resets it."""
        return self._position

    @property
    def tokens_wanted(self) -> int:
        """Number of tokens that the request could compute in the next step."""
        return self._tokens_wanted

    @property
    def decoding(self) -> bool:
        """Whether the request needs just one token to emit its next one.

        False during its prompt, and while rows lost by a preemption are computed again.
        """
        return self._decoding

    def _update(self, emitted: int, position: int) -> None:
        """Bring the candidate up to date. Only the scheduler may call this."""
        # Policies read these sums far more often than they change.
        self._emitted = emitted
        self._position = position
        self._tokens_wanted = wanted = self._prompt_tokens + emitted - position
        self._decoding = emitted > 0 and wanted == 1

    def __repr__(self) -> str:
        return f"request {self._index}"


class ClairvoyantCandidate(Candidate):
    """A request as clairvoyant policies see it: they also know how long it will be."""

    __slots__ = ("_output_tokens",)

    def __init__(self, index: int, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(index, prompt_tokens)
        self._output_tokens = output_tokens

    @property
    def output_tokens(self) -> int:
        """Number of tokens that the request will have emitted when it ends."""
        return self._output_tokens


QueuedExperts = Callable[[Any, int], Sequence[Sequence[int]]]
"""Function of a request and a number of tokens. It returns, for each of the request's next tokens,
the experts wanted in the first MoE layer. A decoupled router reveals them."""


def unknown_experts(request: Candidate, tokens: int) -> Sequence[Sequence[int]]:
    """Raise `PolicyViolation`: a layer-wise router reveals no experts before a step."""
    raise PolicyViolation(
        "batching",
        f"request {request.index}",
        "asks for the experts of queued tokens, which this router does not reveal; "
        "use a trace of a decoupled or static router",
    )


RequestKeys = Callable[[Any], frozenset[Key]]
"""Function of a request. It returns the keys of all layers that every token of the request wants,
including tokens that do not exist yet. A static router reveals them."""


def unknown_wants(request: Candidate) -> frozenset[Key]:
    """Raise `PolicyViolation`: a router that reads tokens reveals nothing of later ones."""
    raise PolicyViolation(
        "batching",
        f"request {request.index}",
        "asks what a request will ever want, which this router does not reveal; "
        "use a trace of a static router",
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """What a batching policy sees: the candidates, and the limits of the next step.

    `running` candidates hold KV blocks and are in order of admission. `waiting` ones hold none and
    are in order of arrival. `token_budget` limits the tokens of the step, and `free_sequences` the
    waiting candidates that it may admit. `experts` and `wants` raise `PolicyViolation` where the
    router does not reveal the answer.

    With `whole_prompts`, a step computes all wanted tokens of a request or none. A prompt that is
    longer than the budget may then exceed it, as the last request and only prompt of the plan.
    """

    running: Sequence[Any]
    waiting: Sequence[Any]
    token_budget: int
    free_sequences: int
    experts: QueuedExperts = unknown_experts
    wants: RequestKeys = unknown_wants
    whole_prompts: bool = False

    def most_tokens(self, request: Any) -> int:
        """Return the most tokens that a request can get in the step."""
        wanted = int(request.tokens_wanted)
        return wanted if self.whole_prompts else min(wanted, self.token_budget)


StepPlan = list[tuple[Any, int]]


class Batching(Policy, ABC):
    """Base class of batching policies.

    Class attributes declare what a policy needs:

    - `clairvoyant`: sees how long requests will be, so it is a bound and no real policy;
    - `needs_routing`: calls `Queue.experts`, which works with decoupled and static routers;
    - `needs_static`: calls `Queue.wants`, which works with static routers.
    """

    needs_routing: ClassVar[bool] = False
    needs_static: ClassVar[bool] = False

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def ready(self, running: Sequence[Any], waiting: Sequence[Any]) -> bool:
        """Return whether to form a step now; False waits for the next arrival.

        The server raises `PolicyViolation` if no request is still to arrive.
        """
        return True

    @abstractmethod
    def plan(self, queue: Queue) -> StepPlan:
        """Return (request, tokens) pairs of the next step, most important first."""


def fill(queue: Queue, order: Iterable[Any]) -> StepPlan:
    """Return a plan that gives the token budget to requests in the given order.

    At most `free_sequences` of the waiting requests are in it. With `Queue.whole_prompts`:

    - A prompt within the budget joins if it fits into what is left. Otherwise it waits, and so do
      all later prompts: a long prompt would starve if shorter ones could overtake it. Decodes may
      still use what is left.
    - A prompt longer than the whole budget joins if a token is left and the plan has no other
      prompt. It exceeds the budget and ends the plan.
    """
    plan: StepPlan = []
    left, free = queue.token_budget, queue.free_sequences
    holding = set(map(id, queue.running))
    prompt_waits = False
    for request in order:
        if left <= 0:
            break
        starts = id(request) not in holding
        if starts and not free:
            continue  # later requests in the order may be running ones
        if prompt_waits and (starts or not request.decoding):
            continue
        tokens = request.tokens_wanted
        if tokens > left and not queue.whole_prompts:
            tokens = left
        elif tokens > left and (
            tokens <= queue.token_budget or not all(planned.decoding for planned, _ in plan)
        ):
            prompt_waits = True
            continue
        free -= starts
        plan.append((request, tokens))
        left -= tokens
    return plan
