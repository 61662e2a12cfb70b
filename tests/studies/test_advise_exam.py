"""The exam of `moesim advise`: sweeps, advised settings, and the tables of `docs/advise.md`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measured_rows import row
from paths import ROOT
from study_scripts import study

from moesim.measured.predict import Prediction, read
from moesim.measured.rows import Measured, read_measured
from moesim.measured.simulated import Simulated
from moesim.report.tabular import with_tables

study("measured", "scoreboard")  # which the exam imports
sweeps = study("advise", "sweeps")
exam = study("advise", "exam")
questions = study("advise", "questions")

MACHINE = {
    "gpu": "RTX 3060 12GB", "cpu": "Ryzen 5 5600", "ram": "32GB DDR4-3200 2ch",
    "engine": "llama.cpp", "model": "qwen3-30b-a3b", "quant": "Q4_K_M",
    "metric": "decode_tok_s", "source": "a/b",
}  # fmt: skip


def measured(value: float, setting: str, **fields: Any) -> Measured:
    return Measured(row(**{**MACHINE, "setting": setting, **fields}), value)


def committed(name: str) -> Any:
    return json.loads((ROOT / f"reports/advise/{name}.json").read_text(encoding="utf-8"))


def document() -> str:
    return (ROOT / "docs/advise.md").read_text(encoding="utf-8")


def test_a_sweep_has_the_rows_that_differ_in_the_layers_alone() -> None:
    rows = [
        measured(20.0, "ncmoe=48"),
        measured(30.0, "ncmoe=24"),
        measured(31.0, "ncmoe=20 kv=q8_0"),
        measured(32.0, "ncmoe=20", gpu="RTX 3090"),
        measured(33.0, "ncmoe=20", depth=4096),
    ]
    (found,) = sweeps.sweeps(rows)
    assert found.measured == ((24, 30.0), (48, 20.0))
    assert found.best == (24, 30.0)
    assert not found.whole


def test_whole_layers_are_a_sweep_of_their_own() -> None:
    settings = ("ngl=0", "ngl=24", "ncmoe=24", "ncmoe=48")
    found = sweeps.sweeps([measured(n + 1.0, text) for n, text in enumerate(settings)])
    assert [(each.whole, [n for n, _ in each.measured]) for each in found] == [
        (True, [24, 48]),
        (False, [24, 48]),
    ]


def test_a_speed_between_two_settings_is_on_the_line_of_their_times() -> None:
    points = ((10, 40.0), (20, 20.0))
    assert sweeps.speed_at(points, 10) == 40.0
    assert sweeps.speed_at(points, 15) == pytest.approx(1 / ((1 / 40 + 1 / 20) / 2))
    assert sweeps.speed_at(points, 20) == 20.0
    assert (sweeps.speed_at(points, 3), sweeps.speed_at(points, 30)) == (40.0, 20.0)


def test_the_memory_that_an_author_states_says_whether_the_advice_fits() -> None:
    rows = [
        measured(9.0, "ncmoe=40 (VRAM 6G)"),
        measured(10.0, "ncmoe=36 (VRAM 10G)"),
    ]
    (found,) = sweeps.sweeps(rows)
    assert found.stated_bytes(34) == pytest.approx(12 * 2**30)
    assert found.stated_bytes(48) == pytest.approx(-2 * 2**30)
    assert replace(found, stated=()).stated_bytes(34) is None
    told = sweeps.advised(found)
    assert told.layers is not None
    assert told.layers < 34
    assert told.fits is False
    assert not exam._good(exam.as_plain(told))
    assert exam._close(exam.as_plain(told))


def test_a_machine_that_cannot_be_asked_is_no_success() -> None:
    rows = [
        measured(9.0, "ncmoe=3", model="no such model"),
        measured(8.0, "ncmoe=4", model="no such model"),
    ]
    (found,) = sweeps.sweeps(rows)
    told = sweeps.advised(found)
    assert (told.layers, told.lost) == (None, None)
    assert "no such model" in told.reason
    plain = exam.as_plain(told)
    assert f"| {plain['half']} | 1 | 0 | – |" in exam.shares_table([plain])


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"setting": "ncmoe=24"}, "EQUAL"),
        ({"setting": "ncmoe=24 kv=q8_0", "depth": 512}, "EQUAL"),
        ({"setting": "ncmoe=24 t=4"}, "EQUAL"),
        ({"setting": "ncmoe=24", "metric": "prefill_tok_s", "prompt": 512}, "EQUAL"),
        ({"setting": "cpu-only", "gpu": "none"}, "EQUAL"),
        ({"setting": "ngl=24"}, "no choice"),
        ({"setting": "ncmoe=24 rtr", "engine": "ik_llama.cpp"}, "no choice"),
    ],
)
def test_a_choice_has_the_price_of_the_row_that_it_is(fields: dict[str, Any], outcome: str) -> None:
    reading = read(row(**{**MACHINE, **fields}))
    predicted = Simulated().predict(reading)
    assert isinstance(predicted, Prediction)
    told = exam.price_of(reading, predicted)
    assert told.startswith(getattr(exam, outcome, outcome))
    if outcome == "EQUAL":
        slower = replace(predicted, value=predicted.value * 0.999, low=predicted.low * 0.99)
        assert exam.price_of(reading, slower) == exam.DIFFERENT


def test_the_document_has_the_tables_of_the_committed_results() -> None:
    text = document()
    tables = exam.tables_of(committed("exam")) | questions.tables_of(committed("questions"))
    assert len(tables) == 4 + 10
    for name, content in tables.items():
        assert with_tables(text, {name: content}) == text, name


def test_no_price_of_a_measured_setting_differs() -> None:
    for counts in committed("exam")["prices"].values():
        assert counts[exam.EQUAL] > 100
        assert exam.DIFFERENT not in counts


def test_the_committed_results_are_made_again(shared: Path) -> None:
    made = exam.rounded(exam.exam(read_measured(shared / "data/measured/throughput.json")))
    assert made == committed("exam")


# The ten worked questions


def test_a_value_outside_of_the_interval_is_said() -> None:
    beside = questions.Beside(0, "decode", 30.0, "a/b", "A")
    inside = {"decode": {"value": 33.0, "low": 29.0, "high": 40.0}}
    outside = {"decode": {"value": 33.0, "low": 31.0, "high": 40.0}}
    assert "+10% off, inside" in questions._line(beside, inside)
    assert "**and the interval does not hold it**" in questions._line(beside, outside)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_worked_question_has_the_numbers_of_the_document(number: int) -> None:
    result = committed("questions")[number - 1]
    worked = questions.QUESTIONS[number - 1]
    assert result["arguments"] == worked.arguments
    numbers = questions.numbers_of(worked)
    wanted = result["numbers"]
    assert set(numbers) == set(wanted)
    for name, value in wanted.items():
        close = pytest.approx(value, rel=1e-3) if isinstance(value, dict) else value
        assert numbers[name] == close, name


def test_quoted_values_are_those_of_the_rows(shared: Path) -> None:
    rows = {m.row.index: m for m in read_measured(shared / "data/measured/throughput.json")}
    quoted = [one for worked in questions.QUESTIONS for one in worked.beside]
    assert len(quoted) >= 10
    for one in quoted:
        found = rows[one.row]
        assert found.value == one.value
        assert found.row.grade == one.grade
        assert found.row.source.startswith(one.source)
        assert (exam.half_of(found.row) == "forming") == one.formed
