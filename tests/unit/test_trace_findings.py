"""Each verdict on a trace, on traces made so that the answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_traces import tiny_trace

from moesim.report.findings import verdicts
from moesim.report.findings_charts import plots_for_findings
from moesim.simulate.curve import curve_hits
from moesim.trace import SyntheticKnobs, Trace, synthesize
from moesim.trace.findings import Findings, Sample, examine, interval, overflow, sampled
from moesim.trace.findings.usage import reuse, spread

Random = np.random.Generator


def trace_of(ids: np.ndarray, lengths: list[int], experts: int, **changes: Any) -> Trace:
    return Trace.from_arrays(expert_ids=ids, seq_len=lengths, num_experts=experts, **changes)


def examined(trace: Trace, **options: Any) -> Findings:
    sample = sampled(trace, options.pop("rows", 20_000))
    slots = max(trace.top_k, trace.num_experts // 4)
    replay = curve_hits(sample.as_trace(), ["lru"], capacities=[slots], by_request=True)
    hits = (slots, replay.hits["lru"][:, 0], replay.accesses)
    return examine(trace, sample, hits=hits, **options)


def said(found: Findings) -> dict[str, str]:
    return {one.topic: one.text for one in verdicts(found)}


def alarms(found: Findings) -> set[str]:
    return {one.topic for one in verdicts(found) if one.alarm}


def knobs(**changes: Any) -> Trace:
    plain = {"skew": 0.0, "stickiness": 0.0, "layer_correlation": 0.0, "requests": 40}
    sizes = {"num_experts": 32, "top_k": 4, "num_layers": 4, "prompt_tokens": 40}
    return synthesize(SyntheticKnobs(**{**plain, **sizes, **changes}))


def choose(rng: Random, rows: int, layers: int, experts: int, k: int) -> np.ndarray:
    return rng.random((rows, layers, experts)).argsort(-1)[..., :k]


def test_uniform_and_independent_routing_is_said_to_be_so_and_hits_slots_over_experts() -> None:
    found = examined(knobs())
    assert (found.uniform, found.independent) == (True, True)
    assert "UNIFORM AND INDEPENDENT" in said(found)["policies"]
    assert "25 %" in said(found)["policies"]
    assert "policies" in alarms(found)
    assert found.hits is not None
    assert found.hits.value == pytest.approx(0.25, abs=0.01)
    assert found.entropy_share > 0.995
    assert found.overlap == pytest.approx(4 / 32, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "uniform", "independent"),
    [
        ({"skew": 1.0}, False, True),
        ({"stickiness": 0.3}, True, False),
        ({"skew": 1.0, "stickiness": 0.3}, False, False),
        ({"layer_correlation": 0.9}, True, True),
    ],
)
def test_skew_and_stickiness_are_told_apart(
    changes: dict[str, float], uniform: bool, independent: bool
) -> None:
    found = examined(knobs(**changes))
    assert (found.uniform, found.independent) == (uniform, independent)
    assert ("UNIFORM" in said(found)["policies"]) == (uniform and independent)


def test_the_overlap_of_sticky_tokens_is_their_stickiness_and_chance() -> None:
    found = examined(knobs(stickiness=0.4, num_layers=1))
    assert found.overlap == pytest.approx(0.4 + 0.6 * 4 / 32, abs=0.02)
    assert found.chance_overlap == pytest.approx(4 / 32, abs=0.005)


def test_chance_has_no_bias_in_short_traces() -> None:
    """Uniform tokens, ten at a time: the mean of many chance levels is k / experts."""
    rng = np.random.default_rng(0)
    found = [
        examine(trace_of(choose(rng, 10, 3, 16, 2), [10], 16)).chance_overlap for _ in range(200)
    ]
    assert np.mean(found) == pytest.approx(2 / 16, abs=0.004)


def test_variation_is_that_of_the_popularity_without_what_chance_adds() -> None:
    rng = np.random.default_rng(0)
    flat, steep = [], []
    share = np.array([0.5, 1.5] * 8) / 16  # a variation of one half
    for _ in range(300):
        flat.append(spread(np.bincount(rng.integers(16, size=200), minlength=16), 200) ** 2)
        drawn = rng.choice(16, size=200, p=share)
        steep.append(spread(np.bincount(drawn, minlength=16), 200) ** 2)
    assert np.mean(flat) < 0.03
    assert np.mean(steep) == pytest.approx(0.25, abs=0.03)


def test_entropy_and_skew_are_those_of_the_counts() -> None:
    ids = np.array([0, 0, 0, 0, 1, 1, 2, 3]).reshape(8, 1, 1)
    (layer,) = examine(trace_of(ids, [8], 5)).layers
    assert layer.entropy_bits == pytest.approx(1.75)
    assert layer.effective == pytest.approx(2**1.75)
    assert layer.skew == pytest.approx(4 / 8 * 5)
    assert (layer.idle, layer.uses) == (1, 8)


def test_experts_in_turn_return_after_their_period() -> None:
    ids = (np.arange(40) % 8).reshape(40, 1, 1)
    found = reuse(sampled(trace_of(ids, [40], 8)), np.random.default_rng(0), steps=(7, 8, 16))
    assert found.within == {7: 0.0, 8: 0.8, 16: 0.8}
    assert found.first == pytest.approx(0.2)
    assert found.median == 8
    assert found.shuffled[7] > 0.3


def test_reuse_is_counted_within_requests() -> None:
    ids = np.zeros((6, 1, 1), int)
    found = reuse(sampled(trace_of(ids, [1] * 6, 4)), np.random.default_rng(0), steps=(1,))
    assert found.within == {1: 0.0}
    assert found.first == 1.0


def test_a_layer_that_follows_from_the_one_before_is_predicted_by_a_table() -> None:
    found = examined(knobs(layer_correlation=1.0, top_k=1, requests=60))
    assert found.foresight[0].table > 0.98
    assert found.foresight[0].popularity < 0.1
    free = examined(knobs(top_k=1, requests=60))
    assert free.foresight[0].table < 0.1


def test_popularity_names_what_is_popular() -> None:
    rng = np.random.default_rng(0)
    ids = np.where(rng.random((400, 3, 1)) < 0.7, 5, rng.integers(16, size=(400, 3, 1)))
    found = examine(trace_of(ids, [100] * 4, 16))
    for one in found.foresight:
        assert one.popularity == pytest.approx(0.7 + 0.3 / 16, abs=0.06)


def test_recorded_recall_goes_by_depth() -> None:
    trace = knobs(prediction_depth=2, prediction_accuracy=1.0, requests=8)
    found = examine(trace)
    assert found.recorded_recall == [1.0, 1.0]
    assert "1 ahead 100 %, 2 ahead 100 %" in said(found)["predictions"]
    assert said(examine(knobs(requests=8)))["predictions"] == "none are recorded"


def test_the_union_of_uniform_tokens_is_the_formula() -> None:
    found = examined(knobs(requests=64, prompt_tokens=20))
    for one in found.unions:
        expected = 32 * (1 - (1 - 4 / 32) ** one.batch)
        assert one.uniform == pytest.approx(expected)
        assert one.experts == pytest.approx(expected, rel=0.03)
    assert [one.batch for one in found.unions] == [1, 2, 4, 8, 16, 32, 64]


def test_the_union_of_equal_tokens_does_not_grow_and_that_of_disjoint_ones_adds_up() -> None:
    same = np.tile(np.arange(2), (8 * 5, 3, 1))
    found = examine(trace_of(same, [5] * 8, 16))
    assert [one.experts for one in found.unions] == [2, 2, 2, 2]
    assert overflow(found.unions, 4) is None
    own = np.repeat(np.arange(16).reshape(8, 1, 2), 5, axis=0)
    found = examine(trace_of(own, [5] * 8, 16))
    assert [one.experts for one in found.unions] == [2, 4, 8, 16]
    assert overflow(found.unions, 4) == 4
    assert found.unions[2].pressure(4) == 2.0
    assert "a quarter from N = 4" in said(found)["r"]


def test_unions_are_of_decoded_tokens_where_there_are_any() -> None:
    prompt, decoded = np.zeros((3, 1, 1), int), np.ones((2, 1, 1), int)
    ids = np.concatenate([prompt, decoded] * 4)
    found = examine(trace_of(ids, [5] * 4, 8, prompt_tokens=[3] * 4))
    assert [one.experts for one in found.unions] == [1, 1, 1]


def of_domains(shift: int, seed: int = 0) -> Trace:
    """Return two domains of twelve requests; experts of the second are shifted."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(8, size=(24 * 20, 3, 1))
    ids[12 * 20 :] += shift
    names = ["law"] * 12 + ["code"] * 12
    return trace_of(ids, [20] * 24, 16, domain=names)


