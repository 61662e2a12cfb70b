"""The errors that docs/twin.md reports are made again from the rows."""

from __future__ import annotations

from pathlib import Path

from paths import ROOT
from study_scripts import study

from moesim.measured.rows import read_measured

two_rows = study("measured", "two_rows")


def test_the_document_shows_the_errors_of_sweeps(shared: Path) -> None:
    lines = (ROOT / "docs/twin.md").read_text(encoding="utf-8").splitlines()
    rows = read_measured(shared / "data/measured/throughput.json")
    for half, sweep in (("forming", (10, 14)), ("exam", (57, 60))):
        assert sweep in two_rows.SWEEPS[half]
        first, end = sweep
        assert two_rows.line_of(half, two_rows.sweep_of(rows[first:end])) in lines
