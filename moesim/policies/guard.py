"""The guard: a wrapper that checks what a policy of another package raises and returns.

`make_eviction`, `make_prefetch`, `make_batching` and `make_placement` build policies. They return
moesim's own policies as they are, and all others in a guard of the same family.

The guard turns errors into `PolicyViolation` and refuses return values of the wrong type. The
server checks, for all policies alike, whether a value of the right type is possible.

`inputs_of` and `note_of` call the two methods of a class in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from moesim.errors import PolicyViolation
from moesim.policies.base import Input, Policy
from moesim.policies.batching.base import Batching, Candidate
from moesim.policies.blame import CAUGHT, PASSED_ON, WrongType, blamed, is_foreign, violation
from moesim.policies.eviction.base import CacheContext, Eviction
from moesim.policies.placement.base import Placement, PlacementContext
from moesim.policies.prefetch.base import Prefetch, PrefetchContext
from moesim.policies.registry import find
from moesim.policies.view import Key

__all__ = [
    "find_policy",
    "has_hindsight",
    "inputs_of",
    "make_batching",
    "make_eviction",
    "make_placement",
    "make_prefetch",
    "note_of",
    "placement_lanes",
    "placement_mistakes",
    "prefetch_mistakes",
    "unguarded",
    "without_foresight",
]

Context = TypeVar("Context", CacheContext, PlacementContext)

_BASES: dict[str, type] = {
    "eviction": Eviction,
    "prefetch": Prefetch,
    "batching": Batching,
    "placement": Placement,
}


def find_policy(family: str, name: str) -> type[Any]:
    """Return the policy class registered under a name.

    Raises:
        UsageError: the name is unknown.
        PolicyViolation: the class is not a subclass of the family's base class.
    """
    policy = find(family, name)
    base = _BASES.get(family, object)
    if not (isinstance(policy, type) and issubclass(policy, base)):
        path = f"{base.__module__.removesuffix('.base')}.{base.__qualname__}"
        raise PolicyViolation(name, "class", f"{policy!r} is not a subclass of {path}")
    return policy


def inputs_of(policy: type[Any], options: Any) -> tuple[Input, ...]:
    """Return the files and folders from which a policy with these options learns.

    Raises:
        PolicyViolation: a policy of another package returns something else, or raises an error.
    """
    if not issubclass(policy, Policy):  # as `find_policy` allows for placement policies
        return ()
    with blamed(policy, "inputs"):
        return _inputs(policy.inputs(options))


def note_of(policy: type[Any], options: Any) -> str | None:
    """Return the sentence of a policy with these options for the notes of a result, or None.

    Raises:
        PolicyViolation: a policy of another package returns something else, or raises an error.
    """
    if not issubclass(policy, Policy):
        return None
    with blamed(policy, "note"):
        return _note(policy.note(options))


def has_hindsight(policy: type[Any], options: Any) -> bool:
    """Return whether a policy with these options learns from the replayed trace itself."""
    return any(each.path is None and each.part is None for each in inputs_of(policy, options))


def make_eviction(policy: type[Eviction], context: CacheContext, options: Any) -> Eviction:
    """Return an eviction policy for one cache, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(context, options)
    with blamed(policy, "__init__"):
        return _GuardedEviction(policy(without_foresight(policy, context), options), context)


def unguarded(policy: Eviction) -> Eviction:
    """Return the policy inside a guard, or the policy itself where it has none."""
    return policy._policy if isinstance(policy, _GuardedEviction) else policy


def make_prefetch(
    policy: type[Prefetch], options: Any, context: PrefetchContext | None = None
) -> Prefetch:
    """Return a prefetch policy, guarded if it comes from outside moesim.

    With a context, it is prepared for a run.
    """
    if is_foreign(policy):
        with blamed(policy, "__init__"):
            made: Prefetch = _GuardedPrefetch(policy(options))
    else:
        made = policy(options)
    if context is not None:
        made.prepare(context)
    return made


