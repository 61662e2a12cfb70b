"""The knobs of a synthetic decoupled trace do what they say, as measured on the trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_traces import assert_same

from moesim.errors import UsageError
from moesim.trace import DecoupledKnobs, Trace, synthesize_decoupled, validate_trace

KNOBS = DecoupledKnobs(requests=20, prompt_tokens=501, output_tokens=500, num_layers=3)


def chosen(trace: Trace) -> npt.NDArray[np.int64]:
    """Return the expert of each row: (requests, rows of a request)."""
    return trace.expert_ids[:][:, 0, 0].astype(np.int64).reshape(trace.num_requests, -1)


def test_all_layers_want_the_same_expert(tmp_path: Path) -> None:
    trace = synthesize_decoupled(replace(KNOBS, requests=2))
    ids = trace.expert_ids[:]
    assert ids.shape == (2000, 3, 1)
    assert (ids == ids[:, :1]).all()
    assert trace.meta.router == "decoupled"
    assert trace.meta.synthetic
    assert DecoupledKnobs(**trace.meta.provenance["knobs"]) == replace(KNOBS, requests=2)
    trace.save(tmp_path / "trace")
    assert_same(trace, validate_trace(tmp_path / "trace"))


@pytest.mark.parametrize("skew", [0.0, 0.8])
@pytest.mark.parametrize("persistence", [0.25, 0.713, 1.0])
def test_persistence_is_the_share_that_follows_and_leaves_popularity_alone(
    skew: float, persistence: float
) -> None:
    trace = synthesize_decoupled(replace(KNOBS, skew=skew, persistence=persistence, requests=80))
    ids = chosen(trace)
    assert (ids[:, 1:] == ids[:, :-1]).mean() == pytest.approx(persistence, abs=0.01)
    if persistence < 1:
        shares = np.sort(np.bincount(ids.ravel(), minlength=7))[::-1] / ids.size
        expected = replace(KNOBS, skew=skew).popularity
        assert shares == pytest.approx(expected, abs=0.02)


def test_popularity_is_a_zipf_law() -> None:
    law = replace(KNOBS, skew=1.0).popularity
    assert law.sum() == pytest.approx(1)
    assert law[0] / law[6] == pytest.approx(7)


def test_domains_differ_in_what_is_popular_and_take_turns() -> None:
    trace = synthesize_decoupled(replace(KNOBS, domains=4, skew=2.0))
    favourites = [np.bincount(row, minlength=7).argmax() for row in chosen(trace)]
    assert len(set(favourites)) > 1
    assert [favourites[i] for i in range(20)] == [favourites[i % 4] for i in range(20)]
    assert trace.requests["domain"][5] == "synthetic 1"


def test_lengths_are_the_means_of_geometric_ones() -> None:
    knobs = replace(KNOBS, requests=4000, prompt_tokens=8, output_tokens=5, geometric=True)
    requests = synthesize_decoupled(knobs).requests
    assert requests["prompt_tokens"].mean() == pytest.approx(8, rel=0.1)
    assert requests["output_tokens"].mean() == pytest.approx(5, rel=0.1)
    assert requests["output_tokens"].std() == pytest.approx(20**0.5, rel=0.1)


def test_given_lengths_replace_those_of_the_knobs() -> None:
    knobs = DecoupledKnobs(requests=3, num_layers=2)
    lengths = np.array([[1, 1], [5, 2], [2, 9]])
    trace = synthesize_decoupled(knobs, lengths)
    assert trace.requests["prompt_tokens"].tolist() == [1, 5, 2]
    assert trace.requests["output_tokens"].tolist() == [1, 2, 9]
    assert trace.requests["num_rows"].tolist() == [1, 6, 10]
    for wrong in (lengths[:2], lengths - 1):
        with pytest.raises(UsageError, match=r"lengths must have the shape \(3, 2\)"):
            synthesize_decoupled(knobs, wrong)


def test_the_seed_decides_everything() -> None:
    knobs = replace(KNOBS, requests=2, geometric=True)
    one, other = (synthesize_decoupled(replace(knobs, seed=seed)) for seed in (0, 1))
    assert_same(one, synthesize_decoupled(knobs))
    assert one.requests["num_rows"].tolist() != other.requests["num_rows"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 0}, "requests must be at least 1, not 0"),
        ({"domains": 0}, "domains must be at least 1, not 0"),
        ({"num_experts": 70_000}, "num_experts.*65535"),
        ({"skew": -1.0}, "skew must lie between 0 and 100"),
        ({"persistence": 0.1}, r"persistence must lie between 0\.143.*and 1, not 0\.1"),
        ({"persistence": 1.1}, r"not 1\.1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize_decoupled(replace(KNOBS, **changes))
