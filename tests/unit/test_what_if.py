"""What-ifs of a finished run: each is the run of a changed scenario, or has a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.cli.what_if import print_what_ifs
from moesim.errors import UsageError
from moesim.report import load_run
from moesim.report.runs import Run
from moesim.report.what_ifs import sentences, what_if_table
from moesim.results.what_if import WhatIf, WhatIfs
from moesim.scenario import load_scenario
from moesim.simulate import prepare, result_of
from moesim.simulate import run as simulate
from moesim.simulate.what_if import what_ifs

BASE: dict[str, Any] = {
    "trace": "trace",
    "hardware": {"profile": "rtx-4090", "vram": "200MiB", "h2d": {"bandwidth": "4GB/s"}},
    "memory": {"kv": "auto"},
    "cache": {"slots": 12},
    "bounds": False,
}
ON_CPU = {"placement": {"policy": "cpu_experts"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("what-if")
    trace = tiny_trace(requests=4, prompt_tokens=4, output_tokens=5, stickiness=0.3)
    trace.save(folder / "trace")
    return folder


def run_of(home: Path, name: str, **changes: Any) -> Run:
    """Return the run directory of the base with other sections; it is made once."""
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**BASE, **changes}))
    simulate(file, out=home / name)
    return load_run(home / name)


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return run_of(home, "base")


def answers(run: Run) -> dict[str, WhatIf]:
    return {each.name: each for each in what_ifs(run).answers}


def test_an_answer_is_the_run_of_the_overrides_that_it_states(run: Run) -> None:
    found = what_ifs(run)
    assert dict(found.base) == dict(run.summary)
    assert found.notes == ()
    simulated = [each for each in found.answers if each.summary is not None]
    assert [each.name for each in simulated] == ["link", "slots", "prefetch"]
    for each in simulated:
        scenario = load_scenario(run.path / "scenario.yaml", each.sets)
        again = result_of(prepare(scenario)).summary
        assert each.summary == again, each.name
        assert again["output_tokens_per_s"] > run.value("output_tokens_per_s"), each.name


def test_a_link_twice_as_fast_has_twice_the_bandwidth_both_ways(run: Run) -> None:
    link = answers(run)["link"]
    before = load_scenario(run.path / "scenario.yaml").load_hardware()
    after = load_scenario(run.path / "scenario.yaml", link.sets).load_hardware()
    for way in ("h2d", "d2h"):
        old, new = getattr(before, way), getattr(after, way)
        assert new.pinned_bytes_per_s == 2 * old.pinned_bytes_per_s
        assert new.latency_ns == old.latency_ns
    assert "8 GB/s instead of 4 GB/s to the GPU" in link.needs


@pytest.mark.parametrize(("slots", "doubled"), [(12, 24), (20, 32)])
def test_slots_double_up_to_all_experts_and_kv_blocks_stay(
    home: Path, slots: int, doubled: int
) -> None:
    small = {"profile": "rtx-4090", "vram": f"{60 + 2 * slots}MiB"}
    changes = {"cache": {"slots": slots}, "memory": {"kv": "10%"}, "hardware": small}
    run = run_of(home, f"slots{slots}", **changes)
    more = answers(run)["slots"]
    assert more.summary is not None
    assert more.summary["cache_slots"] == doubled
    assert more.summary["vram_bytes"] > run.value("vram_bytes")
    assert more.summary["kv_bytes"] == run.value("kv_bytes")
    assert ("(all experts)" in more.needs) is (doubled == 32)


def test_memory_that_more_slots_need_is_stated_and_no_more(home: Path) -> None:
    """The oracle adds the bytes of the parts: the memory is full to less than an expert."""
    run = run_of(home, "tight", hardware={"profile": "rtx-4090", "vram": "85MiB"})
    more = answers(run)["slots"]
    assert more.summary is not None
    parts = ("fixed", "kv", "slots", "staging", "activations")
    used = sum(more.summary[f"{part}_bytes"] for part in parts)
    assert used > run.value("vram_bytes")
    assert more.summary["vram_bytes"] == used
    assert "of GPU memory instead of 85 MiB" in more.needs
    free = answers(run_of(home, "base"))["slots"]
    assert free.summary is not None
    assert free.summary["vram_bytes"] == 200 * 2**20
    assert "which is free" in free.needs


def test_a_faster_cpu_is_asked_only_where_experts_run_on_it(home: Path, run: Run) -> None:
    assert "no expert and no layer runs on the CPU" in answers(run)["cpu"].reason
    on_cpu = run_of(home, "cpu", **ON_CPU)
    found = answers(on_cpu)
    assert found["cpu"].summary is not None
    assert found["cpu"].summary["cpu_busy_share"] < on_cpu.value("cpu_busy_share")
    assert "placement fixes the experts" in found["prefetch"].reason


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("slots", {"cache": {"slots": 32}}, "every expert has a slot already"),
        ("slots", {"cache": {"slots": 12, "split": [3, 3, 3, 3]}}, "lists the slots"),
        ("prefetch", {"cache": {"slots": 32}}, "nothing is left to prefetch"),
        ("prefetch", {"prefetch": "oracle"}, "has the oracle already"),
        ("link", {"hardware": {"gpu": "M2 Ultra", "memory": "192 GB"}}, "one memory"),
    ],
)
def test_a_change_that_means_nothing_has_a_reason(
    home: Path, name: str, changes: dict[str, Any], reason: str
) -> None:
    found = answers(run_of(home, f"{name}-{len(reason)}", **changes))[name]
    assert found.summary is None
    assert reason in found.reason


def test_a_trace_that_is_gone_or_changed_is_a_reason_and_refused_by_the_command(
    home: Path, run: Run
) -> None:
    there, away = home / "trace", home / "away"
    there.rename(away)
    try:
        gone = what_ifs(run)
        with pytest.raises(UsageError, match=f"{run.path}: the run cannot be simulated again: "):
            print_what_ifs([run], as_json=False)
        tiny_trace(requests=5, prompt_tokens=4, output_tokens=5).save(there)
        changed = what_ifs(run)
    finally:
        for file in sorted(there.rglob("*"), reverse=True) if there.exists() else ():
            file.unlink() if file.is_file() else file.rmdir()
        if there.exists():
            there.rmdir()
        away.rename(there)
    assert all("cannot be simulated again" in each.reason for each in gone.answers)
    assert all("was changed after the run" in each.reason for each in changed.answers)
    assert [each.name for each in gone.answers] == ["link", "slots", "prefetch", "cpu"]
    assert not what_ifs(run).refused


def test_another_version_of_the_code_simulates_the_run_again(run: Run) -> None:
    inputs = {**run.manifest["inputs"], "code": "another"}
    stale = {**run.summary, "output_tokens_per_s": 1.0}
    found = what_ifs(Run(run.path, stale, {**run.manifest, "inputs": inputs}, run.scenario))
    assert found.base["output_tokens_per_s"] == run.value("output_tokens_per_s")
    assert "moesim's code changed" in found.notes[0]


def test_each_simulation_is_announced_and_nothing_is_written(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.parent.rglob("*")}
    seen: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        assert done <= total
        seen[what] = done

    what_ifs(run, progress)
    assert list(seen) == ["link twice as fast", "twice the expert slots", "perfect prefetch"]
    assert {path: path.stat().st_mtime_ns for path in run.path.parent.rglob("*")} == before


def test_the_command_prints_a_row_for_each_and_every_reason(run: Run) -> None:
    found = CliRunner().invoke(app, ["report", str(run.path), "--what-if"])
    assert found.exit_code == 0, found.output
    for text in ("SYNTHETIC ROUTING", "as it was", "link twice as fast", "no CPU twice as fast"):
        assert text in found.stdout
    table = what_if_table(run, what_ifs(run))
    assert len(table.rows) == 4
    assert any("needs a link with 8 GB/s" in text for text in sentences(what_ifs(run)))
    data = json.loads(
        CliRunner().invoke(app, ["report", str(run.path), "--what-if", "--json"]).stdout
    )
    assert [each["name"] for each in data["what_ifs"]] == ["link", "slots", "prefetch", "cpu"]
    several = CliRunner().invoke(app, ["report", str(run.path), str(run.path), "--what-if"])
    assert several.exit_code == 0  # one run, named twice


def test_shares_change_in_points_and_all_else_in_percent(run: Run) -> None:
    base = dict(run.summary)
    better = {**base, "stall_share": base["stall_share"] - 0.1,
              "output_tokens_per_s": 1.5 * base["output_tokens_per_s"]}  # fmt: skip
    table = what_if_table(run, WhatIfs(base, [WhatIf("link", "faster", summary=better)]))
    cells = dict(zip(table.columns, (cell.text for cell in table.rows[1]), strict=True))
    assert cells["stalled (% of step time)"].endswith("(-10.0 pp)")
    assert cells["throughput (tokens/s in all)"].endswith("(+50.0 %)")