def test_domains_that_use_other_experts_differ_and_equal_ones_do_not() -> None:
    apart = examine(of_domains(8)).domains
    assert apart is not None
    assert apart.differ
    assert apart.distance == pytest.approx(1.0)
    assert set(apart.pair) == {"law", "code"}
    assert "2 domains differ (p = 0.005)" in said(examine(of_domains(8)))["domains"]
    p = []
    for seed in range(20):
        alike = examine(of_domains(0, seed)).domains
        assert alike is not None
        assert alike.distance == pytest.approx(alike.by_chance, abs=0.06)
        p.append(alike.p)
    assert sum(value < 0.05 for value in p) <= 3  # one in twenty by chance
    assert 0.3 < np.mean(p) < 0.7


def test_one_domain_is_not_tested() -> None:
    assert examine(knobs(requests=6)).domains is None
    assert "no test" in said(examine(knobs(requests=6)))["domains"]


def with_copies(copies: int, changed: int) -> Trace:
    """Return twelve requests; the last ones are the first with `changed` of 20 tokens replaced."""
    rng = np.random.default_rng(1)
    ids = choose(rng, 12 * 20, 4, 32, 4).reshape(12, 20, 4, 4)
    for number in range(copies):
        ids[11 - number] = ids[0]
        ids[11 - number, 20 - changed :] = choose(rng, changed, 4, 32, 4)
    return trace_of(ids.reshape(-1, 4, 4), [20] * 12, 32)


