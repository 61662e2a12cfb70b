"""`moesim trace convert`: the format is named or found, and what was concluded is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import answer
from paths import ROOT
from routing_files import IDS, SAMPLES

from moesim.trace import load_trace
from moesim.trace.importers import FORMATS


def convert(*arguments: str | Path) -> tuple[int, str]:
    return answer(["trace", "convert", *arguments])


@pytest.mark.parametrize("option", [["--from", "llama.cpp"], ["--format", "llama_cpp"], []])
def test_a_log_becomes_a_trace_folder(option: list[str], tmp_path: Path) -> None:
    source = SAMPLES["llama_cpp"].write(tmp_path)
    code, output = convert(source, tmp_path / "out", *option, "--top-k", "2")
    assert code == 0, output
    assert np.array_equal(load_trace(tmp_path / "out").expert_ids[:], IDS)
    assert "read as llama_cpp: a CSV log of llama.cpp" in output
    assert "- 8 experts: counted from the highest id" in output
    assert output.rstrip().endswith(str(tmp_path / "out"))


def test_counts_are_announced_as_synthetic(tmp_path: Path) -> None:
    source = tmp_path / "counts.csv"
    source.write_text("layer,expert,count\n0,0,3\n0,1,2\n0,2,4\n")
    code, output = convert(source, tmp_path / "out", "--top-k", "1")
    assert code == 0, output
    assert "SYNTHETIC" in output
    assert "(synthetic)" in output
    assert load_trace(tmp_path / "out").meta.synthetic


def test_a_shipped_model_says_its_sizes(tmp_path: Path) -> None:
    source = tmp_path / "counts.csv"
    rows = [f"0,{expert},{10 + expert % 7}" for expert in range(60)]
    source.write_text("\n".join(["layer,expert,count", *rows]))
    code, output = convert(source, tmp_path / "out", "--model", "olmoe-1b-7b")
    assert code == 0, output
    assert "- 64 experts, and 8 a token: those of olmoe-1b-7b" in output
    trace = load_trace(tmp_path / "out")
    assert (trace.num_experts, trace.top_k) == (64, 8)
    log = SAMPLES["csv"].write(tmp_path)
    code, output = convert(log, tmp_path / "other", "--model", "olmoe-1b-7b", "--top-k", "2")
    assert code == 0, output
    code, output = convert(log, tmp_path / "third", "--model", "olmoe-1b-7b")
    assert code == 2
    assert "were expected" in output
    code, output = convert(source, tmp_path / "own", "--model", "mine", "--top-k", "2")
    assert code == 0, output
    assert load_trace(tmp_path / "own").num_experts == 60


def test_bad_input_ends_with_code_2_in_one_line(tmp_path: Path) -> None:
    source = tmp_path / "odd.csv"
    for content, arguments, words in (
        ("token,layer,expert\n0,0,9\n", ["--num-experts", "4"], "line 2: expert id 9 is out of"),
        ("hello\n", [], "name it with --from NAME"),
        ("hello\n", ["--from", "nope"], "--from 'nope' is no format"),
        ("hello\n", ["--from", "csv"], "line 1: has no column 'expert'"),
    ):
        source.write_text(content)
        code, output = convert(source, tmp_path / "out", *arguments)
        assert code == 2, output
        assert words in output
        assert not (tmp_path / "out").exists()


def test_the_help_and_the_page_list_every_format() -> None:
    _, output = convert("--help")
    table = (ROOT / "docs/imports.md").read_text()
    for name in FORMATS:
        assert re.search(rf"\b{name}\b", output), name
        assert f"| `{name}` |" in table


def test_the_help_has_an_example() -> None:
    code, output = convert("--help")
    assert code == 0
    assert "moesim trace convert moe_trace.csv" in output
