"""The knobs of a synthetic trace do what they say, as measured on the trace."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_traces import assert_same

from moesim.errors import UsageError
from moesim.simulate.curve import curve
from moesim.trace import SyntheticKnobs, Trace, synthesize, validate_trace, write_synthetic

# Choices that agree by chance are rare among 64 experts, so that shares measure the knobs.
FLAT = SyntheticKnobs(
    requests=20,
    prompt_tokens=101,
    output_tokens=100,
    num_layers=4,
    num_experts=64,
    top_k=4,
    skew=0,
    stickiness=0,
    layer_correlation=0,
)


def ids(trace: Trace) -> npt.NDArray[np.int64]:
    """Return expert ids by request: (requests, rows of a request, layers, k)."""
    rows = int(trace.requests["num_rows"][0])
    return trace.expert_ids[:].astype(np.int64).reshape(-1, rows, trace.num_layers, trace.top_k)


def share(happened: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return a share and its margin; a right value is outside once in ten thousand times."""
    mean = float(happened.mean())
    return mean, 4 * sqrt(max(mean * (1 - mean), 1e-4) / happened.size)


def repeats(trace: Trace) -> npt.NDArray[np.bool_]:
    """Return whether rows repeat the experts of the row before: (requests, rows - 1, layers)."""
    found = ids(trace)
    return (found[:, 1:] == found[:, :-1]).all(-1)


def test_the_shape_is_the_one_asked_for(tmp_path: Path) -> None:
    knobs = replace(FLAT, requests=3, prompt_tokens=5, output_tokens=4, prediction_depth=2)
    trace = synthesize(knobs)
    assert trace.num_rows == 3 * 8
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (4, 64, 4)
    assert trace.requests["prompt_tokens"].tolist() == [5] * 3
    assert trace.requests["output_tokens"].tolist() == [4] * 3
    assert trace.predictions is not None
    assert trace.predictions.shape == (24, 4, 2, 4)
    assert trace.gate_weights is not None
    assert np.asarray(trace.gate_weights, float).sum(-1) == pytest.approx(1)
    trace.save(tmp_path / "trace")
    assert_same(trace, validate_trace(tmp_path / "trace"))


def test_a_synthetic_trace_says_that_it_is_one_and_how_it_was_made() -> None:
    trace = synthesize(replace(FLAT, requests=1, seed=7))
    assert trace.meta.synthetic
    assert trace.meta.model == "synthetic"
    assert SyntheticKnobs(**trace.meta.provenance["knobs"]) == replace(FLAT, requests=1, seed=7)


def test_the_seed_decides_everything() -> None:
    knobs = replace(SyntheticKnobs(), requests=2, prediction_depth=1)
    assert_same(synthesize(knobs), synthesize(knobs))
    assert (ids(synthesize(knobs)) != ids(synthesize(replace(knobs, seed=1)))).any()


@pytest.mark.parametrize("stickiness", [0.0, 0.3, 0.9, 1.0])
def test_stickiness_is_how_often_a_token_repeats_the_experts_of_the_last(stickiness: float) -> None:
    trace = synthesize(replace(FLAT, stickiness=stickiness))
    for layer in range(trace.num_layers):
        mean, margin = share(repeats(trace)[:, :, layer])
        assert mean == pytest.approx(stickiness, abs=margin)


def test_stickiness_does_not_reach_across_requests() -> None:
    found = ids(synthesize(replace(FLAT, stickiness=1.0)))
    assert (found[1:, 0] != found[:-1, -1]).any(-1).all()


def test_correlation_leaves_the_first_layer_as_sticky_as_asked_and_no_layer_less() -> None:
    found = repeats(synthesize(replace(FLAT, stickiness=0.3, layer_correlation=0.6)))
    first, margin = share(found[:, :, 0])
    assert first == pytest.approx(0.3, abs=margin)
    assert (found.mean((0, 1)) >= 0.3 - margin).all()


def most_common_follower(trace: Trace, layer: int) -> npt.NDArray[np.int64]:
    """Return, for each expert of a layer, the one that most often follows it in the next layer."""
    here, there = ids(trace)[:, :, layer].ravel(), ids(trace)[:, :, layer + 1].ravel()
    together = np.zeros((trace.num_experts, trace.num_experts), int)
    np.add.at(together, (here, there), 1)
    return together.argmax(1)


