"""Reports name the engine wherever they name the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from random_lanes import ENGINE, QUIET
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.report.comparison import compare_runs
from moesim.report.metrics import run_caption
from moesim.report.runs import load_run
from moesim.report.summary import summary_tables

IDEAL = (
    "ideal (no engine is that fast: no host time, one overlap of traffic and arithmetic per "
    "operation)"
)


def done(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def scenario_with(folder: Path, *lines: str) -> Path:
    tiny_trace(requests=2).save(folder / "trace")
    path = folder / "small.yaml"
    path.write_text("\n".join(["trace: trace", "hardware: t4", "bounds: false", *lines]))
    return path


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("ideal", IDEAL),
        (QUIET, f"{QUIET} (assumed figures)"),
        (f"{{profile: {QUIET}, launch: 5us}}", f"{QUIET} with launch 5 us (assumed figures)"),
        ("{launch: 5us}", IDEAL.replace("ideal (", "ideal with launch 5 us (").replace(
            "no host time, ", "")),
    ],
)  # fmt: skip
def test_the_tables_and_captions_of_a_run_name_its_engine(
    tmp_path: Path, engine: str, text: str
) -> None:
    path = scenario_with(tmp_path, f"engine: {engine}")
    done("run", path, "--out", tmp_path / "out", "--no-plots")
    run = load_run(tmp_path / "out")
    assert run.engine == text
    setup = summary_tables(run)[0]
    assert [row[1].text.strip() for row in setup.rows if row[0].text == "engine"] == [text]
    assert (
        f" on t4{'' if QUIET not in engine else ' with pageable host memory'}, engine {text}; "
        in (run_caption(run))
    )


def test_a_swept_engine_is_one_label_whatever_keys_follow_from_it(tmp_path: Path) -> None:
    path = scenario_with(
        tmp_path,
        "placement: cpu_layers",
        f"sweep: {{engine: [ideal, {QUIET}, {ENGINE}], batching.policy: [fcfs, decode_first]}}",
    )
    out = tmp_path / "out"
    listed = json.loads(done("compare", path, "--out", out, "--no-plots", "--json"))
    assert [(row["variant"], row["setting"]) for row in listed["rows"]] == [
        (f"{policy} batching", f"engine = {engine}")
        for engine in ("ideal", QUIET, ENGINE)
        for policy in ("fcfs", "decode-first")
    ]
    caption = (out / "compare.md").read_text(encoding="utf-8")
    assert f", engine {IDEAL} / {QUIET} (assumed figures) / " in caption


def test_the_size_of_host_memory_that_follows_from_a_swept_text_is_no_label(tmp_path: Path) -> None:
    tiny_trace(requests=2).save(tmp_path / "trace")
    path = tmp_path / "small.yaml"
    texts = "hardware.memory: [8 GB DDR5, 16 GB DDR5]"
    lines = ("trace: trace", "bounds: false", "hardware: {gpu: T4, cpu: i5-12400, memory: DDR5}")

    def labels(*sections: str) -> list[str]:
        path.write_text("\n".join([*lines, *sections]), encoding="utf-8")
        out = tmp_path / str(len(sections) + len(sections[0]))
        listed = json.loads(done("compare", path, "--out", out, "--no-plots", "--json"))
        return [row["variant"] + row["setting"] for row in listed["rows"]]

    swept = labels(f"sweep: {{{texts}}}")
    assert len(set(swept)) == 2
    assert not any("host" in label for label in swept)
    both = labels(f"sweep: {{{texts}, memory.host: [4GiB, 6GiB]}}")
    assert len(set(both)) == 4
    assert all("host" in label for label in both)


def test_a_key_that_differs_by_itself_stays_a_label_beside_the_engine(tmp_path: Path) -> None:
    path = scenario_with(
        tmp_path, f"sweep: {{engine: [ideal, {QUIET}], batching.token_budget: [3, 512]}}"
    )
    listed = json.loads(done("compare", path, "--out", tmp_path / "out", "--no-plots", "--json"))
    names = [row["variant"] + row["setting"] for row in listed["rows"]]
    assert len(set(names)) == 4
    assert all("engine = " in name and "token_budget = " in name for name in names)
    assert not any("pinned" in name for name in names)


def test_runs_of_older_versions_had_the_ideal_engine(tmp_path: Path) -> None:
    """Their scenarios have no profile, and all times of the host."""
    path = scenario_with(tmp_path)
    for name in ("new", "old"):
        done("run", path, "--out", tmp_path / name, "--no-plots")
    file = tmp_path / "old" / "scenario.yaml"
    times = "  launch: 0ns\n  copy_launch: 0ns\n  layer_event: 0ns\n  sorting: host"
    text = file.read_text(encoding="utf-8").replace("  profile: ideal", times)
    assert times in text
    file.write_text(text, encoding="utf-8")
    summary = json.loads((tmp_path / "old" / "summary.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in summary.items() if not key.startswith("engine")}
    (tmp_path / "old" / "summary.json").write_text(json.dumps(kept), encoding="utf-8")
    manifest = tmp_path / "old" / "manifest.json"
    unchecked = {**json.loads(manifest.read_text(encoding="utf-8")), "outputs": {}}
    manifest.write_text(json.dumps(unchecked), encoding="utf-8")
    runs = [load_run(tmp_path / name) for name in ("new", "old")]
    assert runs[1].engine == ""
    assert "engine" not in run_caption(runs[1])
    assert len(compare_runs(runs).rows) == 1
