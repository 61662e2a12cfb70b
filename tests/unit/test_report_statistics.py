"""Means over seeds, their intervals, and differences taken seed by seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moesim.report.statistics import difference, estimate, t_quantile


def test_t_quantiles_are_those_of_printed_tables() -> None:
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}
    for degrees, quantile in printed.items():
        assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)
    for degrees in (*range(1, 40), 99, 100, 999, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def test_a_t_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match=r"degrees of freedom \(0\) must be at least 1"):
        t_quantile(0)


def test_an_interval_is_students() -> None:
    values = [3.0, 4.5, 1.0, 2.25]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    made = estimate(values)
    assert (made.low, made.high, made.n) == (pytest.approx(low), pytest.approx(high), 4)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    covered = sum(
        made.low <= 10 <= made.high
        for made in (estimate(rng.normal(10, 3, 3).tolist()) for _ in range(4000))
    )
    assert 0.935 < covered / 4000 < 0.965


def test_one_seed_has_a_mean_and_no_interval() -> None:
    made = estimate([5.0])
    assert (made.mean, made.half, made.low, made.high) == (5.0, None, 5.0, 5.0)


def test_equal_values_have_exactly_that_mean_and_no_spread() -> None:
    made = estimate([0.1] * 3)
    assert (made.mean, made.half) == (0.1, 0.0)


def test_undefined_values_are_counted_and_left_out() -> None:
    made = estimate([1.0, math.nan, 3.0])
    assert (made.mean, made.n, made.undefined) == (2.0, 2, 1)


def test_nothing_defined_is_undefined() -> None:
    made = estimate([math.nan, math.nan])
    assert not made.defined
    assert (made.half, made.n, made.undefined) == (None, 0, 2)


def test_a_paired_difference_cancels_what_the_seeds_share() -> None:
    workload = [100.0, 200.0, 400.0]
    made = difference([value * 1.1 for value in workload], workload)
    assert made.mean == pytest.approx(0.1)
    assert made.half == pytest.approx(0, abs=1e-9)


def test_more_than_a_negative_baseline_is_more() -> None:
    assert difference([-1.0], [-2.0]).mean == 0.5


def test_shares_differ_in_points() -> None:
    assert difference([0.6], [0.5], relative=False).mean == pytest.approx(0.1)


def test_a_difference_relative_to_nothing_is_undefined() -> None:
    assert not difference([1.0], [0.0]).defined
