"""Unions as columns equal a plain count in order of first appearance, and are kept and shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workloads import plan_of, tiny_scenario, tiny_trace

from moesim.serving import routing as routing_module
from moesim.serving.routing import TraceRouting, count_keys
from moesim.serving.unions import UnionMemo, unions_of
from moesim.simulate import bounds_of, simulate


def counted(keys_BLK: npt.NDArray[np.int64]) -> tuple[list[Any], list[Any]]:
    counts = [
        count_keys(keys)
        for keys in keys_BLK.transpose(1, 0, 2).reshape(keys_BLK.shape[1], -1).tolist()
    ]
    return [tuple(each) for each in counts], [tuple(each.values()) for each in counts]


def keys_of(
    seed: int, rows: int, layers: int, experts: int, k: int, unused: float, rare: bool
) -> npt.NDArray[np.int64]:
    """Return random keys, of which a share is unused; `rare` experts appear late."""
    rng = np.random.default_rng(seed)
    ids = rng.random((rows, layers, experts)).argsort(axis=-1)[..., :k]
    if rare:
        ids[: rows // 2] = np.sort(ids[: rows // 2], axis=-1) % max(1, experts // 2)
    keys = ids + np.arange(layers)[:, None] * experts
    return np.where(rng.random(keys.shape) < unused, -1, keys)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 90),
    layers=st.integers(1, 4),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    unused=st.sampled_from([0, 0, 0.2, 1]),
    rare=st.booleans(),
)
def test_unions_are_in_order_of_first_appearance_with_their_counts(
    seed: int, rows: int, layers: int, experts: int, k: int, unused: float, rare: bool
) -> None:
    keys = keys_of(seed, rows, layers, experts, min(k, experts), unused, rare)
    assert unions_of(keys, experts).by_layer() == counted(keys)


@pytest.mark.parametrize(("experts", "rows"), [(40_000, 3), (9, 40_000)])
def test_large_keys_and_counts_are_held_whole(experts: int, rows: int) -> None:
    keys = np.array([[[experts - 1, 0], [2 * experts - 1, experts]]] * rows)
    unions = unions_of(keys, experts)
    assert unions.by_layer() == counted(keys)
    assert unions.keys.dtype == np.int32
    assert unions_of(keys_of(0, 4, 2, 8, 2, 0, False), 8).keys.dtype == np.uint16


@pytest.mark.parametrize("rows", [2, 30, 500])
def test_few_and_many_rows_of_a_trace_give_the_same_unions(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tiny_trace(requests=20, prompt_tokens=20, output_tokens=20)
    wanted = np.random.default_rng(0).integers(0, trace.num_rows, rows)
    found = []
    for limit in (0, 10**9):
        monkeypatch.setattr(routing_module, "_VECTORISE_ABOVE", limit)
        found.append(TraceRouting(trace).unions(wanted))
    assert found[0] == found[1]


def test_a_memo_gives_the_unions_of_the_same_rows_until_it_is_full() -> None:
    keys = keys_of(0, 40, 3, 8, 2, 0, False)
    unions, other = unions_of(keys, 8), unions_of(keys[::-1], 8)
    memo = UnionMemo(unions.nbytes + other.nbytes - 1)
    rows = np.arange(40)
    name, reverse = memo.name_of(rows), memo.name_of(rows[::-1])
    assert name != reverse
    assert memo.get(name) is None
    memo.keep(name, unions)
    memo.keep(reverse, other)
    assert memo.get(name) is unions
    assert memo.get(reverse) is None


def test_bounds_that_repeat_steps_build_no_unions_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_module, "_VECTORISE_ABOVE", 0)
    scenario = tiny_scenario(
        bounds=True, cache={"slots": 12}, workload={"arrivals": {"kind": "all_at_once"}}
    )
    plan = plan_of(scenario, tiny_trace(requests=6, prompt_tokens=9, output_tokens=5))
    outcome = simulate(plan)
    built: list[int] = []

    def watched(keys: Any, experts: int) -> Any:
        built.append(len(keys))
        return unions_of(keys, experts)

    monkeypatch.setattr(routing_module, "unions_of", watched)
    with_memo = bounds_of(outcome)
    assert not built
    assert simulate(plan).unions is not outcome.unions
    assert built
    assert bounds_of(outcome) == with_memo
