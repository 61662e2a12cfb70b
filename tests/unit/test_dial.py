"""The dial predicts with the recall and precision that were asked for, and equals its limits."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workloads import (
    everything,
    plan_of,
    random_case,
    run_on,
    static_trace,
    tiny_scenario,
    tiny_trace,
)

from moesim.errors import ScenarioError, UsageError
from moesim.policies import View, find, parse_options
from moesim.policies.prefetch import PrefetchContext
from moesim.policies.prefetch.dial import PRESETS
from moesim.scenario import load_scenario
from moesim.simulate import prepare

LAYERS, EXPERTS, TOP_K, STEPS = 4, 16, 3, 4000
SIGMAS = 5


class Reveals(View):
    """A view that shows the routing of a step, and none of the next one."""

    def __init__(self, layer: int, unions: Sequence[Sequence[int]]) -> None:
        super().__init__(layer, unions[layer] if layer >= 0 else ())
        self.unions = unions

    def exact(self, depth: int) -> Sequence[int]:
        layer = self.layer + depth
        return self.unions[layer] if layer < len(self.unions) else ()


def dial(layers: int = LAYERS, experts: int = EXPERTS, **options: Any) -> Any:
    kind = find("prefetch", "dial")
    policy = kind(parse_options(kind, options))
    policy.prepare(PrefetchContext(layers, experts, TOP_K, np.random.default_rng(0)))
    return policy


def random_steps(steps: int, layers: int = LAYERS, seed: int = 1) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    ids = rng.random((steps, layers, EXPERTS)).argsort(axis=-1)[..., :TOP_K]
    return (ids + (np.arange(layers) * EXPERTS)[:, None]).tolist()


def realised(policy: Any, steps: list[list[list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return true experts named, and all experts named, of each layer at the last look."""
    layers = len(steps[0])
    right, named = np.zeros(layers, int), np.zeros(layers, int)
    for unions in steps:
        for layer in range(-1, layers):
            keys = [k for k in policy.wanted(Reveals(layer, unions)) if k // EXPERTS == layer + 1]
            assert len(set(keys)) == len(keys)
            if layer + 1 < layers:
                right[layer + 1] += len({*keys} & {*unions[layer + 1]})
                named[layer + 1] += len(keys)
    return right, named


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("recall", [0.3, 0.8, [0.1, 0.5, 0.9, 1.0]])
@pytest.mark.parametrize("precision", [0.25, 0.7, 1.0, [1.0, 0.8, 0.5, 0.4]])
def test_realised_recall_and_precision_are_those_asked_for(
    recall: Any, precision: Any, depth: int
) -> None:
    """The right keys are a binomial sum; the wrong ones of an event are their mean, rounded."""
    policy = dial(recall=recall, precision=precision, depth=depth)
    right_L, named_L = realised(policy, random_steps(STEPS))
    recall_L, precision_L = np.broadcast_to(recall, LAYERS), np.broadcast_to(precision, LAYERS)
    for layer, (right, named) in enumerate(zip(right_L, named_L, strict=True)):
        r, p, n = recall_L[layer], precision_L[layer], STEPS * TOP_K
        assert abs(right / n - r) <= SIGMAS * sqrt(r * (1 - r) / n)
        wrong = n * r * (1 / p - 1)
        assert abs(named - right - wrong) <= SIGMAS * 0.5 * sqrt(STEPS)
        assert abs(right / named - p) <= SIGMAS * 2 / sqrt(named)


def test_wrong_experts_are_drawn_evenly_and_mixed_among_the_right_ones() -> None:
    policy = dial(layers=1, recall=1.0, precision=0.5)
    first, counts, events = 0, np.zeros(EXPERTS, int), random_steps(STEPS, layers=1)
    for unions in events:
        keys = policy.wanted(Reveals(-1, unions))
        first += keys[0] in unions[0]
        counts[[key for key in keys if key not in unions[0]]] += 1
    assert abs(first - STEPS / 2) <= SIGMAS * 0.5 * sqrt(STEPS)
    even = STEPS * TOP_K / EXPERTS
    assert np.abs(counts - even).max() <= SIGMAS * sqrt(even)


def test_an_event_is_predicted_once_and_shown_again() -> None:
    policy = dial(recall=0.5, precision=0.5, depth=3)
    for unions in random_steps(50):
        shown: dict[int, list[int]] = {}
        for layer in range(-1, LAYERS):
            keys = policy.wanted(Reveals(layer, unions))
            assert [key // EXPERTS for key in keys] == sorted(key // EXPERTS for key in keys)
            for ahead in range(layer + 1, min(layer + 4, LAYERS)):
                named = [key for key in keys if key // EXPERTS == ahead]
                assert shown.setdefault(ahead, named) == named


@pytest.mark.parametrize("layers", [LAYERS, 32])
def test_the_preset_is_the_published_accuracy_by_layer(layers: int) -> None:
    kind = find("prefetch", "dial")
    context = PrefetchContext(layers, EXPERTS, TOP_K, np.random.default_rng(0))
    options = parse_options(kind, {"preset": "adapmoe"})
    if layers != 32:
        assert [name for name, _ in kind.mistakes(options, context)] == ["preset"]
        return
    right, named = realised(dial(32, preset="adapmoe"), random_steps(1500, 32))
    n = 1500 * TOP_K
    accuracy = np.array(PRESETS["adapmoe"])
    assert right[0] == named[0] == 0  # no layer comes before the first one
    assert np.abs(right / n - accuracy).max() <= SIGMAS * 0.5 / sqrt(n)
    assert np.abs(right[1:] / named[1:] - accuracy[1:]).max() <= SIGMAS / sqrt(n)


def with_prefetch(scenario: dict[str, Any], policy: str, **options: Any) -> dict[str, Any]:
    return {**scenario, "prefetch": {"policy": policy, "options": options}}


@pytest.mark.parametrize("seed", range(40))
def test_recall_and_precision_1_equal_the_oracle_and_recall_0_equals_none(seed: int) -> None:
    """Also at the end of a step, where a decoupled or static router reveals part of the next."""
    scenario, trace = random_case(seed)
    if seed % 4 == 3:
        trace = static_trace(trace, 2)
    depth = 1 + seed % 6

    def of(policy: str, **options: Any) -> Any:
        return everything(run_on(plan_of(with_prefetch(scenario, policy, **options), trace)))

    assert of("dial", depth=depth) == of("oracle", depth=depth)
    assert of("dial", depth=depth, recall=0.0, precision=0.5) == of("none")


def test_another_seed_draws_other_predictions_and_the_same_seed_the_same() -> None:
    trace = tiny_trace(requests=2, output_tokens=9)

    def of(seed: int, order: str = "recorded") -> Any:
        scenario = tiny_scenario(cache={"slots": 9}, seed=seed, workload={"order": order})
        scenario = with_prefetch(scenario, "dial", recall=0.5, precision=0.5)
        return everything(run_on(plan_of(scenario, trace)))

    assert of(1) == of(1) != of(2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("recall: [0.5, 0.5]", "prefetch.options.recall: has length 2; the trace has 4 MoE layers"),
        ("precision: [1]", "prefetch.options.precision: has length 1; the trace has 4"),
        ("preset: adapmoe", "prefetch.options.preset: has length 32; the trace has 4 MoE layers"),
    ],
)
def test_shares_of_another_number_of_layers_are_refused_where_they_stand(
    tmp_path: Path, options: str, problem: str
) -> None:
    tiny_trace().save(tmp_path / "trace")
    text = f"trace: trace\nhardware: rtx-4090\nprefetch: {{policy: dial, options: {{{options}}}}}\n"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        prepare(load_scenario(tmp_path / "s.yaml"))
    found = [each.removeprefix(f"{tmp_path / 's.yaml'}:") for each in caught.value.problems]
    assert len(found) == 1
    assert found[0].startswith("3:")
    assert problem in found[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"recall": 1.1}, "recall"),
        ({"precision": 0}, "precision"),
        ({"recall": [0.5, -1]}, "recall"),
        ({"preset": "other"}, "preset"),
        ({"preset": "adapmoe", "recall": 0.5}, "preset replaces recall and precision"),
        ({"depth": 0}, "depth"),
    ],
)
def test_shares_that_are_none_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_options(find("prefetch", "dial"), options)


def test_an_event_that_wants_all_experts_leaves_no_wrong_one() -> None:
    ids = np.tile(np.arange(8), (4, 4, 1))
    policy = dial(experts=8, recall=1.0, precision=0.1)
    assert sorted(policy.wanted(Reveals(-1, ids[0].tolist()))) == list(range(8))
