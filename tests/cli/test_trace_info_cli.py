"""`moesim trace info`: a screen of plain words, more on demand, and the same as JSON and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.trace import SyntheticKnobs, synthesize

TOPICS = (
    "policies", "length", "popularity", "collapse", "tokens", "reuse", "layers", "predictions",
    "union", "r", "domains", "prompts",
)  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("info") / "trace"
    synthesize(SyntheticKnobs(requests=12, skew=0.0, stickiness=0.0)).save(path)
    return path


def info(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["trace", "info", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_a_screen_has_one_sentence_a_topic(trace: Path) -> None:
    lines = info(trace).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 140
    for topic in TOPICS:
        assert any(line.startswith((f"- {topic}: ", f"! {topic}: ")) for line in lines), topic
    assert lines[0].startswith("SYNTHETIC ROUTING")


def test_all_adds_a_table_of_the_layers(trace: Path) -> None:
    short, long = info(trace), info(trace, "--all")
    assert "effective experts" in long
    assert "effective experts" not in short
    assert "load_skew" in long


def test_json_has_verdicts_warnings_and_measures(trace: Path) -> None:
    told = json.loads(info(trace, "--json"))
    assert tuple(told["verdicts"]) == TOPICS
    assert set(told["warnings"]) <= set(TOPICS)
    assert len(told["measures"]["layers"]) == told["layers"] == 8
    assert told["measures"]["hits"]["verdict"] in ("enough", "coarse", "short")
    assert told["synthetic"] is True


def test_out_holds_json_layers_and_figures(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert info(trace, "--out", out).splitlines()[-1] == str(out)
    assert sorted(path.name for path in out.iterdir()) == ["info.json", "layers.csv", "plots"]
    names = {path.stem for path in (out / "plots").iterdir()}
    assert names == {"layers", "reuse", "unions", "recall"}
    told = json.loads((out / "info.json").read_text())
    assert tuple(told["verdicts"]) == TOPICS
    assert "SYNTHETIC ROUTING" in (out / "plots/layers.svg").read_text()
    done = CliRunner().invoke(app, ["trace", "info", str(trace), "--out", str(out)])
    assert done.exception is not None
    assert "--force" in str(done.exception)
    info(trace, "--out", out, "--force", "--no-plots")
    assert not (out / "plots").exists()


def test_a_sample_is_said_to_be_one(trace: Path) -> None:
    text = info(trace, "--rows", "200")
    assert "(measured on 189 rows of 3 requests)" in text


def test_the_help_has_an_example() -> None:
    assert "moesim trace info traces/shallow" in info("--help")
