"""The parts of a search: values, conditions, the bisection, the front, and who chooses points."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workloads import tiny_trace

from moesim.errors import UsageError
from moesim.results.metric_names import METRICS
from moesim.scenario import load_scenario
from moesim.search.front import better_part, dominates, front_of, ranks_of
from moesim.search.metrics import Condition, parse_condition, parse_objective
from moesim.search.optimum import parse_prefix
from moesim.search.ranges import numbers_of, parse_over
from moesim.search.threshold import Bisection, against_trend, most_steps
from moesim.simulate import run

AT_LEAST = Condition("output_tokens_per_s", ">=", 0.0)


def search(values: list[float], condition: Condition, probes: int = 2) -> Bisection:
    """Return a finished bisection over these values of a metric."""
    found = Bisection(len(values), condition, probes, tolerance=0.02)
    while wanted := found.wanted():
        assert not set(wanted) & set(found.tried), "no value is tried twice"
        found.tried.update({at: values[at] for at in wanted})
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", [1, 2, 3, 4]),
        ("1..64..2x", [1, 2, 4, 8, 16, 32, 64]),
        ("1GB/s..3GB/s", ["1GB/s", "2GB/s", "3GB/s"]),
        ("1..3GB/s", ["1GB/s", "2GB/s", "3GB/s"]),
        ("1GB/s..2GB/s..0.5GB/s", ["1GB/s", "1.5GB/s", "2GB/s"]),
        ("1/layer..3/layer", ["1/layer", "2/layer", "3/layer"]),
        ("0..0.4..0.1", [0, 0.1, 0.2, 0.3, 0.4]),
        ("10%..30%..10", ["10%", "20%", "30%"]),
        ("5..5", [5]),
        ("1..2..0.6", [1, 1.6]),
        ("lru,lfu", ["lru", "lfu"]),
        ("4, 8", [4, 8]),
        ("[4, 8]", [4, 8]),
        ("{a: 1}, {a: 2}", [{"a": 1}, {"a": 2}]),
        ("../traces/a,../traces/b", ["../traces/a", "../traces/b"]),
    ],
)
def test_values_are_a_list_or_an_exact_range(text: str, values: list[object]) -> None:
    assert parse_over(f"cache.slots={text}") == ("cache.slots", values)


def test_a_key_alone_has_no_values() -> None:
    assert parse_over(" cache.slots ") == ("cache.slots", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write a dotted key"),
        ("a..b=1", "write a dotted key"),
        ("=1", "write a dotted key"),
        ("a=", "write a dotted key"),
        ("a=4..1", "write the lower end first"),
        ("a=1..4..0", "has no step"),
        ("a=1..4..1x", "a factor needs to be above 1"),
        ("a=0..4..2x", "the range above 0"),
        ("a=1GB/s..2MB/s", "several units"),
        ("a=1GB/s..2GB/s..1MB/s", "several units"),
        ("a=1..9999999999", "more than 10,000 values"),
        ("a=1..x", "is no range"),
    ],
)
def test_a_wrong_range_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="--over") as error:
        parse_over(text)
    assert said in str(error.value)


def test_numbers_of_one_kind_are_told_from_other_values() -> None:
    assert numbers_of(["500MB/s", "3GB/s"]) == [0.5, 3]
    assert numbers_of(["2/layer", "10/layer"]) == [2, 10]
    assert numbers_of([1, 2.5]) == [1, 2.5]
    assert numbers_of(["lru", "lfu"]) is None
    assert numbers_of([64, "4/layer"]) is None
    assert numbers_of([True, False]) is None


def test_a_condition_is_a_metric_a_sign_and_a_number() -> None:
    assert parse_condition("--until", "ttft_p99_ms<=5e2") == Condition("ttft_p99_ms", "<=", 500)
    assert str(parse_condition("--until", " makespan_s > 1 ")) == "makespan_s > 1"
    assert not Condition("makespan_s", "<", 2).meets(math.nan)
    assert not Condition("makespan_s", "<", 2).meets(2)
    assert Condition("makespan_s", "<=", 2).meets(2)
    assert Condition("makespan_s", "<=", 2).excess(3) == 0.5
    assert Condition("makespan_s", ">=", 2).excess(3) == -0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode_tok_s >= 20", "is no number of a run's summary; the nearest are "),
        ("decode_tok_s >= 20", "decode_mean_tokens_per_s"),
        ("tokens_per_sec >= 20", "output_tokens_per_s"),
        ("ttft >= 20", "ttft_mean_ms"),
        ("ttft_p99_ms", "write a metric"),
        ("ttft_p99_ms == 5", "write a metric"),
        ("ttft_p99_ms <= 5ms", "without a unit"),
        ("ttft_p99_ms <= nan", "is no number"),
    ],
)
def test_a_wrong_condition_is_refused_with_near_matches(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_condition("--until", text)
    assert str(error.value).startswith("--until ")
    assert said in str(error.value)


def test_an_unknown_objective_names_its_option() -> None:
    with pytest.raises(UsageError, match=r"--maximize 'hit_rate'.*expert_hit_rate"):
        parse_objective("--maximize", "hit_rate")


@pytest.mark.parametrize("text", ["", "0", "1", "0.5,0.25", "a", "0.2,0.2", "-0.1"])
def test_prefixes_are_ascending_shares(text: str) -> None:
    assert parse_prefix("0.1,0.5") == (0.1, 0.5)
    with pytest.raises(UsageError, match="--prefix"):
        parse_prefix(text)


def test_the_metrics_are_the_numbers_of_a_summary(tmp_path: Path) -> None:
    """An option of a run may add keys, so the list may have more; a run must not."""
    tiny_trace(requests=2).save(tmp_path / "trace")
    (tmp_path / "x.yaml").write_text(
        "trace: trace\nhardware: rtx-4090\ncache: {slots: 4/layer}\nprefetch: predicted\n"
    )
    result = run(load_scenario(tmp_path / "x.yaml"))
    numbers = {
        key
        for key, value in result.summary.items()
        if (isinstance(value, int | float) and not isinstance(value, bool)) or value is None
    }
    described = {"seed", "num_experts", "num_layers"}
    assert numbers - set(METRICS) == described
    optional = {
        *("prefetch_buffers_bytes", "recurrent_bytes"),
        *("prefix_hit_tokens", "prefix_hit_share", "prefix_evicted_blocks"),
    }
    assert set(METRICS) - set(result.summary) <= optional
    assert len(METRICS) == len(set(METRICS))


@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=80),
    falling=st.booleans(),
    limit=st.integers(-60, 60),
    sign=st.sampled_from([">=", "<=", ">", "<"]),
    probes=st.integers(0, 5),
)
def test_a_bisection_finds_what_the_whole_row_shows(
    values: list[int], falling: bool, limit: int, sign: str, probes: int
) -> None:
    row = [float(value) for value in sorted(values, reverse=falling)]
    condition = Condition("makespan_s", sign, limit)
    meets = [condition.meets(value) for value in row]
    found = search(row, condition, probes)
    assert len(found.tried) <= most_steps(len(row), probes)
    if all(meets):
        assert found.status == "met everywhere"
    elif not any(meets):
        assert found.status == "met nowhere"
    else:
        assert found.status == "found"
        rising = meets[-1]
        expected = meets.index(True) if rising else max(i for i, m in enumerate(meets) if m)
        assert found.found == expected
        assert found.beyond == expected + (-1 if rising else 1)
        assert found.side == ("smallest" if rising else "largest")


def test_sixty_four_values_take_nine_runs_and_a_thousand_take_thirteen() -> None:
    assert most_steps(64, 2) == 9
    assert most_steps(1000, 2) == 13
    assert most_steps(64, 0) == 2 + 6
    assert [most_steps(count, 2) for count in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_a_hump_is_refused_although_a_bisection_would_find_a_crossing() -> None:
    hump = [1.0, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2.5]
    found = search(hump, Condition("makespan_s", ">=", 5))
    assert found.status == "not monotone"
    assert "changes 2 times" in found.broken
    # Here the condition changes once, yet the metric turns: another crossing may be hidden.
    found = search(hump, Condition("makespan_s", ">=", 2))
    assert found.status == "not monotone"
    assert "against its trend" in found.broken
    assert found.found is None
    assert found.side is None


def test_moves_against_the_trend_within_the_tolerance_do_not_matter() -> None:
    wiggle = [0.0, 10, 20, 19.9, 30, 40, 50, 60]
    assert search(wiggle, Condition("makespan_s", ">=", 25)).status == "found"
    tight = Bisection(4, Condition("makespan_s", ">=", 25), 2, tolerance=0.001)
    tight.tried.update(enumerate([0.0, 20, 19.9, 60]))
    assert tight.status == "not monotone"


def test_the_least_of_the_moves_both_ways_is_against_the_trend() -> None:
    assert against_trend([1, 5, 4, 9]) == (1, 8)
    assert against_trend([9, 4, 5, 1]) == (1, 8)
    assert against_trend([3]) == (0, 0)
    assert against_trend([]) == (0, 0)


def test_an_undefined_value_misses_the_condition() -> None:
    found = search([math.nan, math.nan, 3.0, 4.0, 5.0], Condition("makespan_s", ">=", 1))
    assert (found.status, found.found) == ("found", 2)


def test_a_failed_run_ends_a_bisection() -> None:
    found = Bisection(9, AT_LEAST, 2, 0.02, {0: 1.0, 8: math.nan}, failed=True)
    assert (found.status, found.wanted(), found.found) == ("failed", [], None)


SCORES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=25
)


@given(SCORES)
def test_the_front_is_what_no_other_point_dominates(scores: list[tuple[int, ...]]) -> None:
    front = set(front_of(scores))
    for at, own in enumerate(scores):
        beaten = any(
            all(a >= b for a, b in zip(other, own, strict=True)) and other != own
            for other in scores
        )
        assert (at in front) is not beaten


@given(SCORES)
def test_a_rank_is_the_longest_chain_of_better_points(scores: list[tuple[int, ...]]) -> None:
    ranks = ranks_of(scores)
    for at, own in enumerate(scores):
        above = [ranks[i] for i, other in enumerate(scores) if dominates(other, own)]
        assert ranks[at] == max(above, default=-1) + 1


@given(SCORES, st.integers(0, 25))
def test_the_better_part_has_no_point_that_one_outside_dominates(
    scores: list[tuple[int, ...]], count: int
) -> None:
    part = better_part(scores, [0.0] * len(scores), count)
    assert part == sorted(part)
    assert len(part) == min(count, len(scores))
    outside = set(range(len(scores))) - set(part)
    for inner, outer in itertools.product(part, outside):
        assert not dominates(scores[outer], scores[inner])


def test_points_that_miss_a_condition_are_behind_all_others() -> None:
    assert better_part([[9], [1], [2], [8]], [0.5, 0, 0, 0.1], 2) == [1, 2]
    assert better_part([[9], [1], [2], [8]], [0.5, 0, 0, 0.1], 3) == [1, 2, 3]


def test_the_ends_of_a_front_are_kept_before_its_middle() -> None:
    line = [[0, 10], [4, 6], [5, 5], [6, 4], [10, 0]]
    assert better_part(line, [0] * 5, 2) == [0, 4]
