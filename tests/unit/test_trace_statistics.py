"""The measured locality of a trace, against published figures and the same sums done slowly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_traces import tiny_trace

from moesim.trace import SyntheticKnobs, Trace, synthesize
from moesim.trace.statistics import adjacent_overlap, describe, load_skew, prediction_recall


@pytest.mark.parametrize("task", ["intent", "law", "summary", "translation"])
def test_the_overlap_of_adjacent_tokens_is_that_of_the_reference_table(
    task: str, shared: Path, esft: Callable[[str], Trace]
) -> None:
    table = json.loads((shared / "reference/hit_rates.json").read_text())["results"]
    expected = table[f"esft_deepseek_v2_lite/{task}"]["adjacent_token_overlap"]
    assert adjacent_overlap(esft(task)) == pytest.approx(expected, abs=0.002)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(sum))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows, layers, depth = sum(lengths), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    ids = rng.random((rows, layers, 5)).argsort(-1)[..., :2]
    ids[rng.random(ids.shape) < 0.2] = -1
    guesses = rng.random((rows, layers, depth, 5)).argsort(-1)[..., :2]
    return Trace.from_arrays(
        expert_ids=ids,
        predictions=guesses,
        seq_len=lengths,
        prompt_tokens=[1] * len(lengths),
        prompt_rows="absent",
        num_experts=5,
    )


def used(trace: Trace, row: int, layer: int) -> set[int]:
    return set(trace.expert_ids[row][layer].tolist()) - {255}


@given(traces())
def test_overlap_is_counted_within_requests(trace: Trace) -> None:
    shared = total = 0
    for request in map(trace.slice, range(trace.num_requests)):
        for row in range(request.start + 1, request.stop):
            for layer in range(trace.num_layers):
                shared += len(used(trace, row, layer) & used(trace, row - 1, layer))
                total += len(used(trace, row, layer))
    assert adjacent_overlap(trace) == pytest.approx(shared / max(total, 1))


@given(traces())
def test_recall_is_the_share_of_used_experts_that_were_predicted(trace: Trace) -> None:
    assert trace.predictions is not None
    expected = []
    for depth in range(1, trace.meta.prediction_depth + 1):
        pairs = [
            (used(trace, row, layer + depth), set(trace.predictions[row][layer, depth - 1]))
            for row in range(trace.num_rows)
            for layer in range(trace.num_layers - depth)
        ]
        right = sum(len(truth & guess) for truth, guess in pairs)
        expected.append(round(right / max(sum(len(truth) for truth, _ in pairs), 1), 4))
    assert prediction_recall(trace) == expected


def test_recall_of_right_predictions_is_one_and_of_none_is_unknown() -> None:
    knobs = SyntheticKnobs(requests=2, prediction_depth=2, prediction_accuracy=1)
    assert prediction_recall(synthesize(knobs)) == [1.0, 1.0]
    assert prediction_recall(tiny_trace(predictions=None)) is None


@given(traces())
def test_skew_is_the_most_popular_expert_over_the_mean(trace: Trace) -> None:
    for layer, skew in enumerate(load_skew(trace)):
        counts = Counter(key for row in range(trace.num_rows) for key in used(trace, row, layer))
        mean = sum(counts.values()) / trace.num_experts
        assert skew == pytest.approx(max(counts.values(), default=0) / max(mean, 1e-9))


def test_a_description_is_plain_data() -> None:
    told = describe(tiny_trace())
    assert json.loads(json.dumps(told)) == told
    assert told["domains"] == {"code": 1, "prose": 1, "": 1}
    assert (told["rows"], told["requests"], told["experts"], told["top_k"]) == (11, 3, 5, 2)
    assert told["prompt_tokens"] == "1 to 3"
    assert told["overlap_by_chance"] == 0.4
