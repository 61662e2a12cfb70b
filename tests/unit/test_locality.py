"""Locality: requests by hand, the same sums done slowly, and chance by its closed form."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import UsageError
from moesim.report.locality import (
    by_domain,
    locality_records,
    locality_table,
    temporal_distance,
)
from moesim.report.style import house_style
from moesim.trace import Trace
from moesim.trace.locality import Locality, distances, follows, locality, pooled
from moesim.trace.statistics import adjacent_overlap


def top_1(*requests: Any, domain: list[str] | None = None, experts: int = 6) -> Trace:
    """Return a top-1 trace of one layer."""
    return Trace.from_arrays(
        expert_ids=np.concatenate(requests)[:, None, None],
        seq_len=[len(request) for request in requests],
        num_experts=experts,
        domain=domain,
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda n: max(n) > 1))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    ids = rng.random((sum(lengths), draw(st.integers(1, 3)), 5)).argsort(-1)[..., :2]
    ids[rng.random(ids.shape) < 0.2] = -1
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=lengths,
        prompt_tokens=[1] * len(lengths),
        prompt_rows="absent",
        num_experts=5,
        gate_weights=rng.random(ids.shape),
        domain=[("a", "b")[i % 2] for i in range(len(lengths))],
    )


def used(trace: Trace, row: int, layer: int) -> set[int]:
    return set(trace.expert_ids[row][layer].tolist()) - {255}


def top(trace: Trace, row: int, layer: int) -> int:
    assert trace.gate_weights is not None
    pairs = zip(trace.gate_weights[row][layer], trace.expert_ids[row][layer], strict=True)
    best = [(-weight, int(expert)) for weight, expert in pairs if expert != 255]
    return min(best)[1] if best else 255


@given(traces())
def test_shares_are_those_counted_slowly(trace: Trace) -> None:
    for one in locality(trace):
        assert one.layer is not None
        rows: list[int] = []
        pairs = []
        for request in range(trace.num_requests):
            if trace.requests["domain"][request] == one.domain:
                mine = list(range(trace.num_rows))[trace.slice(request)]
                rows += mine
                pairs += mine[1:]
        sets = {row: used(trace, row, one.layer) for row in rows}
        tops = {row: top(trace, row, one.layer) for row in rows}
        assert one.pairs == len(pairs)
        assert one.uses == sum(len(sets[row]) for row in pairs)
        n, uses = max(len(pairs), 1), max(one.uses, 1)
        if pairs:
            assert one.same_set == pytest.approx(sum(sets[i] == sets[i - 1] for i in pairs) / n)
            assert one.same_top == pytest.approx(sum(tops[i] == tops[i - 1] for i in pairs) / n)
            squares = [(c / len(rows)) ** 2 for c in Counter(tops.values()).values()]
            assert one.chance_top == pytest.approx(sum(squares))
        if one.uses:
            shared = sum(len(sets[i] & sets[i - 1]) for i in pairs)
            assert one.overlap == pytest.approx(shared / uses)
            # every token of the domain against every other and itself
            drawn = sum(len(sets[i] & sets[j]) for i in rows for j in rows)
            expected = drawn / (len(rows) * sum(len(sets[i]) for i in rows))
            assert one.chance_overlap == pytest.approx(expected)


@given(traces())
def test_pooled_overlap_is_the_adjacent_overlap_of_the_trace(trace: Trace) -> None:
    one = pooled(locality(trace))
    assert (one.overlap if one.uses else 0.0) == pytest.approx(adjacent_overlap(trace))


@given(traces())
def test_uses_at_a_distance_of_one_are_the_shared_ones(trace: Trace) -> None:
    localities = locality(trace)
    for one in distances(trace, shuffles=1):
        parts = [part for part in localities if part.domain == one.domain and part.uses]
        assert one.counts[1] == pytest.approx(sum(part.overlap * part.uses for part in parts))


@given(traces())
def test_distances_are_those_counted_slowly(trace: Trace) -> None:
    expected: Counter[tuple[str, int]] = Counter()
    for request in range(trace.num_requests):
        last: dict[tuple[int, int], int] = {}
        for row in range(trace.num_rows)[trace.slice(request)]:
            for layer in range(trace.num_layers):
                for expert in used(trace, row, layer):
                    if (layer, expert) in last:
                        gap = row - last[layer, expert]
                        expected[trace.requests["domain"][request], gap] += 1
                    last[layer, expert] = row
    localities = distances(trace, shuffles=1)
    measured = {
        (one.domain, gap): int(count)
        for one in localities
        for gap, count in enumerate(one.counts)
        if count
    }
    assert measured == dict(expected)
    assert sum(one.uses for one in localities) == (np.asarray(trace.expert_ids[:]) != 255).sum()


def test_pairs_never_cross_requests() -> None:
    trace = top_1([1, 1, 2], [2], [2, 3])
    assert follows(trace).tolist() == [False, True, True, False, False, True]
    (one,) = locality(trace)
    assert (one.pairs, one.same_top) == (3, pytest.approx(1 / 3))
    assert one.same_set == one.overlap == one.same_top


def test_top_1_routing_has_one_locality_and_the_sum_of_squares_by_chance() -> None:
    trace = top_1([0, 0, 0, 1], [4, 5, 4, 5], domain=["x", "y"])
    x, y = locality(trace)
    assert (x.domain, x.same_top, x.chance_top) == ("x", pytest.approx(2 / 3), 10 / 16)
    assert (y.domain, y.same_top, y.chance_top) == ("y", 0, 0.5)
    assert x.chance_set == x.chance_overlap == x.chance_top
    everything = by_domain([x, y])[-1]
    assert everything.domain is None
    assert everything.chance_top == pytest.approx((10 / 16 + 0.5) / 2)  # each domain's own


def test_independent_tokens_follow_by_chance_and_are_like_their_shuffle() -> None:
    rng = np.random.default_rng(2)
    ids = rng.choice(6, size=20_000, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    trace = top_1(*np.split(ids, 200))
    (one,) = locality(trace)
    assert one.same_top == pytest.approx(one.chance_top, abs=0.015)
    assert one.chance_top == pytest.approx(0.24, abs=0.01)
    (gaps,) = distances(trace)
    shares, null = gaps.counts / gaps.uses, gaps.null_counts / gaps.uses
    np.testing.assert_allclose(shares[:20], null[:20], atol=0.012)
    assert gaps.median == pytest.approx(gaps.null_median, abs=1)


def test_sticky_tokens_are_told_from_their_shuffle() -> None:
    rng = np.random.default_rng(2)
    trace = top_1(*(np.repeat(rng.integers(0, 6, 20), 5) for _ in range(50)))
    (one,), (gaps,) = locality(trace), distances(trace)
    assert one.same_top > 0.8 > 0.2 > one.chance_top
    assert gaps.median == 1 < gaps.null_median


def test_without_gate_weights_the_top_expert_is_not_told() -> None:
    trace = Trace.from_arrays(expert_ids=[[[0, 1]], [[1, 0]]], seq_len=[2], num_experts=2)
    (one,) = locality(trace)
    assert math.isnan(one.same_top)
    assert one.same_set == one.overlap == 1
    assert "undefined" in locality_table([one], distances(trace)).rows[0][2].text


def test_a_domain_without_pairs_is_undefined_and_leaves_the_mean_alone() -> None:
    x, y = locality(top_1([0, 0, 1], [3], domain=["x", "y"]))
    assert y.pairs == 0
    assert math.isnan(y.same_top)
    assert pooled([x, y]).same_top == x.same_top
    assert math.isnan(pooled([y]).overlap)


def test_records_of_domains_have_their_own_distances_and_all_together_has_none() -> None:
    # x uses expert 0 again after 2 tokens, y after 1.
    trace = top_1([0, 1, 0], [2, 2], domain=["x", "y"])
    x, y, every = locality_records(locality(trace), distances(trace))["by_domain"]
    assert [record["domain"] for record in (x, y, every)] == ["x", "y", None]
    assert (x["median_distance_tokens"], y["median_distance_tokens"]) == (2, 1)
    assert (x["first_uses"], y["first_uses"]) == (pytest.approx(2 / 3), 0.5)
    assert "first_uses" not in every


def test_bad_input_is_refused() -> None:
    with pytest.raises(UsageError, match="no request of the trace has two tokens"):
        locality(top_1([1], [2]))
    with pytest.raises(UsageError, match="shuffles must be at least 1"):
        distances(top_1([1, 2]), shuffles=0)


def test_distances_repeat_with_their_seed() -> None:
    trace = top_1(np.random.default_rng(0).integers(0, 6, 60).tolist())
    one, two, three = (distances(trace, seed=seed)[0].null_counts for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_the_chart_draws_each_domain_beside_its_shuffle() -> None:
    trace = top_1([0, 0, 1, 0, 2], [4, 5, 4, 5], domain=["x", "y"])
    localities, reuse = locality(trace), distances(trace)
    with house_style():
        chart = temporal_distance(localities, reuse, about="About.")
        empty = temporal_distance(locality(top_1([0, 1])), distances(top_1([0, 1])), about="")
    lines = chart.axes[0][0].lines
    assert len(lines) == 4
    np.testing.assert_allclose(np.asarray(lines[0].get_ydata())[-1], 100 * 2 / 5)
    assert "undefined" in empty.axes[0][0].texts[0].get_text()
    assert len(chart.rows) == 2 * 5


def test_the_command_prints_a_table_and_writes_figures(tmp_path: Path) -> None:
    top_1([0, 0, 1, 0], [4, 5, 4], domain=["x", "y"]).save(tmp_path / "t")
    command = ["trace", "locality", str(tmp_path / "t"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == str(tmp_path / "out")
    with (tmp_path / "out/locality.csv").open() as lines:
        assert [row["domain"] for row in csv.DictReader(lines)] == ["x", "y"]
    assert (tmp_path / "out/plots/temporal_distance.png").is_file()
    assert "--force" in str(CliRunner().invoke(app, command).exception)
    assert CliRunner().invoke(app, ["trace", "locality", str(tmp_path / "t")]).exit_code == 0


def test_parts_are_weighted_by_what_they_count() -> None:
    one = Locality("x", 0, 1, 2, 1.0, 0.0, 1.0, 0.0, 0.5, 0.1)
    two = Locality("x", 1, 3, 6, 0.0, 1.0, 0.0, 1.0, 0.0, 0.5)
    mean = pooled([one, two], "x")
    assert (mean.domain, mean.layer, mean.pairs, mean.uses) == ("x", None, 4, 8)
    assert (mean.same_top, mean.chance_set, mean.overlap) == (0.25, 0.75, 0.125)
    assert mean.chance_overlap == pytest.approx(0.4)
