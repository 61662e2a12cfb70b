"""`moesim measured`: what it prints and writes, and how it ends."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_rows import Affine, row
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.errors import OutputError, UsageError
from moesim.measured import simulated

ROWS: list[dict[str, Any]] = [
    asdict(row(setting="ncmoe=10", fit=True)) | {"value": 90.0},
    asdict(row(setting="ncmoe=40", fit=True)) | {"value": 40.0},
    *[asdict(row(setting="ncmoe=20")) | {"value": 60.0 + index} for index in range(15)],
    asdict(row(setting="ncmoe=5", gpu="Arc B580")),
    asdict(row(setting="ncmoe=20", metric="prefill_tok_s", prompt=8)) | {"value": 70.0},
    asdict(row(gpu="2x RTX 3090")) | {"value": 7.0},
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of rows, and a model that prices them."""
    monkeypatch.setattr(simulated, "Simulated", Affine)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["measured", *map(str, arguments)])


def records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def printed(*arguments: str | Path) -> Any:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_tables_are_by_machine_and_shortened_with_a_note(file: Path) -> None:
    done = invoke(file)
    assert done.exit_code == 0, done.output
    assert "RTX 3090 / i7\n" in done.stdout
    assert "Arc B580 / i7\n" in done.stdout
    assert "… and 8 more rows (--json or --out shows all)" in done.stdout
    assert "several-gpus: several GPUs share" in done.stdout
    assert done.stdout.count("ncmoe=20") < 12
    score = next(line for line in done.stdout.splitlines() if line.startswith("  decode "))
    assert score.split()[1:4] == ["18", "18", "17"]


def test_json_has_every_row_and_the_summary(file: Path) -> None:
    found = printed(file)
    assert [row["index"] for row in found["rows"]] == list(range(len(ROWS)))
    assert found["rows"][-1]["predicted"] is None
    assert found["summary"]["groups"]["small_batch"]["counted"] == 1
    assert "fits" not in found["summary"]


def test_fit_two_answers_its_rows_with_the_reason_fitted(file: Path) -> None:
    found = printed(file, "--fit", "two")
    assert [row["reason"] for row in found["rows"][:3]] == ["fitted", "fitted", None]
    (fit,) = found["summary"]["fits"]
    assert (fit["machine"], fit["rows"]) == ("RTX 3090 / i7", [0, 1])
    table = invoke(file, "--fit", "two").stdout
    assert "Fitted\n" in table
    assert "RTX 3090 / i7, llama.cpp CUDA" in table


def test_fit_none_prints_the_same_without_values(file: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.json"
    blank.write_text(json.dumps([{k: v for k, v in row.items() if k != "value"} for row in ROWS]))
    with_values, without = printed(file)["rows"], printed(blank)["rows"]
    assert all(row.pop("error_pct") is None for row in without)
    for row_ in with_values:
        del row_["error_pct"]
    assert with_values == without


def test_out_writes_all_rows_and_the_figure(file: Path, tmp_path: Path) -> None:
    done = invoke(file, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert "more rows" not in done.stdout
    rows = records(tmp_path / "out/measured.csv")
    assert len(rows) == len(ROWS)
    assert (rows[0]["placement"], rows[0]["group"], rows[0]["backend"]) == (
        "offload",
        "decode",
        "CUDA",
    )
    assert rows[-1]["reason"].startswith("several-gpus")
    assert "a note" in rows[0]["notes"]
    drawn = records(tmp_path / "out/plots/measured.csv")
    assert len(drawn) == 18
    assert {row["group"] for row in drawn} == {"decode", "small_batch"}
    for end in ("png", "svg"):
        assert (tmp_path / f"out/plots/measured.{end}").stat().st_size > 1000
    again = invoke(file, "--out", tmp_path / "out")
    assert again.exit_code == 0


def test_the_figure_has_units_equal_axes_and_the_line_of_equality() -> None:
    from moesim.measured.answers import answer_rows
    from moesim.measured.rows import Measured
    from moesim.measured.scatter import _chart

    values = [Measured(row(setting=f"ncmoe={count}"), 50.0 + count) for count in range(1, 5)]
    chart = _chart(answer_rows(values, Affine().predict))
    axes = chart.axes[0][0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim() == axes.get_ylim()
    assert "(tokens/s)" in axes.get_xlabel()
    assert any(np.array_equal(line.get_xdata(), line.get_ydata()) for line in axes.get_lines())
    assert [text.get_text() for text in chart.figure.legends[0].get_texts()] == ["offload"]


def test_an_empty_list_is_no_failure(file: Path, tmp_path: Path) -> None:
    file.write_text("[]")
    assert printed(file)["rows"] == []
    assert invoke(file).exit_code == 0
    assert invoke(file, "--out", tmp_path / "out").exit_code == 0


def test_a_wrong_file_is_a_usage_error(file: Path, tmp_path: Path) -> None:
    file.write_text('[{"depth": "deep"}]')
    assert isinstance(invoke(file).exception, UsageError)
    assert isinstance(invoke(tmp_path / "none.json").exception, UsageError)


def test_a_place_that_cannot_be_written_is_named(file: Path) -> None:
    assert isinstance(invoke(file, "--out", file).exception, OutputError)


@pytest.mark.parametrize(
    ("unknown", "reason"),
    [
        ({"model": "M"}, "no model shape is called 'M'"),
        ({"cpu": "i7"}, "no processor of the catalogue is called 'i7'"),
        ({"engine": "swift-moe 0.9"}, "engine 'swift-moe 0.9' is not known"),
        ({"quant": "Q4_K_QQ"}, "no format of weights is called 'Q4_K_QQ'"),
    ],
)
@pytest.mark.parametrize("fit", ["none", "two"])
def test_a_row_with_an_unknown_part_is_declined_by_its_name(
    tmp_path: Path, unknown: dict[str, str], reason: str, fit: str
) -> None:
    path = tmp_path / "rows.json"
    known = {"model": "olmoe-1b-7b", "cpu": "i9-9900K", "ram": "64 GB DDR4-3200"}
    path.write_text(json.dumps([{**ROWS[0], **known, **unknown}]))
    (answer,) = printed(path, "--fit", fit)["rows"]
    assert reason in answer["reason"]
    assert answer["predicted"] is None
