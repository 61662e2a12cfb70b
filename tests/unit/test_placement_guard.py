"""Placement policies of other packages: what they return is checked, and what they may see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from priced_experts import PricedExperts, context, event
from watched_machines import enlist

from moesim.errors import PolicyViolation, UsageError
from moesim.policies.guard import (
    find_policy,
    make_placement,
    placement_lanes,
    placement_mistakes,
)
from moesim.policies.placement import Copy, Placement
from moesim.policies.placement.answers import (
    check_layer_lane,
    check_placement,
    check_residents,
)
from moesim.policies.registry import NoOptions


def policy_with(**members: Any) -> type[Placement]:
    """Return a policy that is not moesim's; it differs from a correct one in `members`."""
    proper = {"name": "odd", "place": lambda self, view, absent, estimate: {}}
    return type("Odd", (Placement,), {"__module__": __name__, **proper, **members})


def asked(policy: type[Placement], method: str) -> Any:
    """Return what a guarded policy answers to one question."""
    made = make_placement(policy, context(), None)
    arguments: dict[str, tuple[Any, ...]] = {
        "layer_lane": (0,),
        "residents": (3,),
        "place": (event({1: 2}), {1: "host"}, PricedExperts()),
    }
    return getattr(made, method)(*arguments[method])


METHODS = ["layer_lane", "residents", "place"]


def returning(method: str, value: Any) -> type[Placement]:
    return policy_with(**{method: lambda self, *arguments: value})


@pytest.mark.parametrize("method", METHODS)
def test_what_a_placement_raises_is_a_violation_that_keeps_the_cause(method: str) -> None:
    def fails(self: Any, *arguments: Any) -> Any:
        return {}["a key\nthat is not there"]

    with pytest.raises(PolicyViolation) as violation:
        asked(policy_with(**{method: fails}), method)
    assert (violation.value.policy, violation.value.key) == ("odd", method)
    assert violation.value.reason.startswith("raises KeyError")
    assert isinstance(violation.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("method", "value", "said"),
    [
        ("layer_lane", None, "returns None where the name of a lane must be"),
        ("layer_lane", 1, "returns int 1 where the name of a lane"),
        ("residents", "ab", "must return a list, tuple or set of keys"),
        ("residents", {1: 2}, "must return a list, tuple or set of keys"),
        ("residents", iter([1]), "must return a list, tuple or set of keys"),
        ("residents", [True], "returns bool True where a key must be a plain int"),
        ("place", None, "returns None; it must return a dict from keys to lanes"),
        ("place", [1], "must return a dict from keys to lanes"),
        ("place", {"1": "cpu"}, "returns str '1' where a key must be a plain int"),
        ("place", {True: "cpu"}, "returns bool True where a key must be"),
        ("place", {1: None}, "returns None where the name of a lane must be"),
    ],
)
def test_an_answer_of_the_wrong_type_is_a_violation(method: str, value: Any, said: str) -> None:
    with pytest.raises(PolicyViolation, match=said) as violation:
        asked(returning(method, value), method)
    assert violation.value.key == method


class Lanes(Mapping[int, str]):
    """A mapping that is no dict."""

    def __getitem__(self, key: int) -> str:
        return "cpu"

    def __iter__(self) -> Iterator[int]:
        return iter([1])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("method", "value", "answer"),
    [
        ("layer_lane", "cpu", "cpu"),
        ("residents", None, None),
        ("residents", {3}, (3,)),
        ("residents", [], ()),
        ("place", {}, {}),
        ("place", Lanes(), {1: "cpu"}),
    ],
)
def test_a_correct_answer_passes_the_guard(method: str, value: Any, answer: Any) -> None:
    assert asked(returning(method, value), method) == answer


def test_a_refusal_of_options_passes_the_guard() -> None:
    def refuses(self: Any, slots: int) -> Any:
        raise UsageError(f"needs 9 slots, not {slots}")

    with pytest.raises(UsageError, match="needs 9 slots, not 3"):
        asked(policy_with(residents=refuses), "residents")


def test_a_constructor_that_fails_is_a_violation() -> None:
    def broken(self: Any, *arguments: Any) -> None:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(PolicyViolation, match="ZeroDivisionError: by nothing") as violation:
        make_placement(policy_with(__init__=broken), context(), None)
    assert violation.value.key == "__init__"


def test_policies_of_moesim_get_no_guard_and_others_keep_what_they_declare() -> None:
    assert type(make_placement(Copy, context(), None)) is Copy
    made = make_placement(policy_with(lanes=("cpu",), clairvoyant=True), context(), None)
    assert (made.name, made.lanes, made.clairvoyant) == ("odd", ("cpu",), True)


