"""The claims: their counts on hand-made cases, every claim on a tiny grid, the committed page."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from study_scripts import study

from moesim.policies import parse_options
from moesim.policies.eviction.base import CacheContext
from moesim.policies.guard import find_policy
from moesim.report.statistics import Estimate
from moesim.scenario import Scenario
from moesim.simulate.curve import replay_hits
from moesim.trace import Trace

claims = study("claims", "claims")
finding = study("claims", "finding")
times = study("claims", "times")
FOLDER = ROOT / "reports/claims"


def claim(name: str) -> Any:
    module: ModuleType = study("claims", name)
    return importlib.reload(module) if module.__name__ != name else module


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_each_claim_gives_a_finding_and_a_picture_on_a_tiny_grid(
    name: str, shared: Path, tmp_path: Path
) -> None:
    module = claim(name)
    found, chart = module.find(module.SMALL)
    assert found.name == chart.name == name
    assert all((found.claim, found.source, found.holds, found.flips, found.evidence, found.text))
    assert "synthetic" not in name
    finding.save_png(chart, tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_the_committed_page_is_that_of_the_committed_findings() -> None:
    findings = finding.read_findings(FOLDER)
    assert list(findings) == list(claims.CLAIMS)
    page = (FOLDER / "claims.md").read_text(encoding="utf-8")
    assert page == finding.page(list(findings.values()))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    for name in findings:
        assert f"]({name}.png)" in page
        assert (FOLDER / f"{name}.png").is_file()


def test_findings_that_were_not_tried_again_stay(tmp_path: Path) -> None:
    made = {name: finding.Finding(name, name, "s", "h", "f", "e", "t", "c") for name in ("b", "a")}
    finding.write_findings(tmp_path, made, ["a", "b"])
    assert finding.read_findings(tmp_path) == made
    lines = (tmp_path / "claims.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert rows == ["| [a](#a) | h | f | e |", "| [b](#b) | h | f | e |"]


@pytest.mark.parametrize("file", sorted((ROOT / "studies/claims/scenarios").glob("*.yaml")))
def test_each_scenario_file_is_one_whose_trace_alone_must_be_made(file: Path) -> None:
    data = times.read(file.stem)
    assert Scenario.model_validate(data).bounds is False
    assert "moesim trace convert" in file.read_text(encoding="utf-8")


def test_the_hottest_tenth_is_counted_over_all_layers() -> None:
    # 2 layers of 5 experts: the tenth is one pair. Expert 4 of layer 0 has 3 of 8 uses.
    ids = np.array([[[4], [0]], [[4], [1]], [[4], [2]], [[0], [3]]])
    hot_set = claim("hot_set")
    assert hot_set.hot_share(ids, 5) == pytest.approx(100 * 3 / 8)
    assert hot_set.most_possible(8, 2) == pytest.approx(40)
    assert hot_set.most_possible(64, 6) == 100


def test_a_crossing_is_claimed_only_where_intervals_lie_on_both_sides() -> None:
    crossing = claim("hot_set").crossing
    shares = [Estimate(60, 5, 3), Estimate(79, 5, 3), Estimate(90, 5, 3)]
    assert crossing((1, 2, 3), shares) == "between 1 and 3"
    assert crossing((1, 2, 3), shares[::-1]) == "between 1 and 3"
    assert crossing((1, 2), shares[:2]) == "never"


def test_half_of_the_slots_are_pinned_and_the_rest_is_lru() -> None:
    policy = find_policy("eviction", claim("pinning").HALF)
    context = CacheContext(
        capacity=4,
        universe=range(8),
        admission="bypass",
        rng=np.random.default_rng(0),
        popularity=lambda _profile: {6: 9, 7: 8, 0: 1},
    )
    cache = policy(context, parse_options(policy, {"profile": "elsewhere"}))
    assert set(cache.preload()) == {6, 7}
    # 6 and 7 always hit, and 0 once. Then 2 replaces 1, 1 replaces 0, and 0 replaces 2. If the
    # first admitted left first, 1 would hit, too.
    assert replay_hits(cache, [(0,), (1,), (6,), (0,), (2,), (1,), (0,), (7,)]) == 3
    assert len(cache.book) == 4


def test_a_loop_repeats_the_first_tokens_and_a_template_those_of_the_first_request() -> None:
    templates = claim("templates")
    ids = np.arange(2 * 6).reshape(2, 6, 1, 1)
    assert templates.looped(ids, 2)[1].ravel().tolist() == [6, 7, 6, 7, 6, 7]
    assert templates.with_template(ids, 2)[1].ravel().tolist() == [0, 1, 8, 9, 10, 11]
    assert templates.joined(np.zeros((2, 6, 1, 1), np.int64)).num_requests == 2


def test_requests_share_the_experts_of_a_template_and_no_others() -> None:
    # The requests agree in their first 24 tokens, and use different experts later.
    ids = np.concatenate([[*range(24), *[40 + number] * 16] for number in range(3)])[:, None, None]
    trace = Trace.from_arrays(expert_ids=ids, seq_len=[40] * 3, num_experts=64)
    assert claim("templates").alike(trace) == (100, 0)


def test_uniform_tokens_touch_what_the_formula_says() -> None:
    prefill = claim("prefill")
    rng = np.random.default_rng(1)
    ids = np.argsort(rng.random((400, 26, 64)), axis=2)[:, :, :6]
    shares = [prefill.touched(ids[first : first + 8]) for first in range(0, 400, 8)]
    assert np.mean(shares) == pytest.approx(prefill.formula(8), abs=0.5)


def test_changes_of_a_scenario_reach_nested_keys_and_short_sections() -> None:
    data = {"hardware": "rtx-4090", "cache": {"policy": "lru", "slots": 1}}
    changed = times.merged(data, {"cache.slots": 2, "hardware.h2d": {"latency": "1us"}})
    assert changed == {
        "hardware": {"profile": "rtx-4090", "h2d": {"latency": "1us"}},
        "cache": {"policy": "lru", "slots": 2},
    }
    assert data["hardware"] == "rtx-4090"


def test_needed_accuracy_lies_between_what_hurts_and_what_pays() -> None:
    needed = claim("lru_prefetch").needed
    column = [Estimate(-9, 1, 3), Estimate(0, 2, 3), Estimate(5, 1, 3)]
    assert needed((0.5, 0.8, 1), column) == "50 to 100 %"
    assert needed((0.5, 0.8), column[:2]) == "never"
