"""A prefetch policy asks for what its view shows, nearest layer first, and sees no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from costed_traces import costed_trace
from watched_machines import enlist
from workloads import plan_of, run_on, tiny_scenario

from moesim.errors import UsageError
from moesim.policies import View, find, parse_options
from moesim.policies.prefetch import Prefetch, PrefetchContext


class Window(View):
    """Shows two layers ahead; guesses and truth differ, and what was looked at is kept."""

    def __init__(self) -> None:
        super().__init__(3, [30, 31], [2, 1])
        self.looks: list[tuple[str, int]] = []

    def predicted(self, depth: int) -> Sequence[int]:
        self.looks.append(("predicted", depth))
        return {1: [40, 41], 2: [50]}.get(depth, [])

    def exact(self, depth: int) -> Sequence[int]:
        self.looks.append(("exact", depth))
        return {1: [42], 2: [52, 51]}.get(depth, [])


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("predicted", 1, [40, 41]),
        ("predicted", 2, [40, 41, 50]),
        ("predicted", 5, [40, 41, 50]),
        ("oracle", 1, [42]),
        ("oracle", 2, [42, 52, 51]),
    ],
)
def test_the_nearest_layer_comes_first(name: str, depth: int, expected: list[int]) -> None:
    policy = find("prefetch", name)
    window = Window()
    assert policy(policy.Options(depth)).wanted(window) == expected
    kind = "exact" if name == "oracle" else "predicted"
    assert window.looks == [(kind, ahead) for ahead in range(1, depth + 1)]


@pytest.mark.parametrize(
    ("depth", "experts", "expected"), [(1, 1, [40]), (2, 1, [40, 50]), (2, 2, [40, 41, 50])]
)
def test_predicted_fetches_at_most_so_many_experts_of_a_layer(
    depth: int, experts: int, expected: list[int]
) -> None:
    policy = find("prefetch", "predicted")
    assert policy(policy.Options(depth, experts)).wanted(Window()) == expected


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_all_streams_every_expert_of_the_next_layers_and_goes_round(depth: int) -> None:
    policy = find("prefetch", "all")
    streaming = policy(policy.Options(depth))
    streaming.prepare(PrefetchContext(3, 2, 1, np.random.default_rng(0)))
    for layer in range(-1, 3):
        later = [(layer + ahead) % 3 for ahead in range(1, min(depth, 2) + 1)]
        expected = [each * 2 + expert for each in later for expert in range(2)]
        assert list(streaming.wanted(View(layer, ()))) == expected


@pytest.mark.parametrize("depth", [0, 10**9])
def test_a_depth_that_no_model_has_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match="option depth"):
        parse_options(find("prefetch", "predicted"), {"depth": depth})


def test_no_prefetch_asks_for_nothing_and_looks_nowhere() -> None:
    policy, window = find("prefetch", "none")(), Window()
    assert list(policy.wanted(window)) == []
    assert window.looks == []
    assert not policy.active


def test_only_the_oracle_is_clairvoyant() -> None:
    assert [find("prefetch", name).clairvoyant for name in ("none", "predicted", "oracle")] == [
        False,
        False,
        True,
    ]


def test_a_plain_view_shows_no_future() -> None:
    view = View(0, [1, 2])
    assert list(view.predicted(1)) == list(view.exact(1)) == list(view.gate_weights()) == []
    assert list(view.tokens) == []


class AsksForAnother(Prefetch):
    """Asks once for an expert that the first layer does not use."""

    def wanted(self, view: View) -> Sequence[int]:
        return [5] if view.layer == 0 else ()


def test_no_prefetch_takes_the_slot_of_an_expert_of_its_layer_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = enlist(monkeypatch, "prefetch", AsksForAnother)
    scenario = tiny_scenario(cache={"scope": "global", "slots": 1}, prefetch={"policy": name})
    outcome = run_on(plan_of(scenario, costed_trace(np.ones((1, 4, 1), int))))
    assert outcome.ledger.prefetch_refused == 1
    assert sum(outcome.ledger.prefetch_copies) == 0
