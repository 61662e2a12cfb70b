"""Any error or wrong answer of a policy from another package is a violation that names it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario, tiny_trace

from moesim.errors import PolicyViolation, UsageError
from moesim.policies import View, find, names, parse_options
from moesim.policies.batching import Batching, Queue, fill
from moesim.policies.blame import is_foreign
from moesim.policies.eviction import LRU, Eviction, Ranked
from moesim.policies.guard import make_batching, make_prefetch
from moesim.policies.prefetch import Prefetch
from moesim.simulate.curve import curve

Ask = Callable[..., Any]


def serve(family: str, name: str, **changes: Any) -> None:
    sections = {"eviction": "cache", "prefetch": "prefetch", "batching": "batching"}
    chosen: dict[str, Any] = {"cache": {"slots": "3/layer"}, "prefetch": {}, "batching": {}}
    if family == "eviction":
        chosen["prefetch"] = {"policy": "predicted", "options": {"depth": 2}}
    chosen[sections[family]]["policy"] = name
    trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=4, seed=2)
    run_on(plan_of(tiny_scenario(**chosen, **changes), trace))


def caught(monkeypatch: pytest.MonkeyPatch, family: str, policy: type[Any]) -> PolicyViolation:
    name = enlist(monkeypatch, family, policy)
    with pytest.raises(PolicyViolation) as violation:
        serve(family, name)
    assert violation.value.policy == name
    assert "\n" not in str(violation.value)
    return violation.value


BASES: dict[str, type[Any]] = {"eviction": LRU, "prefetch": Prefetch, "batching": Batching}
QUESTIONS = {
    "eviction": ["preload", "decide", "victim", "insert", "remove"],
    "prefetch": ["wanted"],
    "batching": ["ready", "plan"],
}
ASKED = [(family, question) for family, asked in QUESTIONS.items() for question in asked]


def policy_with(family: str, **methods: Any) -> type[Any]:
    """Return a policy of a family that differs from a correct one in `methods`."""
    proper: dict[str, Any] = {
        "prefetch": {"wanted": lambda self, view: view.predicted(1)},
        "batching": {"plan": lambda self, queue: fill(queue, (*queue.running, *queue.waiting))},
    }.get(family, {})
    return type("Odd", (BASES[family],), {"__module__": __name__, **proper, **methods})


# --- what it raises -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "question"), ASKED)
def test_what_a_policy_raises_is_a_violation_that_keeps_the_cause(
    monkeypatch: pytest.MonkeyPatch, family: str, question: str
) -> None:
    def fails(self: Any, *arguments: Any) -> Any:
        return {}["a key\nthat is not there"]

    error = caught(monkeypatch, family, policy_with(family, **{question: fails}))
    assert error.key == question
    assert error.reason.startswith("raises KeyError")
    assert "test_policy_guard.py:" in error.reason
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(
    "raised", [StopIteration, RecursionError, AssertionError("no"), OSError, SystemExit(0)]
)
def test_any_kind_of_error_is_a_violation(monkeypatch: pytest.MonkeyPatch, raised: Any) -> None:
    def fails(self: Any, view: View) -> Any:
        raise raised

    error = caught(monkeypatch, "eviction", policy_with("eviction", decide=fails))
    assert error.key == "decide"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(("family", "question"), ASKED)
def test_an_interrupt_and_a_full_memory_are_no_fault_of_a_policy(
    monkeypatch: pytest.MonkeyPatch, family: str, question: str, raised: Any
) -> None:
    def fails(self: Any, *arguments: Any) -> Any:
        raise raised

    name = enlist(monkeypatch, family, policy_with(family, **{question: fails}))
    with pytest.raises(raised):
        serve(family, name)


@pytest.mark.parametrize("family", BASES)
def test_a_constructor_that_fails_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    def broken(self: Any, *arguments: Any) -> None:
        raise ZeroDivisionError("by nothing")

    error = caught(monkeypatch, family, policy_with(family, __init__=broken))
    assert (error.key, "ZeroDivisionError: by nothing" in error.reason) == ("__init__", True)


@pytest.mark.parametrize("family", BASES)
def test_a_constructor_of_the_wrong_arity_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    error = caught(monkeypatch, family, policy_with(family, __init__=lambda self: None))
    assert error.key == "__init__"


@pytest.mark.parametrize(("family", "question"), ASKED)
def test_a_method_of_the_wrong_arity_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, family: str, question: str
) -> None:
    def greedy(self: Any, one: Any, two: Any, three: Any) -> Any:
        return ()

    error = caught(monkeypatch, family, policy_with(family, **{question: greedy}))
    assert (error.key, "missing" in error.reason) == (question, True)


class Unfinished(Eviction):
    """Has no victim."""

    def decide(self, view: View) -> Any:
        return ()


class Homeless(LRU):
    """Never calls the constructor of its base, so it has no book."""

    def __init__(self, context: Any, options: Any = None) -> None:
        self.capacity = context.capacity

    def decide(self, view: View) -> Any:
        return view.union


class BookOfNothing(LRU):
    def decide(self, view: View) -> Any:
        leavers = super().decide(view)
        self.book: Any = None
        return leavers


@pytest.mark.parametrize(
    ("policy", "key"), [(Unfinished, "__init__"), (Homeless, "insert"), (BookOfNothing, "book")]
)
def test_a_half_made_policy_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, policy: type[Any], key: str
) -> None:
    assert caught(monkeypatch, "eviction", policy).key in (key, "decide")


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("made", [type("Other", (), {}), lambda *_: None])
def test_what_is_no_policy_of_its_family_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, family: str, made: Any
) -> None:
    made.__name__ = "Other"
    assert "not a subclass of moesim.policies" in caught(monkeypatch, family, made).reason


def test_a_policy_cannot_get_a_larger_cache_than_the_scenarios(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Roomy(LRU):
        def __init__(self, context: Any, options: Any = None) -> None:
            super().__init__(context, options)
            self.capacity = 100

    assert "keeps more than 3 keys" in caught(monkeypatch, "eviction", Roomy).reason


# --- what it answers ------------------------------------------------------------------------------


def forever(*_: Any) -> Any:
    """Yield numbers without end."""
    return itertools.count()


NO_KEYS: list[Any] = [
    None,
    3,
    "12",
    {1: 2},
    (key for key in (1, 2)),
    [None],
    [1.0],
    [True],
    [np.int64(1)],
    np.array([1, 2]),
    [[1]],
    ["1"],
]


@pytest.mark.parametrize(
    ("family", "question"),
    [("eviction", "preload"), ("eviction", "decide"), ("prefetch", "wanted")],
)
@pytest.mark.parametrize("answer", NO_KEYS, ids=lambda answer: type(answer).__name__)
def test_what_are_no_keys_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, family: str, question: str, answer: Any
) -> None:
    odd = policy_with(family, **{question: lambda self, *_: answer})
    error = caught(monkeypatch, family, odd)
    assert (error.key, error.reason[:7]) == (question, "returns")


@pytest.mark.parametrize(
    ("family", "question"), [item for item in ASKED if item[1] not in ("insert", "remove")]
)
def test_an_endless_answer_ends(
    monkeypatch: pytest.MonkeyPatch, family: str, question: str
) -> None:
    assert caught(monkeypatch, family, policy_with(family, **{question: forever})).key == question


@pytest.mark.parametrize("answer", [True, 1.0, np.int64(1), "1", [1], ()], ids=repr)
def test_a_victim_that_is_no_key_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    odd = policy_with("eviction", victim=lambda self, protected: answer)
    assert caught(monkeypatch, "eviction", odd).key == "victim"


@pytest.mark.parametrize("answer", [None, 0, 1, "no", np.bool_(True)], ids=repr)
def test_ready_is_true_or_false(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    odd = policy_with("batching", ready=lambda self, running, waiting: answer)
    assert caught(monkeypatch, "batching", odd).key == "ready"


PLANS: list[tuple[str, Callable[[Queue], Any]]] = [
    ("nothing", lambda queue: None),
    ("a generator", lambda queue: ((request, 1) for request in queue.waiting)),
    ("a mapping", lambda queue: dict.fromkeys(queue.waiting, 1)),
    ("triples", lambda queue: [(request, 1, 1) for request in queue.waiting]),
    ("indices", lambda queue: [(request.index, 1) for request in queue.waiting]),
    ("what cannot be hashed", lambda queue: [([], 1)]),
    ("half a token", lambda queue: [(queue.waiting[0], 0.5)]),
    ("yes", lambda queue: [(queue.waiting[0], True)]),
    ("no token at all", lambda queue: [(queue.waiting[0], None)]),
    ("a number of numpy's", lambda queue: [(queue.waiting[0], np.int64(1))]),
]


@pytest.mark.parametrize("answer", [plan for _, plan in PLANS], ids=[name for name, _ in PLANS])
def test_what_is_no_plan_is_a_violation(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    odd = policy_with("batching", plan=lambda self, queue: answer(queue))
    assert caught(monkeypatch, "batching", odd).key == "plan"


@pytest.mark.parametrize("after", [0, 3])
def test_a_policy_that_never_serves_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whether it never serves anything or stops midway."""

    class Waits(Batching):
        asked = 0

        def ready(self, running: Any, waiting: Any) -> bool:
            self.asked += 1
            return self.asked <= after

        def plan(self, queue: Queue) -> Any:
            return fill(queue, (*queue.running, *queue.waiting))

    error = caught(monkeypatch, "batching", Waits)
    assert (error.key, "4 are queued" in error.reason) == ("ready", True)


