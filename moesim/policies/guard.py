"""The border to policies of other packages: all that they raise or answer is checked here.

A policy is made by one of the functions below. One of moesim's own is returned as it is; one that
comes from outside is returned in a guard of the same family. The guard asks the policy, turns
whatever it raises into a `PolicyViolation`, and refuses answers of the wrong type. Whether an
answer of the right type is possible is checked by the server, for all policies alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from moesim.errors import PolicyViolation
from moesim.policies.batching.base import Batching, Candidate
from moesim.policies.blame import CAUGHT, PASSED_ON, Nonsense, blamed, is_foreign, violation
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.prefetch.base import Prefetch
from moesim.policies.registry import find
from moesim.policies.view import Key

__all__ = ["find_policy", "make_batching", "make_eviction", "make_prefetch", "without_foresight"]

_BASES: dict[str, type] = {"eviction": Eviction, "prefetch": Prefetch, "batching": Batching}


def find_policy(family: str, name: str) -> type[Any]:
    """The class filed under a name, which must be one of its family.

    Raises `UsageError` for an unknown name, `PolicyViolation` for what is no policy.
    """
    policy = find(family, name)
    base = _BASES.get(family, object)
    if not (isinstance(policy, type) and issubclass(policy, base)):
        path = f"{base.__module__.removesuffix('.base')}.{base.__qualname__}"
        raise PolicyViolation(name, "class", f"{policy!r} is no subclass of {path}")
    return policy


def make_eviction(policy: type[Eviction], context: CacheContext, options: Any) -> Eviction:
    """An eviction policy for one cache, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(context, options)
    with blamed(policy, "__init__"):
        return _GuardedEviction(policy(without_foresight(policy, context), options), context)


def make_prefetch(policy: type[Prefetch], options: Any) -> Prefetch:
    """A prefetch policy, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(options)
    with blamed(policy, "__init__"):
        return _GuardedPrefetch(policy(options))


def make_batching(policy: type[Batching], options: Any) -> Batching:
    """A batching policy, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(options)
    with blamed(policy, "__init__"):
        return _GuardedBatching(policy(options))


def without_foresight(policy: type[Eviction], context: CacheContext) -> CacheContext:
    """The context less what tells of the future, for policies from outside that claim no sight of
    it."""
    if policy.clairvoyant or not is_foreign(policy):
        return context
    popularity = _without_hindsight(policy, context.popularity)
    return replace(context, future=None, popularity=popularity)


def _without_hindsight(
    policy: type[Eviction], popularity: Callable[[Any], Mapping[Key, int]] | None
) -> Callable[[Any], Mapping[Key, int]] | None:
    """Counts of named profiles alone: those of the replayed trace tell of the future."""
    if popularity is None:
        return None

    def of_profile(profile: Any) -> Mapping[Key, int]:
        if profile is None:
            raise PolicyViolation(
                policy.name,
                "popularity",
                "asks for counts of the replayed trace, which tell of the future; name the trace "
                "to learn from, or declare `clairvoyant = True`",
            )
        return popularity(profile)

    return of_profile


# --- what is a proper answer ----------------------------------------------------------------------


def _key(key: Any) -> Key:
    if type(key) is not int:
        raise Nonsense(f"answers {_shown(key)} where a key is wanted: a plain int")
    return key


def _keys(answer: Any) -> tuple[Key, ...]:
    if not isinstance(answer, Collection) or isinstance(answer, str | bytes | Mapping):
        raise Nonsense(f"answers {_shown(answer)}, and no list, tuple or set of keys")
    return tuple([_key(key) for key in answer])


def _key_or_none(answer: Any) -> Key | None:
    return None if answer is None else _key(answer)


def _yes_or_no(answer: Any) -> bool:
    if type(answer) is not bool:
        raise Nonsense(f"answers {_shown(answer)}, neither True nor False")
    return answer


def _pairs(answer: Any) -> list[tuple[Candidate, int]]:
    if not isinstance(answer, list | tuple):
        raise Nonsense(f"answers {_shown(answer)}, which is no list of pairs")
    for pair in answer:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Nonsense(f"holds {_shown(pair)}, so it is no list of pairs")
        request, tokens = pair
        if not isinstance(request, Candidate):
            raise Nonsense(f"plans {_shown(request)}, which is not in the queue it was shown")
        if type(tokens) is not int:
            raise Nonsense(f"plans {_shown(tokens)}, which is no whole number of tokens (an int)")
    return [(request, tokens) for request, tokens in answer]


def _nothing(answer: Any) -> None:
    """What `insert` and `remove` answer has no meaning."""


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}" if value is not None else "None"


def _guarded(question: str, accept: Callable[[Any], Any]) -> Any:
    """A method that asks the policy inside and accepts its answer, or blames it."""

    def method(self: Any, *arguments: Any) -> Any:
        try:
            return accept(getattr(self._policy, question)(*arguments))
        except PASSED_ON:
            raise
        except CAUGHT as error:
            raise violation(self.name, question, error) from error

    return method


# --- the guards -----------------------------------------------------------------------------------


class _GuardedEviction(Eviction):
    """An eviction policy from outside. Its capacity is the cache's, whatever it says."""

    def __init__(self, policy: Eviction, context: CacheContext) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.looks_ahead = kind.looks_ahead  # type: ignore[misc]
        self.capacity = context.capacity
        self.always = context.admission == "always"
        self.options = getattr(policy, "options", None)
        self._policy = policy

    @property
    def book(self) -> Any:  # type: ignore[override]
        """The policy's own."""
        book = getattr(self._policy, "book", None)
        if not isinstance(book, Mapping):
            raise PolicyViolation(
                self.name, "book", f"is {_shown(book)}, and no dict with a key for each resident"
            )
        return book

    preload = _guarded("preload", _keys)
    decide = _guarded("decide", _keys)
    victim = _guarded("victim", _key_or_none)
    insert = _guarded("insert", _nothing)
    remove = _guarded("remove", _nothing)


class _GuardedPrefetch(Prefetch):
    """A prefetch policy from outside."""

    def __init__(self, policy: Prefetch) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.needs_routing = kind.needs_routing  # type: ignore[misc]
        self.active = kind.active  # type: ignore[misc]
        self.options = getattr(policy, "options", None)
        self._policy = policy

    wanted = _guarded("wanted", _keys)


class _GuardedBatching(Batching):
    """A batching policy from outside."""

    def __init__(self, policy: Batching) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.needs_routing = kind.needs_routing  # type: ignore[misc]
        self.needs_static = kind.needs_static  # type: ignore[misc]
        self.options = getattr(policy, "options", None)
        self._policy = policy
        if kind.ready is Batching.ready:
            self.ready = policy.ready

    ready = _guarded("ready", _yes_or_no)
    plan = _guarded("plan", _pairs)
