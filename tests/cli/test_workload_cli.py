"""`moesim workload info` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner
from workloads import tiny_trace

from moesim.cli import app
from moesim.errors import MoesimError, UsageError


def info(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["workload", "info", *map(str, arguments)])
    if isinstance(result.exception, MoesimError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


ROWS = "when,in,out\n5,10,2\n3,20,0\n4,30,4\n"
OWN = ("--column", "arrival=when", "--column", "prompt=in", "--column", "output=out")


def test_options_of_a_file_are_those_of_a_scenario(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", ROWS)
    text = info(file, *OWN, "--repair", "sort", "--repair", "drop_empty")
    assert "requests" in text
    assert "- 1 requests without prompt or output tokens were left out, the first on line 3" in text
    about = json.loads(
        info(file, *OWN, "--repair", "sort", "--repair", "drop_empty", "--requests", "1", "--json")
    )
    assert about["requests"] == 1
    assert about["prompt_tokens"]["total"] == 30


def test_out_has_the_json_form_and_the_plots(tmp_path: Path) -> None:
    file = write(tmp_path / "r.csv", "arrival_s,prompt_tokens,output_tokens\n0,3,2\n1,5,4\n")
    out = tmp_path / "out"
    assert info(file, "--out", out).splitlines()[-1] == str(out)
    assert json.loads((out / "workload.json").read_text())["requests"] == 2
    names = sorted(path.name for path in (out / "plots").iterdir())
    assert names == [f"workload.{kind}" for kind in ("csv", "md", "png", "svg")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("r.csv",), "r.csv:1: is of no known format"),
        (("r.csv", *OWN), "r.csv:3: has 20 prompt and 0 output tokens"),
        ((".",), ".:1: cannot be read: is a folder"),
        (("r.csv", "--format", "azur"), "no format 'azur'"),
        (("r.csv", "--column", "prompt"), "must be KEY=NAME"),
        (("r.csv", "--characters-per-token", "nan"), "must be a number above 0"),
    ],
)
def test_a_wrong_file_or_option_is_one_line_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.csv", ROWS)
    with pytest.raises(UsageError) as caught:
        info(*arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_run_says_what_its_file_and_its_prefix_cache_did(tmp_path: Path) -> None:
    tiny_trace(requests=4).save(tmp_path / "trace")
    row = '{"timestamp": 7, "input_length": 9, "output_length": 2, "hash_ids": [1, 2]}\n'
    write(tmp_path / "hashed.jsonl", row * 3)
    write(
        tmp_path / "s.yaml",
        "trace: trace\n"
        "hardware: rtx-4090\n"
        "workload: {arrivals: {kind: file, path: hashed.jsonl, block_tokens: 4}}\n"
        "memory: {kv: 1MiB, kv_block_tokens: 4, prefix_cache: true}\n"
        "batching: {max_sequences: 1}\n",
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["run", str(tmp_path / "s.yaml"), "--out", str(out), "--no-plots"]
    )
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "arrivals file hashed.jsonl" in lines
    assert "prefix cache 16 prompt tokens found (59.3%)" in lines
    columns = pq.read_table(out / "requests.parquet").column_names
    assert "prefix_hit_tokens" in columns