def test_a_proper_policy_from_outside_decides_as_if_it_were_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard itself changes no decision."""
    trace = tiny_trace(requests=4, prompt_tokens=3, output_tokens=5, seed=3)

    def outcome(eviction: str, prefetch: str, batching: str) -> list[Any]:
        cache = {"slots": "3/layer", "policy": eviction}
        chosen = {"prefetch": {"policy": prefetch}, "batching": {"policy": batching}}
        ledger = run_on(plan_of(tiny_scenario(cache=cache, **chosen), trace)).ledger
        return [ledger.hits, ledger.late_hits, ledger.steps, ledger.prefetch_copies]

    ours = outcome("lru", "predicted", "decode_first")
    theirs = [
        enlist(monkeypatch, family, type("Theirs", (find(family, name),), {"__module__": "x"}))
        for family, name in [
            ("eviction", "lru"),
            ("prefetch", "predicted"),
            ("batching", "decode_first"),
        ]
    ]
    assert outcome(*theirs) == ours


def test_no_policy_of_ours_is_guarded_and_all_others_are() -> None:
    for family in ("eviction", "prefetch", "batching"):
        assert not any(is_foreign(find(family, name)) for name in names(family))
    ours = find("batching", "fcfs")
    assert type(make_batching(ours, None)) is ours
    theirs = policy_with("prefetch", name="theirs")
    assert type(make_prefetch(theirs, None)) is not theirs


# --- its options ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fails:
    size: int = 1

    def __post_init__(self) -> None:
        raise ZeroDivisionError("by nothing")


@dataclass(frozen=True)
class Unknown:
    size: NoSuchType = 1  # type: ignore[name-defined]  # noqa: F821


@dataclass(frozen=True)
class Arbitrary:
    size: np.random.Generator


@pytest.mark.parametrize("options", [dict, 3, None, int, Fails, Unknown, Arbitrary])
def test_options_that_make_no_sense_are_a_violation(options: Any) -> None:
    policy = policy_with("eviction", Options=options, name="odd")
    with pytest.raises(PolicyViolation) as violation:
        parse_options(policy, {})
    assert (violation.value.policy, violation.value.key) == ("odd", "Options")


def test_an_option_refused_by_its_class_is_a_mistake_of_the_scenario() -> None:
    @dataclass(frozen=True)
    class Even:
        size: int = 2

        def __post_init__(self) -> None:
            if self.size % 2:
                raise ValueError("size must be even")

    with pytest.raises(UsageError, match="size must be even"):
        parse_options(policy_with("eviction", Options=Even, name="odd"), {"size": 3})


# --- in a curve -----------------------------------------------------------------------------------


class KeepsAll(LRU):
    def decide(self, view: View) -> Any:
        self.book.update(dict.fromkeys(view.union))
        return ()


class FailsToDecide(LRU):
    def decide(self, view: View) -> Any:
        raise ZeroDivisionError


class FailsToObserve(Ranked):
    stack = True

    def observe(self, view: View) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("policy", [KeepsAll, FailsToDecide, FailsToObserve])
def test_nonsense_is_named_in_a_curve_too(
    monkeypatch: pytest.MonkeyPatch, policy: type[Any]
) -> None:
    name = enlist(monkeypatch, "eviction", policy)
    with pytest.raises(PolicyViolation) as violation:
        curve(tiny_trace(requests=2), [name], capacities=[2])
    assert violation.value.policy == name
