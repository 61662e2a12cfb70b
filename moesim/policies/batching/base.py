"""Batching: which queued requests, and how many of their tokens, form the next step.

A policy orders candidates; `fill` then hands out the token budget in that order. A decoding
request needs one token, a prefilling one as many as it has left (chunked prefill: it takes what
the budget leaves). Memory is the server's business: it may preempt or hold back what is planned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moesim.errors import PolicyViolation
from moesim.policies.registry import NoOptions
from moesim.policies.view import Key


class Candidate:
    """What batching sees of a request: what a real scheduler knows, read-only.

    One object stands for a request as long as it is queued; the scheduler brings it up to date
    before it asks. How many tokens a request will emit is not in it.
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
        """Order of arrival."""
        return self._index

    @property
    def prompt_tokens(self) -> int:
        """Length of its prompt."""
        return self._prompt_tokens

    @property
    def emitted(self) -> int:
        """Tokens that it has emitted so far."""
        return self._emitted

    @property
    def position(self) -> int:
        """Tokens whose keys and values are computed; a preemption loses them."""
        return self._position

    @property
    def tokens_wanted(self) -> int:
        """Tokens it could use in the next step."""
        return self._tokens_wanted

    @property
    def decoding(self) -> bool:
        """Its prompt (and whatever a preemption lost) is computed: it needs one token a step."""
        return self._decoding

    def _update(self, emitted: int, position: int) -> None:
        """For the scheduler alone. Policies ask more often than it does, so sums are made here."""
        self._emitted = emitted
        self._position = position
        self._tokens_wanted = wanted = self._prompt_tokens + emitted - position
        self._decoding = emitted > 0 and wanted == 1

    def __repr__(self) -> str:
        return f"request {self._index}"


class ClairvoyantCandidate(Candidate):
    """What a clairvoyant policy sees besides: how long its request will be."""

    __slots__ = ("_output_tokens",)

    def __init__(self, index: int, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(index, prompt_tokens)
        self._output_tokens = output_tokens

    @property
    def output_tokens(self) -> int:
        """Tokens that it will have emitted when it ends."""
        return self._output_tokens


Experts = Callable[[Any, int], Sequence[Sequence[int]]]
"""Asked for a request and a number of tokens: for each of its next tokens, the experts that it
wants in the first MoE layer, where a router decoupled from the layers reveals them."""


def unknown_experts(request: Candidate, tokens: int) -> Sequence[Sequence[int]]:
    """Of a router that decides layer by layer nothing is known before a step."""
    raise PolicyViolation(
        "batching",
        f"request {request.index}",
        "asks for experts of queued tokens, which this router does not reveal",
    )


Wants = Callable[[Any], frozenset[Key]]
"""Asked for a request: the keys of all layers that each of its tokens wants, those to come as well,
where a static router reveals them."""


def unknown_wants(request: Candidate) -> frozenset[Key]:
    """Of a router that looks at tokens nothing is known of those that do not exist."""
    raise PolicyViolation(
        "batching",
        f"request {request.index}",
        "asks what a request will ever want, which this router does not reveal",
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """`running` hold KV blocks, in order of admission; `waiting` do not, in order of arrival.

    Both are tuples of `Candidate`.
    """

    running: Sequence[Any]
    waiting: Sequence[Any]
    token_budget: int
    free_sequences: int
    experts: Experts = unknown_experts
    wants: Wants = unknown_wants


Plan = list[tuple[Any, int]]


class Batching(ABC):
    """Base of all batching policies. `needs_routing` ones ask which experts queued tokens want,
    `needs_static` ones what requests will ever want; they work only with routers that reveal it.
    `clairvoyant` ones see how long requests will be and are bounds.
    """

    name: ClassVar[str]
    clairvoyant: ClassVar[bool] = False
    needs_routing: ClassVar[bool] = False
    needs_static: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def ready(self, running: Sequence[Any], waiting: Sequence[Any]) -> bool:
        """Whether to form a step now; False waits for the next arrival. To wait when no request
        is still to arrive is a `PolicyViolation`."""
        return True

    @abstractmethod
    def plan(self, queue: Queue) -> Plan:
        """(request, tokens) pairs of the next step, most important first."""


def fill(queue: Queue, order: Iterable[Any]) -> Plan:
    """Hand out the token budget in the given order; at most `free_sequences` waiting requests."""
    plan: Plan = []
    left, free = queue.token_budget, queue.free_sequences
    holding = set(map(id, queue.running))
    for request in order:
        if not left:
            break
        if id(request) not in holding:
            if not free:
                continue
            free -= 1
        tokens = min(left, request.tokens_wanted)
        plan.append((request, tokens))
        left -= tokens
    return plan
