"""`moesim twin`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.errors import UsageError

LOGS = ROOT / "tests/support/twin_logs"
PARTS = ("--cpu", "Ryzen 7 5800X", "--ram", "32GB-ddr4-3200-2ch")


def invoke(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, ["twin", *map(str, arguments)], input=text)


def test_a_sweep_gives_numbers_residuals_and_what_ifs() -> None:
    done = invoke(LOGS / "sweep.md", *PARTS, "--what-if", "ncmoe=10", "--what-if", "cache=lru")
    assert done.exit_code == 0, done.output
    assert "RTX 3090 / Ryzen 7 5800X" in done.stdout
    for text in ("read bandwidth (GB/s)", "layer (us)", "ncmoe=10", "each row predicted from the"):
        assert text in done.stdout, text
    assert "what if cache=lru: LRU with " in done.stdout


def test_a_what_if_beyond_host_memory_has_no_answer_but_a_reason_in_one_line() -> None:
    done = invoke(LOGS / "sweep.md", *PARTS, "--what-if", "ncmoe=16,ram=2GB-ddr4-3200-2ch")
    line = next(line for line in done.stdout.splitlines() if "no answer: " in line)
    assert "no answer: impossible host memory: the parts exceed the memory, and" in line
    assert "; of 2 GiB (2147483648 bytes)" in line
    assert "try " not in line


def test_json_holds_all_that_is_printed() -> None:
    done = invoke(LOGS / "sweep.md", *PARTS, "--what-if", "ncmoe=10", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert len(document["rows"]) == 3
    assert set(document["numbers"]) == {"read_bandwidth", "layer_ns"}
    (answer,) = document["what_if"]
    decode = answer["decode"]
    assert decode["low"] < decode["tok_s"] < decode["high"]
    speeds = {row["setting"]: row["measured"] for row in document["rows"]}
    assert min(speeds.values()) < decode["tok_s"] < max(speeds.values())
    assert answer["prompt"]["tok_s"] > 0


def test_the_standard_input_and_files_of_other_formats_are_read() -> None:
    text = (LOGS / "rows.json").read_text()
    done = invoke("-", "--json", text=text)
    assert done.exit_code == 0, done.output
    assert [row["place"] for row in json.loads(done.stdout)["rows"]] == [
        "standard input:2", "standard input:14"
    ]  # fmt: skip
    assert "proves nothing" in json.loads(done.stdout)["fit"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.md"], "No such file"),
        ([ROOT / "LICENSE"], "no measurement is found"),
        ([LOGS / "sweep.md", "--what-if", "colour=red"], "not known"),
        ([LOGS / "sweep.md", "--gpu", "RTX 9999"], "no graphics card"),
        ([LOGS / "sweep.md", "--format", "Q4_Q"], "no format"),
        ([LOGS / "sweep.md", "--model", "absent.gguf"], "absent.gguf"),
        ([LOGS / "batched.log"], "requests overlap in time"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], said: str) -> None:
    done = invoke(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)
    assert done.stdout == ""