@pytest.mark.parametrize("clairvoyant", [False, True])
def test_only_a_clairvoyant_placement_may_count_in_the_replayed_trace(clairvoyant: bool) -> None:
    def residents(self: Any, slots: int) -> list[int]:
        return list(self.context.popularity(None))

    policy = policy_with(residents=residents, clairvoyant=clairvoyant)
    made = make_placement(policy, context(popularity=lambda profile: {7: 1}), None)
    if clairvoyant:
        assert made.residents(3) == (7,)
    else:
        with pytest.raises(PolicyViolation, match="counts of the replayed trace"):
            made.residents(3)


def test_counts_of_another_trace_are_for_every_placement() -> None:
    policy = policy_with(residents=lambda self, slots: list(self.context.popularity(Path("p"))))
    made = make_placement(policy, context(popularity=lambda profile: {7: 1}), None)
    assert made.residents(3) == (7,)


def test_a_class_without_the_base_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = enlist(monkeypatch, "placement", type("Baseless", (), {}))
    with pytest.raises(PolicyViolation, match=r"subclass of moesim\.policies\.placement\.Placem"):
        find_policy("placement", name)


@pytest.mark.parametrize("lanes", ["cpu", ["cpu"], (1,), None])
def test_lanes_are_a_tuple_of_names(lanes: Any) -> None:
    with pytest.raises(PolicyViolation, match="must be a tuple of names of lanes"):
        placement_lanes(policy_with(lanes=lanes))


@pytest.mark.parametrize("answer", [None, "no", ["no"], [("a", 1)], [("a", "b", "c")], {"a": "b"}])
def test_mistakes_are_pairs_of_texts(answer: Any) -> None:
    policy = policy_with(mistakes=classmethod(lambda cls, options, context: answer))
    with pytest.raises(PolicyViolation, match="must return a list of") as violation:
        placement_mistakes(policy, context(), NoOptions())
    assert violation.value.key == "mistakes"


def test_a_policy_whose_options_are_mistaken_is_not_built() -> None:
    policy = policy_with(mistakes=classmethod(lambda cls, options, context: [("size", "is odd")]))
    assert placement_mistakes(policy, context(), NoOptions()) == [("size", "is odd")]
    with pytest.raises(UsageError, match="odd: size is odd"):
        make_placement(policy, context(), None)


# --- values that are not possible -----------------------------------------------------------------

LANES = ("gpu", "cpu")


def test_possible_answers_pass() -> None:
    check_placement("odd", {}, {}, LANES)
    check_placement("odd", {1: "cpu", 2: "gpu"}, {1: "host", 2: "disk", 3: "host"}, LANES)
    check_residents("odd", [3, 0], slots=2, num_keys=4)
    check_residents("odd", [], slots=0, num_keys=4)
    check_layer_lane("odd", 0, "cpu", LANES)


@pytest.mark.parametrize(
    ("answer", "key", "said"),
    [
        ({2: "cpu"}, 2, "is placed on 'cpu', but it is not absent"),
        ({1: "gpu", 2: "gpu"}, 2, "is placed on 'gpu', but it is not absent"),
        ({1: "h2d"}, 1, "is placed on 'h2d'; the machine computes on gpu, cpu"),
        ({1: ""}, 1, "is placed on ''; the machine computes on gpu, cpu"),
    ],
)
def test_a_key_that_is_not_absent_or_an_unknown_lane_is_a_violation(
    answer: dict[int, str], key: int, said: str
) -> None:
    with pytest.raises(PolicyViolation, match=said) as violation:
        check_placement("odd", answer, {1: "host"}, LANES)
    assert (violation.value.policy, violation.value.key) == ("odd", key)


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ([0, 1, 2], "residents", "returns 3 keys; there are 2 slots"),
        ([0, 4], 4, "is resident, but is no expert; keys are 0 to 3"),
        ([-1], -1, "is no expert"),
        ([1, 1], 1, "is returned twice"),
    ],
)
def test_residents_that_are_not_possible_are_a_violation(
    keys: list[int], key: object, said: str
) -> None:
    with pytest.raises(PolicyViolation, match=said) as violation:
        check_residents("odd", keys, slots=2, num_keys=4)
    assert violation.value.key == key


def test_a_layer_on_an_unknown_lane_is_a_violation() -> None:
    with pytest.raises(PolicyViolation, match="'model layer 3': is placed on 'disk'"):
        check_layer_lane("odd", 3, "disk", LANES)