def test_near_duplicate_prompts_are_found() -> None:
    found = examine(with_copies(1, 3)).duplicates
    assert found is not None
    assert (found.pairs, found.members, found.example) == (1, 2, (0, 11))
    assert "NEAR-DUPLICATES: 2 of 12 prompts" in said(examine(with_copies(1, 3)))["prompts"]
    assert "prompts" in alarms(examine(with_copies(1, 3)))
    half = examine(with_copies(1, 10)).duplicates
    assert half is not None
    assert half.pairs == 0
    none = examine(with_copies(0, 0)).duplicates
    assert none is not None
    assert (none.pairs, none.shared_prefix) == (0, 0)


def test_a_common_beginning_is_no_duplicate() -> None:
    rng = np.random.default_rng(1)
    ids = choose(rng, 12 * 20, 4, 32, 4).reshape(12, 20, 4, 4)
    ids[:, :7] = ids[0, :7]
    found = examine(trace_of(ids.reshape(-1, 4, 4), [20] * 12, 32)).duplicates
    assert found is not None
    assert (found.pairs, found.shared_prefix, found.telling) == (0, 7, True)


def test_routing_that_hides_the_token_finds_no_duplicates() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(2, size=(200, 1, 1))
    found = examine(trace_of(ids, [20] * 10, 2)).duplicates
    assert found is not None
    assert not found.telling
    assert "cannot tell" in said(examine(trace_of(ids, [20] * 10, 2)))["prompts"]


def test_a_router_that_repeats_itself_finds_no_duplicates() -> None:
    """All tokens of a static router choose alike, so all prompts look alike."""
    found = examine(trace_of(np.tile([[2, 5], [1, 3]], (200, 1, 1)), [20] * 10, 8))
    assert "cannot tell" in said(found)["prompts"]
    assert "prompts" not in alarms(found)
    assert "REPEATS: 100 %" in said(found)["collapse"]
    assert "layers 0, 1 use" in said(found)["collapse"]


def test_a_collapsed_layer_and_a_loop_are_named() -> None:
    rng = np.random.default_rng(1)
    ids = choose(rng, 800, 3, 32, 2)
    ids[:, 1] = [3, 4]
    found = examine(trace_of(ids, [80] * 10, 32))
    assert found.collapsed == [1]
    assert "COLLAPSED: layer 1 uses" in said(found)["collapse"]
    assert "collapse" in alarms(found)
    loop = np.repeat(choose(rng, 200, 3, 32, 2), 4, axis=0)
    found = examine(trace_of(loop, [80] * 10, 32))
    assert found.repeated_rows == pytest.approx(60 / 79, abs=0.001)
    assert "REPEATS: 76 %" in said(found)["collapse"]
    assert said(examined(knobs()))["collapse"] == "no layer has collapsed"


