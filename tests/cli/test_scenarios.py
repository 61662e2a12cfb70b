"""Every shipped scenario does what it is there for, on the shipped traces."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_blocks import commands
from paths import ROOT

from moesim.errors import ScenarioError
from moesim.scenario import load_scenario
from moesim.scenario.sweep import expand_sweep
from moesim.simulate import run
from moesim.trace import load_trace

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
    assert summary["verdict"] in ("policy", "working set", "link", "compute")
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
    assert (out / "compare.md").exists()
    assert list((out / "plots").glob("*.png"))
    shipped = ROOT / "reports" / path.stem
    # reports/readme is the output of studies.
    for table in shipped.rglob("*.csv") if (shipped / "compare.csv").exists() else ():
        assert_same_table(out / table.relative_to(shipped), table)


def assert_same_table(written: Path, shipped: Path) -> None:
    """A report that is shipped is what its command writes."""
    ours, theirs = (
        list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        for path in (written, shipped)
    )
    assert len(ours) == len(theirs), shipped
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        pairs = enumerate(zip(mine, other, strict=True), start=1)
        wrong = [(column, *pair) for column, pair in pairs if not same_cell(*pair)]
        assert not wrong, f"{shipped}:{row}: {wrong}"


def same_cell(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        # Processors may add up floats in another order.
        return float(one) == pytest.approx(float(other), rel=1e-8, abs=1e-12)
    except ValueError:
        return False


def test_tables_differ_by_their_words_their_numbers_and_their_rows(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("policy,hits\nlru,0.5\n")
    other.write_text("policy,hits\nlru,0.5000000000001\n")
    assert_same_table(one, other)
    for text in ("policy,hits\nlru,0.5001\n", "policy,hits\nlfu,0.5\n", "policy,hits\n"):
        other.write_text(text)
        with pytest.raises(AssertionError, match=r"other\.csv"):
            assert_same_table(one, other)


@pytest.mark.slow
def test_the_documented_times_of_layers_on_the_cpu_are_those_of_their_commands(
    tmp_path: Path,
) -> None:
    text = (ROOT / "docs/placement.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(moesim compare \S+ --out runs/a100 .*?)```", text, re.S)
    for words, engine in zip(commands(block), ("ideal", "llama.cpp"), strict=True):
        out = tmp_path / engine
        words[words.index("--out") + 1] = str(out)
        moesim(*[str(ROOT / word) if word.startswith("scenarios/") else word for word in words[1:]])
        with (out / "compare.csv").open(encoding="utf-8") as file:
            times = [f"{float(row['tpot_mean_ms']):.1f}" for row in csv.DictReader(file)]
        (row,) = re.findall(rf"^\| simulated, `engine: {engine}` .*$", text, re.M)
        assert re.findall(r"\| ([\d.]+) ", row)[:5] == times


@pytest.fixture(scope="module")
def llama_cpp() -> dict[int, dict[str, Any]]:
    """The summary of each number of layers on the CPU."""
    scenario = load_scenario(ROOT / "scenarios/llama_cpp.yaml")
    return {
        point["placement.options.layers"]: run(each).summary
        for point, each in expand_sweep(scenario)
    }


def test_the_documented_answer_of_llama_cpp_is_that_of_its_scenario(
    llama_cpp: dict[int, dict[str, Any]],
) -> None:
    text = (ROOT / "docs/engines.md").read_text(encoding="utf-8")
    section = text.split("## Will it run on my machine?")[1].split("\n## ")[0]
    table = {
        cells[0]: [float(cell) for cell in cells[1:]]
        for line in section.splitlines()
        if re.fullmatch(r"\|[^|]+(\| [\d.]+ )+\|", line)
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert table.pop("layers of experts on the CPU") == list(llama_cpp)
    tpots = [summary["tpot_mean_ms"] for summary in llama_cpp.values()]
    ttfts = [summary["ttft_mean_ms"] for summary in llama_cpp.values()]
    expected = {
        "TPOT (ms)": tpots,
        "decode (tokens/s)": [one["decode_mean_tokens_per_s"] for one in llama_cpp.values()],
        "TTFT of 2000 tokens (ms)": ttfts,
        "prompt (tokens/s)": [2000 * 1000 / ttft for ttft in ttfts],
    }
    assert table.keys() == expected.keys()
    for name, values in expected.items():
        assert table[name] == pytest.approx(values, rel=0.003), name


def test_llama_cpp_names_its_engine_its_host_memory_and_its_routing(
    llama_cpp: dict[int, dict[str, Any]],
) -> None:
    for summary in llama_cpp.values():
        assert (summary["engine"], summary["engine_interface"]) == ("llama.cpp", "cuda")
        assert summary["host_memory_bytes"] == 32 * 2**30
        assert summary["routing"] == "synthetic"
        assert summary["format"] == "Q4_K_M"
        assert not any("floats" in caveat for caveat in summary["caveats"])
    fewer = load_scenario(
        ROOT / "scenarios/llama_cpp.yaml", ["sweep={}", "placement.options.layers=19"]
    )
    with pytest.raises(ScenarioError, match="there are 3700"):
        run(fewer)


def test_the_synthetic_trace_is_small_uniform_and_made_by_the_command_that_its_list_gives(
    tmp_path: Path,
) -> None:
    text = (ROOT / "traces/README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^moesim (trace synth .*)$", text, re.M)
    verb, kind, folder, *options = command.split()
    moesim(verb, kind, tmp_path / "again", *options)
    shipped, again = (load_trace(path) for path in (ROOT / folder, tmp_path / "again"))
    assert (shipped.expert_ids[:] == again.expert_ids[:]).all()
    assert shipped.meta.synthetic
    assert sum(path.stat().st_size for path in (ROOT / folder).iterdir()) < 1_000_000
    counts = np.bincount(shipped.expert_ids[:].ravel(), minlength=128)
    assert counts.min() > 0.9 * counts.mean()


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