@pytest.mark.parametrize("correlation", [0.2, 0.7, 1.0])
def test_layer_correlation_is_how_often_a_layer_follows_the_one_before(correlation: float) -> None:
    trace = synthesize(replace(FLAT, layer_correlation=correlation))
    for layer in range(trace.num_layers - 1):
        follow = most_common_follower(trace, layer)
        assert sorted(follow) == list(range(64))
        followed = (ids(trace)[:, :, layer + 1] == follow[ids(trace)[:, :, layer]]).all(-1)
        mean, margin = share(followed)
        assert mean == pytest.approx(correlation, abs=margin)


def test_without_correlation_no_layer_follows_another() -> None:
    trace = synthesize(FLAT)
    follow = most_common_follower(trace, 0)
    assert (ids(trace)[:, :, 1] == follow[ids(trace)[:, :, 0]]).all(-1).mean() < 0.01


@pytest.mark.parametrize("skew", [0.5, 1.0])
def test_skew_is_the_exponent_of_zipf_s_law_over_experts(skew: float) -> None:
    trace = synthesize(replace(FLAT, top_k=1, skew=skew))
    for layer in range(trace.num_layers):
        counts = np.sort(np.bincount(ids(trace)[:, :, layer].ravel(), minlength=64))[::-1]
        slope = np.polyfit(np.log(np.arange(1, 33)), np.log(counts[:32]), 1)[0]
        assert -slope == pytest.approx(skew, abs=0.08)


def test_popular_experts_differ_between_layers_and_not_between_texts() -> None:
    trace = synthesize(replace(FLAT, skew=1.5, requests=40))
    halves = np.split(ids(trace), 2)
    best = [
        [np.bincount(half[:, :, layer].ravel()).argmax() for layer in range(4)] for half in halves
    ]
    assert best[0] == best[1]
    assert len(set(best[0])) > 1


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_prediction_accuracy_is_how_often_a_prediction_is_the_truth(accuracy: float) -> None:
    trace = synthesize(replace(FLAT, prediction_depth=2, prediction_accuracy=accuracy))
    assert trace.predictions is not None
    guesses, truth = trace.predictions[:], trace.expert_ids[:]
    for layer in range(trace.num_layers):
        for depth in range(2):
            guess = guesses[:, layer, depth]
            if layer + 1 + depth >= trace.num_layers:
                assert (guess == trace.meta.unused).all()
            else:
                mean, margin = share((guess == truth[:, layer + 1 + depth]).all(-1))
                assert mean == pytest.approx(accuracy, abs=margin)


@pytest.mark.parametrize(
    "policy",
    [
        "lru",
        "lfu",
        "lfu_in_cache",
        "lfu_decay",
        "fifo",
        "random",
        "activation_matrix",
        "arc",
        "least_stale",
        "lfru",
        "lirs",
        "s3_fifo",
        "sieve",
    ],
)
@pytest.mark.parametrize("admission", ["bypass", "always"])
def test_uniform_routing_gives_every_demand_policy_capacity_over_experts(
    policy: str, admission: str
) -> None:
    trace = synthesize(
        SyntheticKnobs(
            requests=10,
            prompt_tokens=100,
            output_tokens=101,
            num_layers=2,
            num_experts=16,
            top_k=2,
            skew=0,
            stickiness=0,
            layer_correlation=0,
            seed=1,
        )
    )
    found = curve(trace, [policy], capacities=[2, 4, 8, 12, 16], admission=admission)[policy]
    for capacity, rate in found.items():
        expected = capacity / 16
        # A cache starts empty: at worst it misses each expert once more than it would when warm.
        cold = 2 * 16 / (trace.num_rows * 2 * 2)
        margin = 4 * sqrt(expected * (1 - expected) / (trace.num_rows * 2 * 2))
        assert expected - margin - cold <= rate <= expected + margin


def test_uniform_routing_gives_a_placement_learnt_elsewhere_capacity_over_experts(
    tmp_path: Path,
) -> None:
    knobs = replace(FLAT, num_experts=16, num_layers=2)
    synthesize(replace(knobs, seed=5, requests=2)).save(tmp_path / "profile")
    static = ("static", {"profile": str(tmp_path / "profile")})
    rate = curve(synthesize(knobs), [static], capacities=[4])["static"][4]
    assert rate == pytest.approx(1 / 4, abs=4 * sqrt(3 / 16 / (4000 * 2 * 4)))