def make_batching(policy: type[Batching], options: Any) -> Batching:
    """Return a batching policy, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(options)
    with blamed(policy, "__init__"):
        return _GuardedBatching(policy(options))


def make_placement(policy: type[Placement], context: PlacementContext, options: Any) -> Placement:
    """Return a placement policy, guarded if it comes from outside moesim."""
    if not is_foreign(policy):
        return policy(context, options)
    with blamed(policy, "__init__"):
        return _GuardedPlacement(policy(without_foresight(policy, context), options), context)


def placement_lanes(policy: type[Placement]) -> tuple[str, ...]:
    """Return the lanes that a placement policy declares.

    Raise `PolicyViolation` if they are no tuple of names.
    """
    lanes: Any = policy.lanes
    if not (isinstance(lanes, tuple) and all(isinstance(lane, str) for lane in lanes)):
        raise PolicyViolation(
            policy.name, "lanes", f"is {_shown(lanes)}; it must be a tuple of names of lanes"
        )
    return lanes


def placement_mistakes(
    policy: type[Placement], context: PlacementContext, options: Any
) -> list[tuple[str, str]]:
    """Return the options of a placement policy that cannot hold, each with what is wrong."""
    with blamed(policy, "mistakes"):
        return _mistakes(policy.mistakes(options, context))


def prefetch_mistakes(
    policy: type[Prefetch], context: PrefetchContext, options: Any
) -> list[tuple[str, str]]:
    """Return the options of a prefetch policy that cannot hold, each with what is wrong."""
    with blamed(policy, "mistakes"):
        return _mistakes(policy.mistakes(options, context))


def _mistakes(answer: Any) -> list[tuple[str, str]]:
    if not isinstance(answer, list | tuple) or not all(map(_is_mistake, answer)):
        raise WrongType(
            f"returns {_shown(answer)}; it must return a list of (option, message) pairs"
        )
    return list(answer)


def _is_mistake(pair: Any) -> bool:
    return isinstance(pair, tuple) and [*map(type, pair)] == [str, str]


def without_foresight(policy: type[Eviction] | type[Placement], context: Context) -> Context:
    """Return the context that a policy may see.

    A policy from outside that is not `clairvoyant` gets no `future`, and no counts of the replayed
    trace.
    """
    if policy.clairvoyant or not is_foreign(policy):
        return context
    popularity = _without_hindsight(policy, context.popularity)
    if isinstance(context, CacheContext):
        return replace(context, future=None, popularity=popularity)
    return replace(context, popularity=popularity)


def _without_hindsight(
    policy: type[Eviction] | type[Placement],
    popularity: Callable[[Any], Mapping[Key, int]] | None,
) -> Callable[[Any], Mapping[Key, int]] | None:
    """Return `popularity`, refusing counts of the replayed trace: they depend on the future."""
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


# --- return values of the right type --------------------------------------------------------------


def _key(key: Any) -> Key:
    # Not `isinstance`, for which True is an int and would pass for key 1.
    if type(key) is not int:
        raise WrongType(f"returns {_shown(key)} where a key must be a plain int; use int(...)")
    return key


def _keys(answer: Any) -> tuple[Key, ...]:
    # Strings and mappings are collections, too; generators are not, and may never end.
    if not isinstance(answer, Collection) or isinstance(answer, str | bytes | Mapping):
        raise WrongType(f"returns {_shown(answer)}; it must return a list, tuple or set of keys")
    return tuple([_key(key) for key in answer])


def _key_or_none(answer: Any) -> Key | None:
    return None if answer is None else _key(answer)


def _keys_or_none(answer: Any) -> tuple[Key, ...] | None:
    return None if answer is None else _keys(answer)


def _lane(answer: Any) -> str:
    if not isinstance(answer, str):
        raise WrongType(f"returns {_shown(answer)} where the name of a lane must be")
    return answer


def _lanes_of_keys(answer: Any) -> dict[Key, str]:
    if not isinstance(answer, Mapping):
        raise WrongType(f"returns {_shown(answer)}; it must return a dict from keys to lanes")
    return {_key(key): _lane(lane) for key, lane in answer.items()}


def _boolean(answer: Any) -> bool:
    if type(answer) is not bool:
        raise WrongType(f"returns {_shown(answer)}; it must return True or False")
    return answer


def _pairs(answer: Any) -> list[tuple[Candidate, int]]:
    if not isinstance(answer, list | tuple):
        raise WrongType(
            f"returns {_shown(answer)}; it must return a list of (request, tokens) pairs"
        )
    for pair in answer:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise WrongType(
                f"returns a list with {_shown(pair)}; each item must be a (request, tokens) pair"
            )
        request, tokens = pair
        if not isinstance(request, Candidate):
            raise WrongType(f"plans {_shown(request)}, which is not in the queue")
        if type(tokens) is not int:
            raise WrongType(f"plans {_shown(tokens)}; the whole number of tokens must be an int")
    return [(request, tokens) for request, tokens in answer]


def _inputs(answer: Any) -> tuple[Input, ...]:
    if not isinstance(answer, list | tuple):
        raise WrongType(f"returns {_shown(answer)}; it must return a list of Input")
    for each in answer:
        if not isinstance(each, Input):
            raise WrongType(f"returns a list with {_shown(each)}; each item must be an Input")
        if not isinstance(each.option, str) or type(each.trace) is not bool:
            raise WrongType(f"returns {each!r:.120}; `option` must be text, `trace` True or False")
        if not isinstance(each.path, Path) and not (each.path is None and each.trace):
            raise WrongType(
                f"returns an Input whose path is {_shown(each.path)}; it must be a pathlib.Path, "
                "or None for the replayed trace, with `trace=True`"
            )
        if each.part is not None and not (each.trace and _is_part(each.part)):
            raise WrongType(
                f"returns an Input whose part is {_shown(each.part)}; it must be two shares like "
                "(0, 0.5), with `trace=True`"
            )
    return tuple(answer)


def _is_part(part: Any) -> bool:
    numbers = isinstance(part, tuple) and len(part) == 2 and {*map(type, part)} <= {int, float}
    return numbers and bool(0 <= part[0] < part[1] <= 1)


def _note(answer: Any) -> str | None:
    if answer is not None and not (isinstance(answer, str) and answer.strip()):
        raise WrongType(f"returns {_shown(answer)}; it must return a sentence or None")
    return None if answer is None else " ".join(answer.split())


def _ignored(answer: Any) -> None:
    """Drop the return value of `insert`, `remove` and `prepare`, which has no meaning."""


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}" if value is not None else "None"


def _guarded(method: str, check: Callable[[Any], Any]) -> Any:
    """Return a function that calls `method` of the guarded policy and checks what it returns."""

    def call(self: Any, *arguments: Any) -> Any:
        try:
            return check(getattr(self._policy, method)(*arguments))
        except PASSED_ON:
            raise
        except CAUGHT as error:
            raise violation(self.name, method, error) from error

    return call


# --- the guards -----------------------------------------------------------------------------------


class _GuardedEviction(Eviction):
    """A guarded eviction policy. Its capacity is the cache's, whatever the policy sets."""

    def __init__(self, policy: Eviction, context: CacheContext) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.inputs = partial(inputs_of, kind)  # type: ignore[method-assign]
        self.note = partial(note_of, kind)  # type: ignore[method-assign]
        self.looks_ahead = kind.looks_ahead  # type: ignore[misc]
        self.sees_requests = kind.sees_requests  # type: ignore[misc]
        self.recent_rows = policy.recent_rows
        self.capacity = context.capacity
        self.sizes = context.sizes
        self.always = context.admission == "always"
        self.options = getattr(policy, "options", None)
        self._policy = policy

    @property
    def book(self) -> Any:  # type: ignore[override]
        """The policy's own book of residents."""
        # The policy may replace it at any time, so it is looked up at each audit.
        book = getattr(self._policy, "book", None)
        if not isinstance(book, Mapping):
            raise PolicyViolation(
                self.name,
                "book",
                f"is {_shown(book)}; it must be a dict whose keys are residents",
            )
        return book

    preload = _guarded("preload", _keys)
    decide = _guarded("decide", _keys)
    victim = _guarded("victim", _key_or_none)
    insert = _guarded("insert", _ignored)
    remove = _guarded("remove", _ignored)


