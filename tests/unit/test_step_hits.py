"""Hits by step: their sum is the curve's, and blocks of steps are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_traces import tiny_trace

from moesim.errors import UsageError
from moesim.simulate.curve import curve
from moesim.simulate.step_hits import StepHits, step_hits
from moesim.trace import Trace
from moesim.trace.synthetic import SyntheticKnobs, synthesize

POLICIES = ["lru", "static", "min", "lfu", "random", "lfru", "arc"]


@pytest.fixture(scope="module")
def drawn() -> Trace:
    return synthesize(
        SyntheticKnobs(requests=7, prompt_tokens=3, output_tokens=6, num_layers=3, num_experts=9)
    )


@pytest.mark.parametrize("replay", ["atomic", "sequential"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_sum_over_steps_is_the_curve(
    policy: str, batch: int, scope: Any, replay: Any, drawn: Trace
) -> None:
    shared: dict[str, Any] = {
        "capacities": [1, 4, 9], "batch": batch, "scope": scope, "replay": replay
    }  # fmt: skip
    found = step_hits(drawn, policy, **shared)
    expected = curve(drawn, [policy], **shared)[policy]
    assert dict(zip(found.capacities, found.rates, strict=True)) == pytest.approx(expected)


def test_unused_places_and_requests_of_unequal_lengths_count_as_in_the_curve() -> None:
    tiny = tiny_trace()
    found = step_hits(tiny, "lru", capacities=[2, 3], batch=2)
    assert dict(zip((2, 3), found.rates, strict=True)) == pytest.approx(
        curve(tiny, ["lru"], capacities=[2, 3], batch=2)["lru"]
    )
    assert found.rows.sum() == tiny.num_rows


def test_ids_in_ascending_order_defeat_sequential_lru_and_no_atomic_policy() -> None:
    # Two tokens a step want {0, 1, 2, 3} each time, in rising and falling order by turns. There are
    # three slots. In ascending order, LRU has always just evicted what is wanted next.
    ids = np.array([[[0, 1]], [[3, 2]]] * 3 + [[[2, 3]], [[1, 0]]] * 3)
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[6, 6], num_experts=4)
    shared: dict[str, Any] = {"capacities": [3], "batch": 2}
    ascending = step_hits(trace, "lru", replay="sequential", order="ascending", **shared)
    assert ascending.hits.sum() == 0
    recorded = step_hits(trace, "lru", replay="sequential", **shared)
    assert recorded.hits.sum() == 3 * 5
    drawn = step_hits(trace, "lru", replay="sequential", order="random", **shared)
    assert 0 < drawn.hits.sum() < 3 * 5
    atomic = step_hits(trace, "lru", order="ascending", **shared)
    assert atomic.hits.sum() == 3 * 5  # each step after the first finds three of its four


def test_a_placement_learnt_elsewhere_keeps_what_was_popular_there(drawn: Trace) -> None:
    counts = {layer * 9 + 8: 1 for layer in range(3)}
    found = step_hits(drawn, "static", capacities=[1], popularity=counts)
    ids = np.asarray(drawn.expert_ids[:])
    assert found.hits[:, 0].tolist() == (ids == 8).sum(axis=(1, 2)).tolist()


def test_blocks_leave_out_the_first_steps_and_steps_of_small_batches() -> None:
    hits = np.array([[9], [9], [1], [2], [3], [4], [0]])
    found = StepHits((1,), hits, np.full(7, 10), np.array([2, 2, 2, 2, 2, 2, 1]))
    assert found.block_rates(3, batch=2)[:, 0].tolist() == pytest.approx([0.15, 0.35])
    assert found.block_rates(3, skip=0, batch=2)[0, 0] == pytest.approx(0.9)
    with pytest.raises(UsageError, match="6 steps have 2 requests or more, too few for 7 blocks"):
        found.block_rates(7, batch=2)
