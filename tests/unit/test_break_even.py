"""The border between time saved and time lost, and the sentence about it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from moesim.dial import Cell, Link, Plane, parse_depths, parse_links, parse_shares
from moesim.dial.figure import break_even_chart
from moesim.hardware import load_hardware
from moesim.report.statistics import Estimate
from moesim.report.style import house_style

Saved = Mapping[tuple[float, float], tuple[float, float | None]]
"""Mean and half interval of the time saved in %, by recall and precision."""


def cell(recall: float, precision: float, mean: float, half: float | None) -> Cell:
    saved = Estimate(mean / 100, None if half is None else half / 100, 3)
    return Cell(recall, precision, saved, 1.0, 0.5, 0.0, 0.0, 0.0)


def plane(saved: Saved, depth: int = 1) -> Plane:
    cells = tuple(cell(*accuracy, *value) for accuracy, value in sorted(saved.items()))
    return Plane(Link("1x"), depth, cells, cells[-1], (), ())


STAIRS: Saved = {
    (0.5, 0.5): (-9, 1), (0.5, 0.8): (-2, 1), (0.5, 1.0): (3, 1),
    (1.0, 0.5): (-12, 1), (1.0, 0.8): (4, 1), (1.0, 1.0): (9, 0),
}  # fmt: skip


def test_the_needed_accuracies_are_the_corners_of_the_region_that_pays() -> None:
    assert plane(STAIRS).pays_from == [(0.5, 1.0), (1.0, 0.8)]


@pytest.mark.parametrize("half", [5, 4])
def test_an_accuracy_whose_interval_includes_zero_does_not_pay(half: float) -> None:
    unsure = plane({**STAIRS, (1.0, 0.8): (4, half)})
    assert unsure.pays_from == [(0.5, 1.0)]
    assert {c.verdict for c in unsure.cells} == {"pays", "loses", "unresolved"}


def test_an_accuracy_does_not_pay_if_a_better_one_loses() -> None:
    assert plane({**STAIRS, (1.0, 1.0): (-1, 0.5)}).pays_from == []
    assert plane({**STAIRS, (0.5, 0.8): (4, 1), (1.0, 0.8): (-4, 1)}).pays_from == [(0.5, 1.0)]


def test_a_border_lies_where_the_mean_is_linear_in_wrong_copies() -> None:
    """Half way from -2 to 3 by 2 in 5: from 0.25 to 0 wrong copies for a right one."""
    low, high = plane(STAIRS).borders
    assert (low.fails_at, low.pays_from, low.claimed) == (0.8, 1.0, True)
    assert low.mean == pytest.approx(1 / (1 + 0.25 * 3 / 5))
    assert (high.fails_at, high.pays_from, high.claimed) == (0.5, 0.8, True)
    assert high.mean == pytest.approx(1 / (1 + 0.25 + 0.75 * 4 / 16))


def test_a_border_is_not_claimed_where_an_interval_of_its_sides_includes_zero() -> None:
    (border, _) = plane({**STAIRS, (0.5, 0.8): (-2, 2.5)}).borders
    assert (border.fails_at, border.pays_from, border.claimed) == (0.8, 1.0, False)
    (border, _) = plane({**STAIRS, (0.5, 1.0): (3, 3.5)}).borders
    assert (border.fails_at, border.pays_from, border.claimed) == (1.0, None, False)
    assert border.mean is not None


def test_there_is_no_border_where_all_accuracies_pay_or_none_does() -> None:
    (every,) = plane({(1.0, 0.5): (1, 0.1), (1.0, 1.0): (2, 0.1)}).borders
    assert (every.fails_at, every.pays_from, every.mean, every.claimed) == (None, 0.5, None, False)
    (none,) = plane({(1.0, 0.5): (-2, 0.1), (1.0, 1.0): (-1, 0.1)}).borders
    assert (none.fails_at, none.pays_from, none.mean, none.claimed) == (1.0, None, None, False)


def test_a_line_is_dotted_and_its_point_hollow_where_the_border_is_not_claimed() -> None:
    def drawn(saved: Saved) -> tuple[list[str], list[str]]:
        with house_style():
            chart = break_even_chart([plane(saved)], {Link("1x"): "25GB/s"}, "About the run.")
        lines = [(line, len(np.asarray(line.get_xdata()))) for line in chart.axes[0][0].lines]
        return (
            [str(line.get_linestyle()) for line, points in lines if points == 2],
            [str(line.get_markerfacecolor()) for line, points in lines if points == 1],
        )

    assert drawn(STAIRS) == (["-"], ["black", "black"])
    assert drawn({**STAIRS, (0.5, 0.8): (-2, 2.5)}) == (["--"], ["white", "black"])


def test_the_figure_has_units_on_its_axes_and_a_panel_for_each_depth() -> None:
    with house_style():
        planes = [plane(STAIRS, depth) for depth in (1, 2)]
        chart = break_even_chart(planes, {Link("1x"): "25GB/s"}, "About the run.")
    assert [len(row) for row in chart.axes] == [1, 1]
    assert chart.axes[1][0].get_xlabel() == "recall (%)"
    assert chart.axes[0][0].get_ylabel() == "precision (%)"
    assert len(chart.rows) == 2 * len(STAIRS)
    assert chart.caption.endswith("About the run.")


def test_lists_are_sorted_and_hold_each_value_once() -> None:
    assert parse_shares("--recall", "0.9,50%, 0,0.5", zero=True) == (0.0, 0.5, 0.9)
    assert parse_depths("--depth", "3,1,3") == (1, 3)


def test_a_factor_scales_both_directions_and_a_bandwidth_replaces_them() -> None:
    machine = load_hardware("rtx-4090")
    own, double, fixed = parse_links("--link", "1x,2x,16GB/s")
    assert own.is_own
    assert own.changes(machine) == {}
    pinned, pageable = machine.d2h.pinned_bytes_per_s, machine.d2h.pageable_bytes_per_s
    changes = double.changes(machine)
    assert changes["hardware.d2h.pinned_bandwidth"] == f"{2 * pinned // 10**9}GB/s"
    assert changes["hardware.d2h.pageable_bandwidth"] == f"{2 * pageable // 10**9}GB/s"
    assert set(fixed.changes(machine).values()) == {"16GB/s"}
    assert len(fixed.changes(machine)) == len(changes) == 4
    assert fixed.name(machine, pinned=True) == "16GB/s"
    assert double.name(machine, pinned=True).endswith("(2x)")
