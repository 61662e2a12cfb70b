"""Every shipped scenario does what it is there for, on the shipped traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))


def moesim(*arguments: str | Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "moesim", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_quickstart_runs_with_plots_bounds_and_a_verdict(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert moesim("run", ROOT / "scenarios/quickstart.yaml", "--out", out)[-1] == str(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] == summary["requests"] > 0
    assert summary["min_hit_rate"] >= summary["expert_hit_rate"] > 0
    assert summary["infinite_link_makespan_s"] < summary["makespan_s"]
    assert summary["verdict"] in ("policy", "memory", "link", "compute")
    assert any("costed with the sizes of mixtral-8x7b" in note for note in summary["notes"])
    assert len(list((out / "plots").glob("*.png"))) >= 4
    # The shipped report is the output of this very command.
    shipped = json.loads((ROOT / "reports/quickstart/summary.json").read_text())
    numbers = {key for key, value in summary.items() if isinstance(value, float)}
    assert shipped.keys() == summary.keys()
    for key, value in summary.items():
        # Processors may add up floats in another order.
        assert shipped[key] == (pytest.approx(value, rel=1e-12) if key in numbers else value), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [p for p in SCENARIOS if p.stem not in ("quickstart", "validate")],
    ids=lambda path: path.stem,
)
def test_every_other_scenario_is_a_grid_that_compare_runs(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    assert moesim("compare", path, "--out", out)[-1] == str(out)
    assert (out / "compare.csv").exists()
    assert (out / "compare.md").exists()
    assert list((out / "plots").glob("*.png"))


@pytest.mark.parametrize("name", ["shallow", "deep"])
def test_a_shipped_trace_is_whole_real_small_and_says_where_it_is_from(name: str) -> None:
    from moesim.trace import validate_trace

    folder = ROOT / "traces" / name
    trace = validate_trace(folder)
    assert not trace.meta.synthetic
    assert trace.num_requests >= 100
    assert len(set(trace.requests["domain"])) >= 3
    assert (trace.requests["output_tokens"] > 1).all()
    assert trace.predictions is not None
    assert "command" in trace.meta.provenance
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