def test_more_requests_narrow_the_interval_until_they_are_enough() -> None:
    few = examined(knobs(skew=1.0, requests=4))
    assert few.hits is not None
    assert few.hits.verdict == "short"
    assert "TOO SHORT" in said(few)["length"]
    one = examined(knobs(skew=1.0, requests=1))
    assert one.hits is not None
    assert one.hits.verdict == "unknown"
    assert "one request has no interval" in said(one)["length"]
    many = examined(knobs(skew=1.0, requests=120))
    assert many.hits is not None
    assert many.hits.verdict == "enough"
    assert "long enough" in said(many)["length"]
    assert "length" not in alarms(many)


def test_an_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for turn in range(200):
        share = rng.beta(8, 8, size=60)  # requests differ; the mean of all is one half
        whole = rng.integers(50, 200, size=60)
        one = interval(rng.binomial(whole, share), whole, np.random.default_rng(turn))
        inside += one.low <= 0.5 <= one.high
    assert 180 <= inside <= 199


def test_requests_needed_fall_with_the_square_of_the_width() -> None:
    rng = np.random.default_rng(0)
    whole = np.full(400, 100)
    part = rng.binomial(whole, rng.beta(2, 2, size=400))
    wide, narrow = (interval(part[:n], whole[:n], np.random.default_rng(1)) for n in (50, 400))
    assert wide.half_width / narrow.half_width == pytest.approx(math.sqrt(8), rel=0.2)
    assert wide.needed == pytest.approx(narrow.needed, rel=0.4)


def test_a_sample_has_whole_requests_and_says_so() -> None:
    trace = knobs(requests=50)
    sample = sampled(trace, 1000)
    each = int(trace.requests["num_rows"][0])
    assert not sample.whole
    assert set(sample.lengths) == {each}
    assert 900 < sample.rows <= 1000
    for place, number in enumerate(sample.numbers):
        own = sample.ids[sample.request == place]
        assert np.array_equal(own, trace.expert_ids[trace.slice(int(number))])
    assert sampled(trace).whole
    assert sampled(trace, 30).rows == 30  # one request, cut


def test_findings_are_plain_data_and_the_same_each_time() -> None:
    first, second = (examined(knobs(skew=0.5, requests=10)) for _ in range(2))
    assert first.as_plain() == second.as_plain()
    json.dumps(first.as_plain())


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_trace(),
        lambda: trace_of(np.zeros((1, 1, 1), int), [1], 1),
        lambda: trace_of(np.full((3, 2, 2), -1), [2, 1], 4),
        lambda: trace_of(np.tile(np.arange(4), (9, 2, 1)), [4, 5], 4),
        lambda: trace_of(
            np.zeros((2, 1, 1), int), [0, 2], 3, prompt_tokens=[5, 5], prompt_rows="absent"
        ),
    ],
    ids=["tiny", "one of each", "unused places only", "all experts", "no prompt rows"],
)
def test_the_smallest_traces_have_verdicts_too(make: Callable[[], Trace]) -> None:
    found = examine(make())
    assert len(verdicts(found)) >= 9
    assert "nan" not in " ".join(said(found).values())


def test_figures_of_a_trace_without_any_use_are_drawn(tmp_path: Path) -> None:
    found = examine(trace_of(np.full((3, 2, 2), -1), [1, 1, 1], 4))
    plots_for_findings(tmp_path / "plots", found, about="A small trace.")
    assert (tmp_path / "plots/layers.csv").is_file()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(sum),
    layers=st.integers(1, 3),
    experts=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_any_trace_can_be_examined(
    lengths: list[int], layers: int, experts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = choose(rng, sum(lengths), layers, experts, 2)
    ids[rng.random(ids.shape) < 0.2] = -1
    trace = trace_of(ids, lengths, experts, prompt_tokens=[1] * len(lengths), prompt_rows="absent")
    found = examine(trace)
    assert isinstance(sampled(trace), Sample)
    assert len(verdicts(found)) >= 9


def test_real_routing_is_neither_uniform_nor_independent(esft: Callable[[str], Trace]) -> None:
    """The overlap of the reference table, and a trace that is long enough."""
    found = examined(esft("law"))
    assert (found.uniform, found.independent, found.collapsed) == (False, False, [])
    assert found.overlap == pytest.approx(0.29, abs=0.002)
    assert found.hits is not None
    assert found.hits.value == pytest.approx(0.496, abs=0.001)
    assert found.hits.verdict == "enough"
