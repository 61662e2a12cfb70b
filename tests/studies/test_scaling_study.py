"""The study of a lost node runs for real: a node is killed, and no run is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from study_scripts import study

pytest.importorskip("ray", reason="ray is in the extra `ray`")
lost_node = study("scaling", "lost_node")


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_run_and_changes_no_byte(tmp_path: Path) -> None:
    script = ROOT / "studies/scaling/lost_node.py"
    line = [sys.executable, str(script), str(tmp_path), "--seeds", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "lost_node.md").read_text()
    assert "| runs of the sweep | 8 |" in text
    assert "| runs at the end | 8 |" in text
    assert "| runs that began again" in text
    assert "(but for the time a run took) | 0 |" in text
    assert "runs.csv are the same | yes |" in text


def run_of(out: Path, name: str, number: int) -> None:
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(str(number))
    (folder / "manifest.json").write_text(f'{{"wall_s": {number}}}')
    for table in ("compare.csv", "runs.csv"):
        (out / table).write_text("")


def test_the_report_names_files_that_differ_and_no_wall_times(tmp_path: Path) -> None:
    for place, number in (("there", 1), ("here", 2)):
        run_of(tmp_path / place, "a", number)
    text = lost_node.report(1, "", tmp_path / "there", tmp_path / "here")
    assert "- runs/a/summary.json differs" in text
    assert "manifest.json" not in text
    assert "| runs that began again | 0 |" in text
