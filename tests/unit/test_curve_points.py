"""Intervals, bytes and bounds of a curve: against their definitions, and what files hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_traces import tiny_trace

from moesim.report.chart import save_charts
from moesim.report.curve import CurveReport, curve_chart, write_curve
from moesim.report.curve_points import (
    CopyLink,
    CurvePoint,
    Resampling,
    curve_points,
    rate_interval,
)
from moesim.simulate.curve import CurveHits, curve_hits
from moesim.trace import Trace

LINK = CopyLink("25GB/s", 25 * 10**9, 10_000)


def points_of(trace: Trace, **changes: Any) -> list[CurvePoint]:
    found = curve_hits(trace, ["lru", "min", "arc"], by_request=True)
    options: dict[str, Any] = {"expert_bytes": 7_000, "link": LINK, "resampling": Resampling(200)}
    return curve_points(found, trace.num_layers, **{**options, **changes})


def counts(requests: int) -> Any:
    """Return a strategy for hits and misses of requests, at most 50 of each."""
    each = st.lists(st.integers(0, 50), min_size=requests, max_size=requests)
    return st.tuples(each, each)


@given(st.integers(1, 12).flatmap(counts), st.integers(0, 5))
def test_an_interval_holds_its_point_and_lies_between_the_requests(
    parts: tuple[list[int], list[int]], seed: int
) -> None:
    hits, misses = map(np.array, parts)
    accesses = hits + misses
    interval = rate_interval(hits[:, None], accesses, Resampling(1000, seed))
    if (accesses > 0).sum() < 2:
        assert interval is None
        return
    assert interval is not None
    (low,), (high,) = interval
    rates = hits[accesses > 0] / accesses[accesses > 0]
    assert rates.min() - 1e-12 <= low <= hits.sum() / accesses.sum() + 1e-12
    assert hits.sum() / accesses.sum() - 1e-12 <= high <= rates.max() + 1e-12


def test_the_interval_of_many_equal_requests_is_that_of_their_mean() -> None:
    """Requests of equal length: the bootstrap of a ratio is that of a mean, which is known."""
    rng = np.random.default_rng(2)
    hits, accesses = rng.integers(40, 61, (400, 1)), np.full(400, 100)
    interval = rate_interval(hits, accesses, Resampling(4000))
    assert interval is not None
    rates = hits[:, 0] / 100
    half = 1.96 * rates.std() / np.sqrt(400)
    assert interval[:, 0] == pytest.approx([rates.mean() - half, rates.mean() + half], abs=4e-4)


def test_resamples_in_parts_and_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, accesses = np.arange(20)[:, None], np.full(20, 30)
    first, other = (rate_interval(hits, accesses, Resampling(300, seed)) for seed in (0, 1))
    assert first is not None
    assert other is not None
    assert not np.array_equal(first, other)
    monkeypatch.setattr("moesim.report.curve_points._SAMPLED_AT_ONCE", 20 * 7)
    parts = rate_interval(hits, accesses, Resampling(300))
    assert parts is not None
    assert np.array_equal(parts, first)


def test_bytes_are_misses_times_the_size_of_an_expert_and_the_bound_is_the_busy_link() -> None:
    trace = tiny_trace()
    for point in points_of(trace):
        assert point.misses == point.accesses - point.hits
        assert point.hit_rate == point.hits / point.accesses
        assert point.slots == point.capacity * trace.num_layers
        assert point.cache_bytes == point.slots * 7_000
        assert point.miss_bytes == point.misses * 7_000
        assert point.miss_bytes_per_token == point.miss_bytes / trace.num_rows
        busy_ns = point.misses * (7_000 / 25 + 10_000)
        assert point.bound_ns_per_token == pytest.approx(busy_ns / trace.num_rows)
        assert point.hit_rate_low is not None
        assert point.hit_rate_low <= point.hit_rate <= (point.hit_rate_high or 0)


def test_what_is_not_known_is_none() -> None:
    point = points_of(tiny_trace(), expert_bytes=None, link=None, resampling=None)[0]
    assert {key for key, value in point.as_plain().items() if value is None} == {
        "hit_rate_low", "hit_rate_high", "cache_bytes", "miss_bytes", "miss_bytes_per_token",
        "bound_ns_per_token",
    }  # fmt: skip
    sized = points_of(tiny_trace(), link=None)[0]
    assert sized.miss_bytes is not None
    assert sized.bound_ns_per_token is None


def test_bytes_of_a_long_trace_do_not_wrap_around() -> None:
    found = CurveHits((1,), {"lru": np.array([[0]])}, np.array([2**40]), np.array([2**30]))
    (point,) = curve_points(found, 1, expert_bytes=2**30)
    assert point.miss_bytes == 2**70


def report_of(trace: Trace, **changes: Any) -> CurveReport:
    return CurveReport(points_of(trace, **changes), {"trace": "tiny"}, "Tiny.", ["min"])


def test_the_files_hold_every_point(tmp_path: Path) -> None:
    report = report_of(tiny_trace())
    write_curve(report, tmp_path)
    stored = json.loads((tmp_path / "curve.json").read_text())
    assert stored["trace"] == "tiny"
    assert len(stored["points"]) == len(report.points) == 15
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, point, plain in zip(rows, report.points, stored["points"], strict=True):
        assert row["policy"] == plain["policy"] == point.policy
        assert int(row["miss_bytes"]) == plain["miss_bytes"] == point.miss_bytes
        assert float(row["hit_rate"]) == pytest.approx(point.hit_rate)
        assert float(row["bound_ns_per_token"]) == pytest.approx(plain["bound_ns_per_token"])
        assert (row["knows_future"] == "1") is plain["knows_future"] is (point.policy == "min")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {f"curve.{kind}" for kind in ("png", "svg", "csv", "md")}


def test_each_axis_of_the_figure_has_a_unit_and_its_data_are_the_points(tmp_path: Path) -> None:
    report = report_of(tiny_trace())
    (chart,) = save_charts(tmp_path / "whole", [lambda: curve_chart(report)])
    assert [axes.get_ylabel() for axes in chart.axes[0]] == [
        "hit rate (% of accesses)", "missed bytes (MiB per token)",
        "bound on copy time (ms per token)",
    ]  # fmt: skip
    assert {axes.get_xlabel() for axes in chart.axes[0]} == {"expert slots per layer"}
    drawn = {(panel, policy, slots): value for panel, policy, slots, value, *_ in chart.rows}
    for point in report.points:
        assert drawn["hit_rate_pct", point.policy, point.capacity] == 100 * point.hit_rate
    assert "lower bound on the time of a token" in chart.caption
    assert "the cache state is not resampled" in chart.caption
    bare = report_of(tiny_trace(), expert_bytes=None, link=None, resampling=None)
    (alone,) = save_charts(tmp_path / "bare", [lambda: curve_chart(bare)])
    assert len(alone.axes[0]) == 1
    assert "bound" not in alone.caption
    assert "resample" not in alone.caption
