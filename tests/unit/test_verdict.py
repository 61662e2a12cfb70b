"""The verdict names the true limit of runs made by hand, and its regrets fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from run_directories import run_directory
from workloads import plan_of, random_case, tiny_scenario, tiny_trace

from moesim.report import load_run
from moesim.report.summary import summary_tables
from moesim.simulate import bounds_of, result_of, simulate
from moesim.simulate.verdict import ORDER, REGRET_KEYS, regrets, verdict
from moesim.trace import Trace

EXPERT = 3 * 512 * 1024 * 2
# A machine on which only what a case makes slow takes time. Copies of an expert take 3 ms.
PLAIN: dict[str, Any] = {
    "profile": "rtx-4090",
    "h2d": {"bandwidth": "1GB/s", "latency": "0us"},
    "d2h": {"bandwidth": "1000000000GB/s", "latency": "0us"},
    "readback_latency": "0us",
    "kernel_overhead": "0us",
}
FREE_LINK = {**PLAIN, "h2d": {"bandwidth": "1000000000GB/s", "latency": "0us"}}


def of_experts(*experts: int) -> Trace:
    """Return one request whose tokens use these experts of one layer."""
    return costed_trace(np.array(experts).reshape(-1, 1, 1), prompt=1)


CYCLE = of_experts(*[0, 1, 2, 3, 4, 5, 6, 7] * 20)
"""All 8 experts in turn: with few slots, any policy misses most of them."""
EACH_ONCE = of_experts(*range(8))
"""Only first uses: neither another policy nor more slots avoids a copy."""
TWO_PHASES = of_experts(*[0, 1] * 40, *[2, 3] * 30)
"""Two experts that were counted often, then two others: LFU keeps the first two."""
ALL_LOADED = {"policy": "static", "slots": "100%"}

CASES: dict[str, tuple[Trace, dict[str, Any]]] = {
    "policy": (TWO_PHASES, {"hardware": PLAIN, "cache": {"policy": "lfu", "slots": 2}}),
    "working set": (CYCLE, {"hardware": PLAIN, "cache": {"policy": "lru", "slots": 2}}),
    "link": (EACH_ONCE, {"hardware": PLAIN, "cache": {"policy": "lru", "slots": 8}}),
    "host": (CYCLE, {"hardware": PLAIN, "cache": ALL_LOADED, "engine": {"launch": "5ms"}}),
    "disk": (
        EACH_ONCE,
        {
            "hardware": {**FREE_LINK, "disk": {"latency": "80us", "bandwidth": "1GB/s"}},
            "memory": {"host": 2 * EXPERT},
            "cache": {"policy": "lru", "slots": 4},
        },
    ),
    "cpu": (
        CYCLE,
        {
            "hardware": PLAIN,
            "placement": {"policy": "cpu_layers", "options": {"whole_layers": "all"}},
            "cache": {"slots": 0},
        },
    ),
    "compute": (CYCLE, {"hardware": PLAIN, "cache": ALL_LOADED}),
}


def judged(word: str) -> dict[str, Any]:
    trace, changes = CASES[word]
    return dict(result_of(plan_of(tiny_scenario(**changes, bounds=True), trace)).summary)


def regret(found: dict[str, Any], word: str) -> float:
    return float(found[f"regret_{word.replace(' ', '_')}_s"] or 0)


@pytest.mark.parametrize("word", CASES)
def test_the_verdict_names_what_truly_limits_a_run(word: str) -> None:
    found = judged(word)
    assert found["verdict"] == word, found["verdict_reason"]
    steps_s = found["busy_s"] + found["stall_s"]
    assert regret(found, word) > 0.3 * steps_s
    cheaper = [*ORDER, "compute"][: [*ORDER, "compute"].index(word)]
    for other in cheaper:
        assert regret(found, other) < regret(found, word) - 0.1 * steps_s, other


@pytest.mark.parametrize("word", CASES)
def test_every_regret_is_in_the_sentence(word: str) -> None:
    found = judged(word)
    reason = found["verdict_reason"]
    phrases = {
        "policy": "MIN's evictions",
        "working set": "a slot for every expert",
        "link": "copies that take no time",
        "host": "for the host",
        "disk": "for the disk",
        "cpu": "for the CPU",
        "compute": "the GPU computes",
    }
    for cause, phrase in phrases.items():
        if regret(found, cause) > 0:
            assert phrase in reason, cause


def test_the_policy_regret_is_the_copies_that_min_avoids() -> None:
    """LFU copies experts 2 and 3 at each of 60 uses, MIN once each. A copy takes 3.1 ms."""
    found = judged("policy")
    copy_s = EXPERT / 1e9
    assert found["regret_policy_s"] == pytest.approx(58 * copy_s, rel=0.02)


def test_the_working_set_regret_is_the_copies_that_more_slots_avoid() -> None:
    """With LRU all 160 uses are copied, with 8 slots the first 8."""
    found = judged("working set")
    assert found["misses"] == 160
    assert found["regret_working_set_s"] == pytest.approx(152 * EXPERT / 1e9, rel=0.02)


def test_the_link_regret_is_the_time_of_all_copies() -> None:
    assert judged("link")["regret_link_s"] == pytest.approx(8 * EXPERT / 1e9, rel=0.02)


@pytest.mark.parametrize("word", ["host", "disk", "cpu", "compute"])
def test_a_regret_without_another_run_is_a_time_of_the_run_itself(word: str) -> None:
    found = judged(word)
    waits = {
        "host": found["stall_host_s"] + found["stall_readback_s"],
        "disk": found["stall_disk_s"],
        "cpu": found["stall_cpu_s"],
        "compute": found["busy_s"],
    }
    assert regret(found, word) == pytest.approx(waits[word])


@pytest.mark.parametrize("block", range(4))
def test_regrets_fit_together(block: int) -> None:
    """They are not negative; MIN saves no more than enough slots or a free link would."""
    for seed in range(block, 60, 4):
        scenario, trace = random_case(13_000 + seed, at_once=True)
        scenario["prefetch"] = {"policy": "none"}
        if scenario["cache"]["policy"] == "static":
            scenario["cache"]["policy"] = "lru"
        outcome = simulate(plan_of(scenario, trace))
        found = bounds_of(outcome)
        assert all(found[key] >= 0 for key in REGRET_KEYS), seed
        spent = sum(regret(found, word) for word in ("host", "disk", "cpu", "compute"))
        copies_s = sum(map(sum, outcome.ledger.copy_stalls_ns)) / 1e9
        assert spent + copies_s == pytest.approx(outcome.ledger.stepping_ns / 1e9), seed
        for dearer in ("working set", "link"):
            assert regret(found, "policy") <= regret(found, dearer) + 1e-12, (seed, dearer)


@pytest.mark.parametrize("block", range(4))
def test_a_cause_that_is_absent_has_no_regret(block: int) -> None:
    for seed in range(block, 24, 4):
        scenario, trace = random_case(13_500 + seed, at_once=True)
        scenario["prefetch"] = {"policy": "none"}
        scenario["hardware"] = FREE_LINK
        cache = {"admission": "bypass", "write_back": False}
        scenario["cache"] = {**scenario["cache"], **cache, "policy": "min"}
        found = bounds_of(simulate(plan_of(scenario, trace)))
        assert [regret(found, word) for word in ("policy", "disk", "cpu")] == [0] * 3, seed
        # The fastest link of all still takes a nanosecond.
        steps_s = found["min_time_in_steps_s"]
        assert regret(found, "host") + regret(found, "link") < 1e-3 * steps_s, seed
        assert found["verdict"] == "compute", seed
        scenario["cache"] = {**scenario["cache"], "policy": "lru", "slots": 32}
        assert regret(bounds_of(simulate(plan_of(scenario, trace))), "working set") == 0, seed


def test_a_remedy_that_costs_time_has_no_regret() -> None:
    then = {"policy": 120, "working set": 90, "link": 100}
    found = regrets(100, then, {"host": 3, "disk": 0, "cpu": 0, "compute": 97})
    values = {key: None if value is None else value * 1e9 for key, value in found.items()}
    assert values == pytest.approx(
        {
            "regret_policy_s": 0,
            "regret_host_s": 3,
            "regret_working_set_s": 10,
            "regret_link_s": 0,
            "regret_disk_s": 0,
            "regret_cpu_s": 0,
            "regret_compute_s": 97,
        }
    )
    assert regrets(100, {"working set": 90, "link": 100}, {})["regret_policy_s"] is None


def test_a_long_wait_outweighs_a_remedy_that_saves_little() -> None:
    then = {"policy": 88, "working set": 85, "link": 85}
    assert verdict(100, then)[0] == "policy"
    word, reason = verdict(100, then, {"host": 60, "compute": 25})
    assert word == "host"
    assert "the GPU waits 6.00e-08 s (60%) for the host" in reason
    assert "the GPU computes 2.50e-08 s (25%)" in reason
    assert verdict(100, {**then, "link": 29}, {"host": 60})[0] == "link"
    assert verdict(100, {**then, "link": 30}, {"host": 60})[0] == "host"


def test_the_verdict_says_where_routing_and_sizes_are_from() -> None:
    """In the sentence itself, because sentences are quoted without what stands around them."""
    own = result_of(plan_of(tiny_scenario(bounds=True, cache={"slots": 4}), CYCLE)).summary
    assert "routing" not in own["verdict_reason"].replace("router", "")
    foreign = tiny_scenario(bounds=True, cache={"slots": 32}, model={"shape": "mixtral-8x7b"})
    wide = costed_trace(np.arange(64).reshape(1, 32, 2) % 8, seq_len=[1], model="tiny")
    reason = result_of(plan_of(foreign, wide)).summary["verdict_reason"]
    assert reason.endswith("foreign sizes: routing of tiny, costed with the sizes of mixtral-8x7b")
    drawn = tiny_scenario(bounds=True, cache={"slots": 9})
    reason = result_of(plan_of(drawn, tiny_trace())).summary["verdict_reason"]
    assert "; synthetic routing: drawn at random, made by no model, costed with" in reason


def test_the_regrets_are_printed_with_the_mark_of_the_run(tmp_path: Path) -> None:
    regrets_s = {"policy": 1.5, "working_set": 2.5, "link": 3, "host": 0, "disk": 0, "cpu": 0}
    found = {f"regret_{cause}_s": seconds for cause, seconds in regrets_s.items()}
    steps = {"busy_s": 1.0, "stall_s": 4.0, "regret_compute_s": 1.0, "sizes": "foreign"}
    run = load_run(run_directory(tmp_path / "run", summary={**found, **steps}))
    (table,) = (table for table in summary_tables(run) if table.title.startswith("regrets"))
    assert table.title.endswith("[foreign sizes]")
    shown = {row[0].text.split(" (")[0]: [cell.text for cell in row[1:]] for row in table.rows}
    assert shown == {
        "policy": ["1.5", "30.0%"],
        "working set": ["2.5", "50.0%"],
        "link": ["3", "60.0%"],
        "host": ["0", "0.0%"],
        "computing": ["1", "20.0%"],
    }
    older = load_run(run_directory(tmp_path / "older"))
    assert not [table for table in summary_tables(older) if table.title.startswith("regrets")]