class _GuardedPrefetch(Prefetch):
    """A guarded prefetch policy."""

    def __init__(self, policy: Prefetch) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.inputs = partial(inputs_of, kind)  # type: ignore[method-assign]
        self.note = partial(note_of, kind)  # type: ignore[method-assign]
        self.needs_routing = kind.needs_routing  # type: ignore[misc]
        self.needs_predictions = policy.needs_predictions  # type: ignore[misc]
        self.active = kind.active  # type: ignore[misc]
        self.options = getattr(policy, "options", None)
        self._policy = policy

    prepare = _guarded("prepare", _ignored)
    wanted = _guarded("wanted", _keys)


class _GuardedBatching(Batching):
    """A guarded batching policy."""

    def __init__(self, policy: Batching) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.inputs = partial(inputs_of, kind)  # type: ignore[method-assign]
        self.note = partial(note_of, kind)  # type: ignore[method-assign]
        self.needs_routing = kind.needs_routing  # type: ignore[misc]
        self.needs_static = kind.needs_static  # type: ignore[misc]
        self.options = getattr(policy, "options", None)
        self._policy = policy
        # The scheduler skips the call if `ready` is the base class's own; so the guard shows that.
        if kind.ready is Batching.ready:
            self.ready = policy.ready

    ready = _guarded("ready", _boolean)
    plan = _guarded("plan", _pairs)


class _GuardedPlacement(Placement):
    """A guarded placement policy."""

    def __init__(self, policy: Placement, context: PlacementContext) -> None:
        kind = type(policy)
        self.name = kind.name  # type: ignore[misc]
        self.clairvoyant = kind.clairvoyant  # type: ignore[misc]
        self.lanes = kind.lanes  # type: ignore[misc]
        self.context = context
        self.options = getattr(policy, "options", None)
        self._policy = policy

    layer_lane = _guarded("layer_lane", _lane)
    residents = _guarded("residents", _keys_or_none)
    place = _guarded("place", _lanes_of_keys)
