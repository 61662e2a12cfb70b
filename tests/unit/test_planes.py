"""Planes of settings: which side a setting is on, and where the border runs."""

from __future__ import annotations

import math

import pytest

from moesim.report.planes import _border, by_side, draw_plane, side, spread
from moesim.report.statistics import Estimate


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Estimate(2, 1, 3), 1),
        (Estimate(-2, 1, 3), -1),
        (Estimate(2, 2.5, 3), 0),
        (Estimate(2, None, 1), 0),  # one value has no interval
        (Estimate(math.nan, None, 0), 0),
        (None, 0),
    ],
)
def test_a_side_needs_an_interval_without_zero(value: Estimate | None, expected: int) -> None:
    assert side(value) == expected


def test_undecided_settings_lie_on_neither_side() -> None:
    estimates = [Estimate(-2, 1, 3), Estimate(2, 2.5, 3), Estimate(2, 1, 3), None]
    assert by_side([12, 25, 50, 75], estimates) == ([12], [50])


def test_the_border_runs_in_the_middle_of_undecided_settings() -> None:
    assert _border([[1, 1, -1]]) == [([2, 2], [0, 1])]
    assert _border([[1, 0, -1]]) == [([1.5, 1.5], [0, 1])]
    assert _border([[1], [-1]]) == [([0, 1], [1, 1])]


def test_no_border_is_drawn_where_no_setting_lies_on_the_other_side() -> None:
    assert _border([[1, 0, 1], [0, 0, 1]]) == []


def test_a_plane_hatches_what_is_undecided_and_leaves_out_what_is_missing() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_plane(axes, ["a", "b", "c"], ["x"], [[Estimate(3, 1, 3), Estimate(1, 2, 3), None]], most=5)
    assert [text.get_text() for text in axes.texts] == ["+3", "+1"]
    hatched = [each for each in axes.collections if each.get_hatch()]
    assert len(hatched) == 1
    assert spread(Estimate(1.25, 0.5, 3)) == "+1.2 ± 0.5"