BAD_KNOBS: list[tuple[dict[str, Any], str]] = [
    ({"requests": 0}, "requests must be at least 1, not 0"),
    ({"prompt_tokens": 0}, "prompt_tokens must be at least 1"),
    ({"output_tokens": -1}, "output_tokens must be at least 1"),
    ({"num_layers": 0}, "num_layers must be at least 1"),
    ({"top_k": 0}, "top_k must be at least 1"),
    ({"prediction_depth": 4}, r"prediction_depth \(4\) must be less than num_layers \(4\)"),
    ({"top_k": 65}, r"top_k \(65\) exceeds num_experts \(64\)"),
    ({"stickiness": 1.1}, "stickiness must lie between 0 and 1, not 1.1"),
    ({"stickiness": float("nan")}, "stickiness must lie between"),
    ({"layer_correlation": -0.1}, "layer_correlation must lie"),
    ({"prediction_accuracy": 2}, "prediction_accuracy must lie"),
    ({"skew": -1}, "skew"),
    ({"skew": float("inf")}, "skew"),
    ({"prediction_depth": -1}, "prediction_depth"),
    ({"num_experts": 70_000}, "num_experts.*65535"),
    ({"seed": -1}, "seed"),
    ({"requests": 10**9}, "choices of experts; at most 100,000,000 are drawn"),
    ({"num_layers": 10**9}, "choices of experts; at most 100,000,000 are drawn"),
    ({"output_tokens": 10**12}, "choices of experts; at most 100,000,000 are drawn"),
    ({"prediction_depth": 10**9}, "choices of experts; at most 100,000,000 are drawn"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_KNOBS)
def test_knobs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize(replace(FLAT, **changes))


@settings(max_examples=60)
@given(
    st.builds(
        SyntheticKnobs,
        requests=st.integers(1, 3),
        prompt_tokens=st.integers(1, 4),
        output_tokens=st.integers(1, 4),
        num_layers=st.integers(1, 3),
        num_experts=st.integers(3, 9),
        top_k=st.integers(1, 3),
        skew=st.floats(0, 99),
        stickiness=st.floats(0, 1),
        layer_correlation=st.floats(0, 1),
        prediction_depth=st.integers(0, 3),
        prediction_accuracy=st.floats(0, 1),
        seed=st.integers(0, 2**31),
    ).filter(lambda knobs: knobs.problem() is None)
)
def test_any_knobs_give_a_trace_that_obeys_the_format(knobs: SyntheticKnobs) -> None:
    trace = synthesize(knobs)  # `from_arrays` checks every value
    assert trace.num_rows == knobs.requests * (knobs.prompt_tokens + knobs.output_tokens - 1)
    assert asdict(knobs) == trace.meta.provenance["knobs"]
    assert (trace.expert_ids[:] != trace.meta.unused).all()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("depth", [0, 1])
def test_a_trace_written_request_by_request_has_the_same_bytes(depth: int, tmp_path: Path) -> None:
    knobs = replace(FLAT, requests=7, num_layers=3, stickiness=0.5, prediction_depth=depth)
    header = {"model": "other", "layer_map": (1, 2, 5)}
    synthesize(knobs).with_meta(**header).save(tmp_path / "whole")
    counted: list[tuple[int, int]] = []
    trace = write_synthetic(
        tmp_path / "streamed", knobs, meta=header, progress=lambda *it: counted.append(it)
    )
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")
    assert trace.path == tmp_path / "streamed"
    assert counted == [(number, 7) for number in range(1, 8)]


def test_a_trace_is_written_in_the_memory_of_one_shard(tmp_path: Path) -> None:
    # Eight shards of ids, and of weights of two bytes; a shard is held twice while it is written.
    rows, shard_bytes = 8 * 65_536, 3 * 65_536
    knobs = replace(FLAT, requests=rows // 512, prompt_tokens=512, output_tokens=1)
    knobs = replace(knobs, num_layers=1, num_experts=2, top_k=1)
    peaks: list[int] = []
    tracemalloc.start()
    try:
        trace = write_synthetic(
            tmp_path / "trace",
            knobs,
            progress=lambda done, total: peaks.append(tracemalloc.get_traced_memory()[1]),
        )
    finally:
        tracemalloc.stop()
    assert trace.num_rows == rows
    assert peaks[-1] < 4 * shard_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 10**10}, "at most 10,000,000,000 are drawn"),
        ({"requests": 1, "output_tokens": 10**8}, "in one request; .* more and shorter requests"),
        ({"num_layers": 10**9}, "at most 10,000,000,000 are drawn"),
        ({"requests": 10**9, "prediction_depth": 1}, "at most 100,000,000 are drawn"),
        ({"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_a_trace_too_large_to_write_is_refused_before_anything_is(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        write_synthetic(tmp_path / "trace", replace(FLAT, **changes))
    assert not list(tmp_path.iterdir())


def test_more_choices_than_fit_the_memory_may_be_written() -> None:
    knobs = replace(FLAT, requests=10**4, num_layers=32, num_experts=64, top_k=8)
    assert knobs.problem() is not None
    assert knobs.problem(in_memory=False) is None
