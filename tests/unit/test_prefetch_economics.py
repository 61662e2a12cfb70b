"""What prefetches bring and cost: hits on time, and experts that were evicted too early."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costed_traces import costed_trace
from run_directories import run_directory
from watched_machines import enlist
from workloads import plan_of, random_case, run_on, tiny_scenario, tiny_trace

from moesim.policies.prefetch import Prefetch
from moesim.policies.view import View
from moesim.report import print_summary
from moesim.serving.run_log import Decided, DecidedAhead, RunLog
from moesim.simulate import summarise


def pollution_by_hand(log: RunLog) -> tuple[int, int]:
    """Return the evictions for prefetches, and those whose victim is wanted first.

    Each eviction is followed forward through the layer events of its cache.
    """
    records = [it for it in log.records if isinstance(it, Decided | DecidedAhead)]
    evictions = polluting = 0
    for place, it in enumerate(records):
        if not isinstance(it, DecidedAhead) or it.decision is None:
            continue
        for victim in it.decision.leavers:
            evictions += 1
            for later in records[place + 1 :]:
                if isinstance(later, Decided) and later.cache == it.cache:
                    event = later.decision
                    wanted = {*event.ready, *(key for key, *_ in event.late)}
                    wanted |= {key for key, *_ in (*event.loads, *event.elsewhere)}
                    if it.key in wanted:
                        break
                    if victim in wanted:
                        polluting += 1
                        break
    return evictions, polluting


@pytest.mark.parametrize("block", range(4))
def test_pollution_is_counted_as_by_hand(block: int) -> None:
    evictions = polluting = 0
    for seed in range(block, 120, 4):
        scenario, trace = random_case(900 + seed)
        options: dict[str, Any] = {"depth": 1 + seed % 3, "recall": 0.6, "precision": 0.5}
        scenario["prefetch"] = {"policy": "dial", "options": options}
        scenario["cache"]["slots"] = 1 + seed % 20
        if seed % 5 == 0:
            scenario["model"] = {"shape": "trace", "expert_bits_by": {"layer": {"0": 8}}}
        log = RunLog(Decided, DecidedAhead)
        outcome = run_on(plan_of(scenario, trace), observers=(log,))
        count = pollution_by_hand(log)
        assert outcome.ledger.prefetch_pollution == count[1], seed
        evictions, polluting = evictions + count[0], polluting + count[1]
    assert 0 < polluting < evictions


class FetchesOnce(Prefetch):
    """Asks for expert 7 after the third token, when the only two slots hold experts 0 and 1."""

    def wanted(self, view: View) -> Any:
        self.seen = getattr(self, "seen", 0) + (view.layer == 0)
        return [7] if view.layer == 0 and self.seen == 3 else ()


@pytest.mark.parametrize(
    ("later", "polluting"),
    [
        ((0, 0), 1),
        ((0, 7), 1),
        ((7, 0), 0),  # the prefetched expert is wanted first
        ((1, 1), 0),  # the other expert was evicted
        ((7, 7), 0),
    ],
)
def test_an_eviction_pollutes_if_its_victim_is_wanted_before_the_prefetched_expert(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, int], polluting: int
) -> None:
    """Expert 0 is used least recently, so it leaves for expert 7."""
    name = enlist(monkeypatch, "prefetch", FetchesOnce)
    rows = np.array([0, 1, 1, *later]).reshape(-1, 1, 1)
    scenario = tiny_scenario(cache={"slots": 2}, prefetch=name)
    outcome = run_on(plan_of(scenario, costed_trace(rows, prompt=1)))
    assert sum(outcome.ledger.prefetch_copies) == 1
    assert summarise(outcome)["prefetch_pollution"] == polluting


def test_hits_on_time_and_late_hits_make_the_expert_hit_rate() -> None:
    late = 0
    for seed in range(20):
        scenario, trace = random_case(300 + seed)
        scenario["prefetch"] = {"policy": "oracle", "options": {"depth": 2}}
        summary = summarise(run_on(plan_of(scenario, trace)))
        accesses = summary["accesses"]
        assert summary["on_time_hit_rate"] == summary["hits"] / accesses
        assert summary["expert_hit_rate"] == (summary["hits"] + summary["late_hits"]) / accesses
        late += summary["late_hits"]
    assert late > 0


def test_a_run_without_prefetch_pollutes_nothing_and_its_summary_does_not_mention_it(
    tmp_path: Path,
) -> None:
    outcome = run_on(plan_of(tiny_scenario(cache={"slots": 9}), tiny_trace()))
    assert summarise(outcome)["prefetch_pollution"] == 0
    label = "evicted for a prefetch that was wanted later"
    for policy in ("none", "oracle"):
        stream = io.StringIO()
        summary = {"prefetch_policy": policy, "prefetch_pollution": 3}
        print_summary(run_directory(tmp_path / policy, summary=summary), stream)
        assert (label in stream.getvalue()) == (policy == "oracle")
