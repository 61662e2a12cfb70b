"""The comparison of offloading systems: what runs, what is ranked, and sentences from the rows."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT, SHARED
from study_scripts import study

from moesim.report.statistics import Estimate
from moesim.systems.preset import load_preset
from moesim.trace import Trace, load_trace

cells, traces, runs, rows, findings, report, systems = (
    study("systems", name)
    for name in (
        "system_cells",
        "system_traces",
        "system_runs",
        "system_rows",
        "system_findings",
        "system_report",
        "systems",
    )
)
SMALL = cells.Cell(cells.MODELS["mixtral"], cells.MACHINES["12GB"], 1)
LARGE = cells.Cell(cells.MODELS["mixtral"], cells.MACHINES["24GB"], 1)
LOAD = cells.Load(1, 1)


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return traces.ready("mixtral", tmp_path_factory.mktemp("traces"), SHARED)


def entry(system: str, routing: Any, served: Path | None = None) -> Any:
    used = routing if served is None else replace(routing, served=served)
    return cells.entry_of(SMALL, system, used, LOAD, {})


def row(system: str, tokens: tuple[float, ...], **changes: Any) -> Any:
    """Return a row with these tokens/s by seed; `changes` may hold values of quantities."""
    values = dict.fromkeys(rows.QUANTITIES, Estimate(0.0, None, 1))
    mean = sum(tokens) / len(tokens) if tokens else 0.0
    values["tokens_per_s"] = Estimate(mean, None, len(tokens))
    for name in set(changes) & set(values):
        values[name] = Estimate(changes.pop(name), None, 1)
    plain = {
        "cell": SMALL, "system": system, "engine": cells.COMMON, "status": "ranked",
        "tokens": tokens, "values": values,
        "facts": {"placement_policy": "copy", "verdict": "link"},
    }  # fmt: skip
    return rows.Row(**{**plain, **changes})


# Entries


def test_a_system_that_the_trace_refuses_says_so_and_runs_with_the_least_change(
    routing: Any, tmp_path: Path
) -> None:
    whole = load_trace(routing.served)
    lengths = whole.requests["num_rows"]
    Trace.from_arrays(
        expert_ids=whole.expert_ids[:], seq_len=lengths, num_experts=whole.num_experts
    ).save(tmp_path / "bare")
    found = entry("mixtral-offloading", routing, tmp_path / "bare")
    assert "the trace holds none" in found.refusal
    assert "table of the previous layer" in found.changed
    assert found.data["prefetch"]["policy"] == "previous_layer"
    assert not found.other_model
    as_it_is = entry("mixtral-offloading", routing)
    assert as_it_is.refusal == as_it_is.changed == ""


def test_a_router_that_reveals_its_choices_early_is_another_model(routing: Any) -> None:
    found = entry("pre-gated", routing)
    assert found.other_model
    assert "router is layerwise" in found.refusal
    assert found.data["trace"] == str(routing.forms["pregated"])


def test_popularity_is_counted_in_requests_that_no_run_serves(routing: Any) -> None:
    found = entry("fiddler", routing)
    scenario = cells.scenario_of(found.data, cells.COMMON, 0)
    assert scenario.cache.options == {"train": traces.SERVED[0]}
    assert list(scenario.workload.part) == list(traces.SERVED)
    served, half = load_trace(routing.served), load_trace(routing.half)
    first = served.slice(half.num_requests).start
    assert half.num_requests == served.num_requests // 2
    assert np.array_equal(half.expert_ids[:], served.expert_ids[:first])


def test_every_preset_meets_the_same_requests(routing: Any) -> None:
    workloads = [entry(name, routing).data["workload"] for name in ("fiddler", "promoe")]
    assert workloads[0] == workloads[1]
    assert workloads[0]["part"] == traces.SERVED


def test_a_model_that_does_not_fit_is_a_result(routing: Any) -> None:
    sizes = {"12GB": {"shape": "mixtral-8x7b", "expert_bits": 64, "weight_bits": 64}}
    cell = replace(SMALL, model=cells.Model("mixtral", "Huge", "routing", sizes))
    found = cells.entry_of(cell, "fiddler", routing, LOAD, {})
    assert found.data is None
    assert found.refusal.startswith("does not fit: ")


def test_only_the_run_under_its_own_engine_has_the_engine_of_a_preset(routing: Any) -> None:
    data = entry("mixtral-offloading", routing).data
    own = cells.scenario_of(data, cells.OWN, 0)
    assert own.engine.profile == load_preset("mixtral-offloading").sets["engine.profile"].value
    assert cells.scenario_of(data, cells.COMMON, 0).engine.profile == "ideal"
    assert cells.scenario_of(data, cells.FITTED, 0).engine.profile == "llama.cpp"


# Sentences


def test_the_winner_is_ranked_and_the_sentence_has_figures_of_the_rows() -> None:
    best = row("a", (10.0, 12.0), mib_per_token=7.0, wait_cpu_pct=61.0)
    last = row("b", (5.0, 6.0), mib_per_token=900.0, wait_demand_pct=88.0)
    seer = row("c", (99.0, 99.0), status="hindsight")
    text = findings.cell_text([last, seer, best])
    assert text.startswith("**a**: 11 tokens/s, +100 % (+100 % to +100 %) on b.")
    assert "waits 61 % of the time for CPU results" in text
    assert "Last: b, 5.5 tokens/s; it copies 900 MiB a token" in text
    assert "waits 88 % of the time for demand copies" in text
    assert text.endswith("Faster, but not ranked: c 99.")


def test_near_systems_whose_paired_interval_contains_zero_are_level() -> None:
    best = row("a", (10.0, 12.0, 11.0))
    assert findings.level_with(row("b", (10.5, 10.6, 11.5)), best)
    assert not findings.level_with(row("b", (11.0, 6.0, 11.5)), best), "too far apart"
    assert not findings.level_with(row("b", (9.0, 10.8, 9.9)), best)
    assert findings.level_with(row("b", (9.95, 11.95, 10.95)), best), "within a hundredth"


def test_standing_counts_losses_beside_wins() -> None:
    other = replace(SMALL, batch=8)
    made = [
        row("a", (10.0,)), row("b", (2.0,)),
        row("a", (3.0,), cell=other), row("b", (6.0,), cell=other),
    ]  # fmt: skip
    first, second = findings.standing(made)
    assert (first.system, first.won, first.last, first.median) == ("a", 1, 1, 0.75)
    assert (second.system, second.won, second.last) == ("b", 1, 1)
    assert second.worst.cell == SMALL
    assert "falls behind most in Mixtral-8x7B, 12 GB, batch 1 (20 %)" in findings.system_text(
        second
    )


def test_a_cell_in_which_everything_fits_ranks_nothing() -> None:
    made = [row("a", (10.0,), fits=True), row("b", (5.0,), fits=True)]
    assert findings.standing(made) == []
    assert findings.general(made) == [
        "Everything fits in GPU memory, so there is nothing to compare."
    ]
    text = report._all_fit(SMALL, made)
    assert "Not equal: b (-50 %, it copies 0 MiB a token" in text
    assert "All are equal" in report._all_fit(SMALL, made[:1])


def test_systems_that_differ_in_their_engine_alone_are_named() -> None:
    made = [row("a", (10.0,)), row("b", (4.0,)), row("c", (4.0,))]
    assert "b and c are equal in every cell" in " ".join(findings.general(made))
    apart = [*made, *(replace(each, cell=LARGE) for each in made[:2]), row("c", (5.0,), cell=LARGE)]
    assert "equal in every cell" not in " ".join(findings.general(apart))


def test_rank_correlation_shares_ranks_of_ties() -> None:
    assert findings.rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert findings.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert findings.rank_correlation([1, 2, 2, 4], [1, 2, 2, 4]) == pytest.approx(1)
    assert findings.rank_correlation([1, 2, 3], [5, 5, 5]) == 0


# The whole command


def test_the_command_compares_resumes_and_reports_what_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["systems.py", "DIR"])
    grid = replace(
        systems.QUICK,
        cells=[SMALL],
        systems=("fiddler", "mixtral-offloading", "pre-gated"),
        loads={1: LOAD},
        seeds=1,
    )
    systems.compare(grid, tmp_path, workers=1, shared=SHARED)
    text = (tmp_path / "systems.md").read_text(encoding="utf-8")
    assert "## Mixtral-8x7B (4.5 bits), 12 GB" in text
    assert "pre-gated (other model)" in text
    assert "recorded from a small model" in text
    with (tmp_path / "systems.csv").open(encoding="utf-8") as file:
        found = {(line["system"], line["engine"]): line for line in csv.DictReader(file)}
    assert set(found) == {
        ("fiddler", "ideal"), ("mixtral-offloading", "ideal"), ("mixtral-offloading", "own"),
        ("pre-gated", "ideal"),
    }  # fmt: skip
    assert found["pre-gated", "ideal"]["status"] == "other model"
    assert found["fiddler", "ideal"]["verdict"]
    for name in ("tokens", "shares"):
        assert (tmp_path / f"plots/{name}.png").stat().st_size > 10_000
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/manifest.json")}
    systems.compare(grid, tmp_path, workers=1, shared=SHARED)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert (tmp_path / "systems.md").read_text(encoding="utf-8") == text


def test_a_model_without_its_routing_is_left_out(tmp_path: Path) -> None:
    assert traces.ready("deepseek", tmp_path, tmp_path / "absent") is None


def test_the_committed_report_has_each_table_and_names_foreign_and_synthetic_routing() -> None:
    folder = ROOT / "reports/systems"
    text = (folder / "systems.md").read_text(encoding="utf-8")
    for model in cells.MODELS.values():
        assert model.routing in text
        for machine in cells.MACHINES.values():
            assert f"## {model.label} ({model.bits(machine)}), {machine.label}" in text
